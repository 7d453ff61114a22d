import collections
import contextlib
import os
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import DataError
from mamltheory.fewshot.safe_pickle import load_pickle
from tests.fewshot import python2

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    np.array([1.5, np.pi]),
    np.array([True, False]),
    np.array(["a", "bc"]),
    np.array([b"a", b"bc"]),
    np.zeros((0, 3), np.float32),
]


def read(tmp_path, raw: bytes):
    file = tmp_path / "file.pkl"
    file.write_bytes(raw)
    return load_pickle(file)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_come_back_unchanged(tmp_path, protocol):
    value = {"arrays": ARRAYS, "bytes": [b"", b"\xff\x00"], "scalar": np.int64(3), "plain": (1, 2.5, None)}
    back = read(tmp_path, pickle.dumps(value, protocol))
    for ours, theirs in zip(back["arrays"], ARRAYS, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert {k: v for k, v in back.items() if k != "arrays"} == {
        k: v for k, v in value.items() if k != "arrays"
    }


@pytest.mark.parametrize("protocol", range(6))
def test_lists_of_encoded_images_and_ordered_dictionaries_are_read(tmp_path, protocol):
    value = collections.OrderedDict(
        images=np.array([np.zeros(3, np.uint8), np.ones(5, np.uint8)], dtype=object)
    )
    back = read(tmp_path, pickle.dumps(value, protocol))
    assert isinstance(back, dict)
    assert [len(v) for v in back["images"]] == [3, 5]


def test_a_pickle_of_python_2_and_old_numpy_is_read(tmp_path):
    # What Python 2 writes for {'labels': array([1, 2], dtype=uint8)} in protocol 2, by hand.
    raw = (
        b"\x80\x02}q\x00U\x06labelsq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x01\x02tbs."
    )
    np.testing.assert_array_equal(read(tmp_path, raw)["labels"], np.array([1, 2], np.uint8))


def array_of(kind, order, size, shape, content) -> bytes:
    """An array as Python 2 pickles it, with a state that need not fit together; opcodes as they are."""
    new = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    dtype = b"cnumpy\ndtype\nU" + bytes([len(kind)]) + kind + b"K\x00K\x01\x87R(K\x03U\x01" + order + b"NNN"
    dtype += b"J" + size.to_bytes(4, "little", signed=True) + b"J\xff\xff\xff\xffK\x00tb"
    return new + shape + dtype + b"\x89" + content + b"tb."


class Payload:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "payload",
    [
        Payload(os.system, "touch HACKED"),
        Payload(eval, "open('HACKED', 'w')"),
        Payload(getattr, "a", "upper"),
        Payload(partial, print),
        Payload(np.load, "x"),
        Payload(bytes, 5),
        [np.array([Payload(os.system, "touch HACKED")], dtype=object)],
    ],
    ids=lambda p: "nested" if isinstance(p, list) else p.call[0].__name__,
)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path, monkeypatch, payload, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"file\.pkl"):
        read(tmp_path, pickle.dumps(payload, protocol))
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cnumpy\nndarray\n(K\x05tR.",  # calling the array class itself
        b"cnumpy\ndtype\n(V(16)O,f8\ntR.",  # a structured type
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",  # not ndarray
        b"c_codecs\nencode\n(Va\nVrot13\ntR.",
        b"cnumpy\ndtype\n}(S'__call__'\nK\x01ub.",  # an attribute
        b"\x80\x02P1\n.",
        b"\x80\x02]r\xff\xff\xff\x7fK\x01a0.",  # an index that would claim 32 GB
        b"\x80\x02}"
        + b")"
        + 100 * b"\x85"
        + b"K\x01s.",  # a key whose hash, deeper still, would overrun the C stack
        b"\x80\x02ccollections\nOrderedDict\n](](" + b")" + 100 * b"\x85" + b"K\x01ee\x85R.",
        b"\x80\x04\x8f(" + b")" + 100 * b"\x85" + b"\x90.",  # the same in a set
        b"\x80\x02T\xff\xff\xff\x7fabc.",  # strings that announce 2 GB and more
        b"\x80\x05\x8e" + 7 * b"\xff" + b"\x3fabc.",
        b"\x80\x05\x96" + 7 * b"\xff" + b"\x3fabc.",
        b"\x80\x04\x95" + 7 * b"\xff" + b"\x3fabc.",
        array_of(b"u1", b"|", -1, b"J\xff\xff\xff\x7f\x85", b"U\x02\x01\x02"),  # shapes beyond the content
        array_of(b"O", b"|", -1, b"J\xff\xff\xff\x7f\x85", b"]K\x01a"),
        array_of(b"u1", b"|", -1, b"J\xff\xff\xff\xff\x85", b"U\x02\x01\x02"),
        array_of(b"u1", b"|", 5, b"K\x02\x85", b"U\x02\x01\x02"),  # a type of another size
        array_of(b"u1", b"X", -1, b"K\x02\x85", b"U\x02\x01\x02"),
    ],
)
def test_the_allowed_names_cannot_be_put_to_other_uses(tmp_path, raw):
    with pytest.raises(DataError):
        read(tmp_path, raw)


