"""Small files made to fill the memory, to hang, or to overrun a message: refused at once, whatever the layout."""

import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from mamltheory.errors import DataError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.formats import parquet
from mamltheory.fewshot.formats.parquet import pages
from mamltheory.fewshot.safe_pickle import load_pickle
from tests.fewshot import layouts
from tests.fewshot.layouts import tiny_splits

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
CATEGORY = "miniImageNet_category_split_train_phase_train.pickle"


def bomb(kind=list, levels=8, width=40):
    """A value of a few kilobytes that holds 40⁸ numbers."""
    value = kind([1])
    for _ in range(levels):
        value = kind([value]) * width
    return value


def itself():
    value = []
    value.extend([value] * 10)
    return value


def objects(*values):
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def refused(read, path, seconds=2.0, megabytes=300):
    """The one line by which a file is refused, in bounds."""
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(DataError) as caught:
        read(path)
    spent, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < seconds
    assert peak < megabytes * 2**20
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1600  # the known layouts take that much
    return message


CONTENTS = {
    "labels of lists": {"data": IMAGES, "labels": bomb()},
    "labels of tuples": {"data": IMAGES, "labels": bomb(tuple)},
    "labels that hold themselves": {"data": IMAGES, "labels": itself()},
    "an array of labels of lists": {"data": IMAGES, "labels": objects(bomb(), 1, 2, 3)},
    "huge labels": {"data": IMAGES, "labels": [10**3000, 1, 2, 3]},
    "images of lists": {"data": bomb(), "labels": [1, 1, 2, 2]},
    "no dictionary": bomb(),
    "other keys": {"a": bomb()},
    "a huge key": {10**3000: 1},
    "names of lists": {"data": IMAGES, "labels": [1, 1, 2, 2], "label2catname": {1: bomb(), 2: "b"}},
    "numbers of lists": {"data": IMAGES, "labels": [1, 1, 2, 2], "catname2label": {"a": bomb(), "b": 2}},
}


@pytest.mark.parametrize("name", CONTENTS)  # pytest would look at the values themselves
def test_values_that_hold_themselves_many_times_are_refused_and_not_printed(tmp_path, name):
    layouts.write_category(tmp_path, tiny_splits(2, 2, 8))
    (tmp_path / CATEGORY).write_bytes(pickle.dumps(CONTENTS[name], 2))
    assert CATEGORY in refused(load_data, tmp_path)


ROWS = {"lists": bomb(), "itself": itself(), "huge": [10**3000], "text": "ab"}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["a", 1.5, "x" * 10**5], ids=["name", "number", "long"])
def test_rows_of_a_class_that_are_none_are_refused(tmp_path, rows, name):
    layouts.write_cache(tmp_path, tiny_splits(2, 2, 8))
    content = {"image_data": IMAGES, "class_dict": {name: ROWS[rows]}}
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content, 2))
    refused(load_data, tmp_path)


NUMBER = b"\x8b" + struct.pack("<i", 10**6) + b"\xff" * (10**6 - 1) + b"\x00"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
SMUGGLED = pickle.dumps(bomb(), 2)[2:-1] + b"q\xf0"
STREAMS = {
    "type": SMUGGLED + b"cnumpy\ndtype\nh\xf0K\x00K\x01\x87R.",
    "encoding": SMUGGLED + b"c_codecs\nencode\nX\x01\x00\x00\x00ah\xf0\x86R.",
    "persistent": SMUGGLED + b"Q.",
    "shape": ARRAY
    + b"(K\x01("
    + NUMBER
    + b"q\x01"
    + 31 * b"h\x01"
    + b"tcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x02abtb.",
    "long name": b"c" + b"a" * 10**6 + b"\n\x1b[2J" + b"b" * 10**6 + b"\n.",
    "scalars": b"cnumpy.core.multiarray\nscalar\nq\x02cnumpy\ndtype\nU\x05S4000K\x00K\x01\x87Rq\x03T"
    + struct.pack("<i", 4000)
    + b"a" * 4000
    + b"q\x04"
    + 10**4 * b"h\x02h\x03h\x04\x86R"
    + b"N.",
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_streams_that_would_be_printed_or_multiplied_are_refused(tmp_path, stream):
    (tmp_path / "file.pkl").write_bytes(b"\x80\x02" + stream)
    assert refused(load_pickle, tmp_path / "file.pkl").isprintable()


@pytest.mark.parametrize("step", [b"]", b"(", b"N\x94"], ids=["lists", "marks", "memo"])
def test_the_steps_of_a_pickle_go_by_its_size(tmp_path, monkeypatch, step):
    monkeypatch.setattr("mamltheory.fewshot.safe_pickle.STEPS", 1000)
    (tmp_path / "file.pkl").write_bytes(b"\x80\x04" + step * 2000 + b".")
    with pytest.raises(DataError, match="more steps than a data set of its size takes"):
        load_pickle(tmp_path / "file.pkl")
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(list(range(400))))
    assert load_pickle(tmp_path / "file.pkl") == list(range(400))


def test_an_image_that_is_listed_many_times_is_refused_before_any_is_decoded(tmp_path):
    layouts.write_png(tmp_path, tiny_splits(2, 2, 8))
    image = b"x" * 1000
    (tmp_path / "train_images_png.pkl").write_bytes(pickle.dumps([image] * 1000, 2))
    assert "the same images many times over" in refused(load_data, tmp_path)


def npy(shape, kind="|u1"):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


