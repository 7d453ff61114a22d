"""JSON of others is refused in one line, whatever it is; a sealed object notices every changed bit."""

import json
import os
import time
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, NotRequired, TypedDict

import pytest

from mamltheory.files import read_regular, reason, shown
from mamltheory.strict_json import misfit, parse, seal_of, sealed, unsealed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 100"),
        (b"[" * 101 + b"]" * 101, "nested more than 100"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100"),
        (b"[" * 100_000, "nested more than 100"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b"\xff\xfe{}", "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b"1" * 5000, "5000 digits"),
        (b"NaN", "NaN is no number"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]\n[2]", "not JSON"),
        (b"[" + b"[]," * 2**21 + b"1]", "more than 4194304 values"),
    ],
    ids=range(13),
)
def test_what_is_not_strict_json_is_refused_in_one_line_and_at_once(data, message):
    begun = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        parse(data)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert time.process_time() - begun < 1


def test_strict_json_is_read():
    assert parse(b'\xef\xbb\xbf{"a": [1, 2.5, "\\u00e9", null, true]}') == {"a": [1, 2.5, "é", None, True]}
    assert parse(b"[Infinity]", infinite=True) == [float("inf")]
    assert parse(b"[" * 100 + b"]" * 100)


@pytest.mark.parametrize("indent", [2, None])
def test_every_changed_bit_of_a_sealed_object_is_noticed(indent):
    content = {"config": {"tasks": 8, "é": [0.25]}, "results": "0123456789abcdef" * 4}
    raw = sealed(json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
    assert unsealed(raw) == (content, seal_of(raw))
    for position in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match=r"."):
            unsealed(bytes(broken))
    for end in range(1, len(raw)):
        with pytest.raises(ValueError, match=r"."):
            unsealed(raw[:-end])


def test_an_object_of_an_earlier_version_has_no_seal_and_is_read():
    text = '{"results": {"training": "' + "0a" * 32 + '"\n  }\n}\n'
    assert unsealed(text.encode()) == (json.loads(text), "")
    assert unsealed(sealed("{}\n"))[0] == {}


def test_a_sealed_object_holds_to_the_one_before_it():
    line = sealed('{"a": 1}\n', before="ab")
    assert unsealed(line, "ab")[0] == {"a": 1}
    for other in ("", "ac"):
        with pytest.raises(ValueError, match="damaged"):
            unsealed(line, other)


class Kind(TypedDict):
    count: Annotated[int, 1]
    rate: float
    name: NotRequired[str | None]
    pairs: NotRequired[list[tuple[str, int]]]
    table: NotRequired[dict[str, float]]
    way: NotRequired[Literal["a", "b"]]


class Pair(NamedTuple):
    first: int
    second: str


@dataclass(frozen=True)
class Data:
    x: int
    y: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"count": 1, "rate": 1}, None),
        (
            {"count": 1, "rate": "inf", "name": None, "pairs": [["a", 1]], "table": {"b": 2.5}, "way": "a"},
            None,
        ),
        ({"count": 1}, "it lacks rate"),
        ([], "expected an object with count"),
        ({"count": True, "rate": 1.0}, r"it\['count'\] is True: expected int"),
        ({"count": 1.0, "rate": 1.0}, "expected int"),
        ({"count": 2**63, "rate": 1.0}, "expected int"),
        ({"count": 0, "rate": 1.0}, "expected at least 1"),
        ({"count": 1, "rate": "fast"}, "'fast': expected float"),
        ({"count": 1, "rate": None}, "expected float"),
        ({"count": 1, "rate": 1.0, "name": 3}, "expected str"),
        ({"count": 1, "rate": 1.0, "pairs": [["a"]]}, "expected a list of 2"),
        ({"count": 1, "rate": 1.0, "pairs": [[1, 1]]}, "expected str"),
        ({"count": 1, "rate": 1.0, "table": {"b": []}}, r"it\['table'\]\['b'\] is \[\]"),
        ({"count": 1, "rate": 1.0, "way": "c"}, r"expected one of \['a', 'b'\]"),
        ({"count": 1, "rate": 1.0, "way": ["a"]}, "expected one of"),
    ],
)
def test_a_value_of_another_type_is_named(value, wrong):
    found = misfit(value, Kind, "it")
    if wrong is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=wrong):
            raise ValueError(found)


def test_dataclasses_and_named_tuples_are_kinds_as_well():
    assert misfit([1, "a"], Pair, "p") is None
    assert "p[1]" in misfit([1, 2], Pair, "p")
    assert misfit({"x": 1, "y": [1, "nan"]}, Data, "d") is None
    assert misfit({"x": 1}, Data, "d") is None
    assert "lacks x" in misfit({"y": []}, Data, "d")


def test_what_is_shown_of_a_value_is_short_and_takes_no_time():
    bomb = [1]
    for _ in range(60):
        bomb = [bomb] * 60
    itself = {}
    itself["a"] = [itself]
    begun = time.process_time()
    for value in (
        bomb,
        itself,
        10**10_000,
        "x" * 10**6,
        b"\0" * 10**6,
        {i: bomb for i in range(9)},
        "\x1b[2J",
    ):
        text = shown(value)
        assert len(text) <= 201
        assert text.isprintable()
    assert time.process_time() - begun < 0.2
    assert shown(["a", 1, None, 2.5]) == "['a', 1, None, 2.5]"
    assert reason(ValueError("a\n\x1b[1mb" + "c" * 10**6)).startswith("a [1mbccc")


@pytest.mark.timeout(20)
def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(OSError, match=r"no regular file|No such file"):
            read_regular(path)
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file", 3) == b"abc"
    with pytest.raises(OSError, match="3 bytes, and at most 2"):
        read_regular(tmp_path / "file", 2)