def test_what_we_hand_out_cannot_be_changed_by_a_file(tmp_path):
    before = pickle.dumps(np.arange(3), 2)
    with pytest.raises(DataError):
        read(tmp_path, b"\x80\x02cnumpy\ndtype\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.")
    np.testing.assert_array_equal(read(tmp_path, before), np.arange(3))


@pytest.mark.parametrize("head", [b"<!DOCTYPE html><html>", b"\n<html>", b"<?xml version='1.0'?>"])
def test_a_web_page_saved_as_a_pickle_is_called_a_web_page(tmp_path, head):
    with pytest.raises(DataError, match="web page"):
        read(tmp_path, head + b" quota exceeded")


def test_a_git_lfs_pointer_is_named(tmp_path):
    with pytest.raises(DataError, match="git lfs pull"):
        read(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), protocol=st.sampled_from([0, 2, 5]))
def test_a_damaged_pickle_gives_a_data_error_or_data_never_another_error(tmp_path_factory, data, protocol):
    raw = bytearray(pickle.dumps({"data": np.arange(12, dtype=np.uint8), "labels": [1, 2]}, protocol))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(DataError):
        read(tmp_path_factory.getbasetemp(), bytes(raw))


def test_what_a_file_may_order_copied_is_bounded_by_its_size(tmp_path):
    # One megabyte of text, encoded a hundred thousand times: a hundred gigabytes from two megabytes.
    text = b"X" + (2**20).to_bytes(4, "little") + 2**20 * b"a" + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(DataError, match="grow far beyond the file"):
        read(tmp_path, b"\x80\x02" + text + 10**4 * encode + b"N.")
    array = array_of(b"O", b"|", -1, b"M\x10\x27\x85", b"](" + 10**4 * b"N" + b"eq\x01")
    again = array_of(b"O", b"|", -1, b"M\x10\x27\x85", b"h\x01")[2:-1] + b"0"
    with pytest.raises(DataError, match="grow far beyond the file"):
        read(tmp_path, array[:-1] + 10**4 * again + b"N.")


def test_hand_made_arrays_are_read_when_their_parts_fit_together(tmp_path):
    np.testing.assert_array_equal(
        read(tmp_path, array_of(b"i2", b">", -1, b"K\x02\x85", b"U\x04\x01\x00\x00\x02")), [256, 2]
    )


@pytest.mark.parametrize("protocol", range(6))
def test_two_byte_orders_of_one_type_do_not_mix(tmp_path, protocol):
    little, big = np.array([1, 2], "<i4"), np.array([3, 4], ">i4")
    back = read(tmp_path, pickle.dumps([little, big, little.copy(), big.copy()], protocol))
    for ours, theirs in zip(back, [little, big, little, big], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dumps", [python2.dumps, partial(pickle.dumps, protocol=4)])
def test_a_large_array_is_mapped_wherever_the_file_comes_back_to_it(tmp_path, dumps):
    image, numbers = np.arange(200_000, dtype=np.uint8).reshape(100, 500, 4), np.arange(9_000, dtype=np.int64)
    content = read(tmp_path, dumps({"images": image, "numbers": numbers, "name": "x" * 300}))
    assert isinstance(content["images"], np.memmap)
    np.testing.assert_array_equal(content["images"], image)
    np.testing.assert_array_equal(content["numbers"], numbers)
    twice = read(tmp_path, pickle.dumps([image, image], 4))
    assert twice[0] is twice[1]


def test_long_text_beside_arrays_is_read_too(tmp_path):
    value = {"text": "é" * 5000, "array": np.arange(9_000, dtype=np.uint8)}
    back = read(tmp_path, python2.dumps(value))
    assert back["text"] == value["text"]
    np.testing.assert_array_equal(back["array"], value["array"])
    assert read(tmp_path, pickle.dumps(b"b" * 9000, 4)) == b"b" * 9000