@pytest.mark.parametrize(
    ("content", "compression", "message"),
    [
        (npy("(10000, 84, 84, 3)") + bytes(2**20), zipfile.ZIP_DEFLATED, "is announced"),
        (npy("(10, 84, 84, 3)") + bytes(211680), zipfile.ZIP_BZIP2, "numpy does not use"),
        (npy("(10, 84, 84, 3)") + bytes(211680), zipfile.ZIP_LZMA, "numpy does not use"),
        (npy("(1000000000000,)", "|S0"), zipfile.ZIP_DEFLATED, "or nothing"),
    ],
)
def test_archives_that_announce_too_much_or_unpack_otherwise_are_refused(
    tmp_path, content, compression, message
):
    layouts.write_npz(tmp_path, tiny_splits(2, 2, 8))
    with zipfile.ZipFile(tmp_path / "train_images.npz", "w", compression) as archive:
        archive.writestr("images.npy", content)
    assert message in refused(load_data, tmp_path)


def test_an_archive_with_a_long_list_of_arrays_is_refused_before_it_is_read(tmp_path):
    layouts.write_npz(tmp_path, tiny_splits(2, 2, 8))
    with zipfile.ZipFile(tmp_path / "train_images.npz", "w") as archive:
        for i in range(5000):
            archive.writestr(f"{i:0200d}.npy", b"")
    assert "far too long" in refused(load_data, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", b"[" * 10**5 + b"]" * 10**5),
        ("train.json", b'{"class_names": ' + b"9" * 10**6 + b"}"),
        ("train.json", b'{"class_names": [' + b"[]," * 2**21 + b"1]}"),
        ("train.csv", b"filename,label" + b",x" * 10**4 + b"\n" + b"a,b\n" * 10**4),
        ("train.csv", b"filename,label\n" + b"a" * 10**6 + b",b\n"),
    ],
)
def test_lists_of_images_are_bounded(tmp_path, name, content):
    layouts.LAYOUTS["easyfsl specifications" if name.endswith("json") else "lists of images"](
        tmp_path, tiny_splits(2, 2, 8)
    )
    (tmp_path / name).write_bytes(content)
    assert name in refused(load_data, tmp_path)


def one_image(folder, rows, image, compression):
    """A parquet file of a kilobyte or two whose rows all show one entry of a dictionary."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = pa.StructArray.from_arrays(
        [pa.array([image] * rows, pa.binary()), pa.array(["x"] * rows)], ["bytes", "path"]
    )
    table = pa.table({"image": columns, "label": pa.array([0] * rows)})
    for name in ("train", "validation", "test"):
        how = {"compression": compression, "dictionary_pagesize_limit": 2**30}
        pa.parquet.write_table(table, folder / f"{name}.parquet", **how)
    return folder / "train.parquet"


def test_a_dictionary_is_read_few_rows_at_a_time(tmp_path):
    file = one_image(tmp_path, 32, bytes(2**20), "zstd")
    assert file.stat().st_size < 3000
    reader = parquet._pyarrow()
    _, opened, rows = parquet._open(reader, file)
    opened.close()
    assert rows == parquet.MOST_BATCH // 2**20 or rows == parquet.MOST_BATCH // (2**20 + 4)
    with file.open("rb") as raw:
        column = reader.ParquetFile(file).metadata.row_group(0).column(0)
        found = list(pages(raw, column.dictionary_page_offset, column.total_compressed_size))
    assert [page.is_dictionary for page in found][:2] == [True, False]
    assert found[0].size == 2**20 + 4


@pytest.mark.parametrize(
    ("rows", "image", "compression", "message"),
    [
        (10**5, b"x", "snappy", "announces far more"),
        (2, bytes(2**26), "zstd", "announces far more"),
        (8, bytes(2**10), "brotli", "BROTLI"),
    ],
)
def test_parquet_files_that_unpack_to_far_more_are_refused(tmp_path, rows, image, compression, message):
    assert message in refused(load_data, one_image(tmp_path, rows, image, compression).parent)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(tmp_path, name):
    layouts.LAYOUTS[name](tmp_path, tiny_splits(2, 2, 8))
    kinds = {file.suffix: file for file in sorted(tmp_path.rglob("*")) if file.is_file()}
    for suffix in kinds.keys() - {".png", ".jpg"}:
        kept = kinds[suffix].read_bytes()
        kinds[suffix].unlink()
        os.mkfifo(kinds[suffix])
        refused(load_data, tmp_path)
        kinds[suffix].unlink()
        kinds[suffix].write_bytes(kept)


def test_a_changed_digit_of_prepared_data_is_noticed(tmp_path):
    layouts.LAYOUTS["prepared arrays"](tmp_path, tiny_splits(2, 2, 8))
    record, labels = tmp_path / "few-shot-data.json", tmp_path / "train_labels.npy"
    kept = record.read_bytes(), labels.read_bytes()
    at = kept[0].index(b'"std"') + 12
    position = next(i for i in range(at, len(kept[0])) if kept[0][i : i + 1].isdigit())
    digit = b"%d" % ((int(kept[0][position : position + 1]) + 1) % 10)
    record.write_bytes(kept[0][:position] + digit + kept[0][position + 1 :])
    assert "few-shot-data.json is damaged" in refused(load_data, tmp_path)
    record.write_bytes(kept[0])
    numbers = np.load(labels)
    np.save(labels, numbers[::-1].copy())
    assert "train_labels.npy is not as it was written" in refused(load_data, tmp_path)
    labels.write_bytes(kept[1])
    load_data(tmp_path)
