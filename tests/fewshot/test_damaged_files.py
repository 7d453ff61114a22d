"""A damaged or hostile file of any layout gives one DataError or valid data: nothing else, and in bounds."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamltheory.errors import DataError
from mamltheory.fewshot.datasets import load_data
from tests.fewshot import layouts
from tests.fewshot.layouts import tiny_splits

FORBIDDEN = [(os, "system"), (os, "popen"), (subprocess, "Popen")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of every file of every layout, two classes of two images."""

    def files_of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("original")
            layouts.LAYOUTS[name](folder, tiny_splits(2, 2, 8))
            known[name] = {
                file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
            }
        return known[name]

    known = {}
    return files_of


@st.composite
def damages(draw):
    """What happens to the bytes of a file: a flipped bit, or a stretch left out, put in or written over."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "end"]))
    place, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 12))
    content = draw(st.binary(min_size=1, max_size=12))

    def damage(raw):
        at = int(place * len(raw))
        match kind:
            case "flip":
                return raw[:at] + bytes([raw[at] ^ (1 << length % 8)]) + raw[at + 1 :]
            case "cut":
                return raw[:at] + raw[at + length :]
            case "insert":
                return raw[:at] + content + raw[at:]
            case "overwrite":
                return raw[:at] + content + raw[at + len(content) :]
        return raw[:at]

    return damage


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", layouts.LAYOUTS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), damage=damages(), count=st.integers(1, 3))
def test_a_damaged_file_gives_a_data_error_or_valid_data(
    name, originals, tmp_path_factory, data, damage, count
):
    files = dict(originals(name))
    victim = data.draw(st.sampled_from(sorted(files)))
    for _ in range(count):
        files[victim] = damage(files[victim]) or b"\0"
    folder = tmp_path_factory.mktemp("damaged")
    for file, raw in files.items():
        layouts.put(folder / file, raw)
    with pytest.MonkeyPatch.context() as patch:
        for module, function in FORBIDDEN:
            patch.setattr(module, function, lambda *_, **__: pytest.fail("the file ran something"))
        read = load_or_say_why(folder)
    if not isinstance(read, str):
        for split in (read.train, read.val, read.test):
            assert split.images.dtype == np.uint8
            assert int(split.images.astype(np.int64).sum()) >= 0  # every byte can be reached
            assert len(split.labels) == len(split.images)
    else:
        assert "\n" not in read
    shutil.rmtree(folder)


def load_or_say_why(folder):
    try:
        return load_data(folder)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", layouts.LAYOUTS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", r"."),
        (b"\x80", r"."),
    ],
    ids=["web page", "pointer", "empty", "one byte"],
)
def test_files_that_are_something_else_are_called_by_their_name(name, originals, tmp_path, content, message):
    for victim in {file.suffix: file for file in originals(name)}.values():
        shutil.rmtree(tmp_path)
        for file, raw in originals(name).items():
            layouts.put(tmp_path / file, content if file == victim else raw)
        with pytest.raises(DataError, match=message) as caught:
            load_data(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_a_data_error(tmp_path, monkeypatch):
    layouts.write_category(tmp_path, tiny_splits(2, 2, 8))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "some.pickle")

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path)
