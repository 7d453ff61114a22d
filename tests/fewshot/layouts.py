"""Tiny data sets in every layout that the package reads, written as the public ones are."""

import io
import json
import pickle
import struct
import zlib
from functools import partial

import numpy as np
from PIL import Image

from mamltheory.fewshot.formats import Options
from mamltheory.fewshot.formats.prepared import write_prepared
from mamltheory.fewshot.images import ImageData
from tests.fewshot import python2
from tests.fewshot.small import noise_split

SPLITS = ("train", "val", "test")
CATEGORY = {"train": "train_phase_train", "val": "val", "test": "test"}


def python3(value) -> bytes:
    return pickle.dumps(value, 2)


def tiny_splits(classes=3, per_class=4, size=12):
    """Three splits whose class names are WordNet ids, as in the public sets."""
    return {
        split: noise_split(classes, per_class, size, seed, f"n{seed + 1:07d}")
        for seed, split in enumerate(SPLITS)
    }


def encoded(image, kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def png_of_declared_size(width, height) -> bytes:
    """A PNG file that announces so many pixels and holds none of them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def put(file, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def write_category(folder, splits, dumps=python2.dumps, names=True, pattern=None):
    """RFS and MetaOptNet: labels run on from split to split."""
    for number, (split, content) in enumerate(splits.items()):
        raw = {"data": content.images, "labels": [int(v) + 64 * number for v in content.labels]}
        if names:
            raw["catname2label"] = {name: i + 64 * number for i, name in enumerate(content.class_names)}
        name = pattern.format(split) if pattern else f"miniImageNet_category_split_{CATEGORY[split]}.pickle"
        put(folder / name, dumps(raw))


def write_cache(folder, splits, dumps=python2.dumps, validation="val"):
    for split, content in splits.items():
        rows = dict(zip(content.class_names, [m.tolist() for m in content.members], strict=True))
        name = validation if split == "val" else split
        raw = {"image_data": content.images, "class_dict": rows}
        put(folder / f"mini-imagenet-cache-{name}.pkl", dumps(raw))


def write_labels(folder, split, content, dumps, key, prefix=""):
    raw = {key: content.labels.astype(np.int32)}
    if key == "label_specific":  # Ren's original files name the classes, the copies do not
        raw |= {"label_general": content.labels.astype(np.int32) // 2}
        raw |= {"label_specific_str": list(content.class_names), "label_general_str": {"animal": 0}}
    put(folder / f"{prefix}{split}_labels.pkl", dumps(raw))


def write_npz(folder, splits, dumps=python2.dumps, key="label_specific", compressed=False):
    for split, content in splits.items():
        save, stream = np.savez_compressed if compressed else np.savez, io.BytesIO()
        save(stream, images=content.images[..., ::-1])
        put(folder / f"{split}_images.npz", stream.getvalue())
        write_labels(folder, split, content, dumps, key)


def write_png(folder, splits, dumps=python2.dumps, columns=True, prefix=""):
    for split, content in splits.items():
        images = [np.frombuffer(encoded(image), np.uint8) for image in content.images]
        images = [image[:, None] if columns else image for image in images]
        put(folder / f"{prefix}{split}_images_png.pkl", dumps(images))
        write_labels(folder, split, content, dumps, "label_specific", prefix)


def write_csv(folder, splits, ravi=True, kind="JPEG"):
    """Ravi and Larochelle: a flat folder of images; easyfsl: a folder for each class."""
    for split, content in splits.items():
        lines = ["filename,label" if ravi else "class_name,image_name"]
        for row, (image, label) in enumerate(zip(content.images, content.labels, strict=True)):
            name = content.class_names[label]
            file = f"{name}{row:08d}.{'jpg' if kind == 'JPEG' else 'png'}"
            lines.append(f"{file},{name}" if ravi else f"{name},{file}")
            put(folder / "images" / (file if ravi else f"{name}/{file}"), encoded(image, kind))
        put(folder / f"{split}.csv", ("\n".join(lines) + "\n").encode())


def write_folders(folder, splits, kind="PNG", val="val"):
    for split, content in splits.items():
        for row, (image, label) in enumerate(zip(content.images, content.labels, strict=True)):
            place = folder / (val if split == "val" else split) / content.class_names[label]
            put(place / f"{row:03d}.{'jpg' if kind == 'JPEG' else 'png'}", encoded(image, kind))


def write_json(folder, splits):
    """easyfsl: one folder of classes for all splits, named from where its author worked."""
    for split, content in splits.items():
        write_folders(folder, {"images": content})
        roots = [f"./data/CUB/images/{name}" for name in content.class_names]
        raw = {"class_names": list(content.class_names), "class_roots": roots}
        put(folder / f"{split}.json", json.dumps(raw).encode())


def write_parquet(folder, splits, shards=2):
    import pyarrow as pa
    import pyarrow.parquet

    names = [name for content in splits.values() for name in content.class_names]
    meta = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for split, content in splits.items():
        images = [
            {"bytes": encoded(image, "PNG"), "path": f"{i}.png"} for i, image in enumerate(content.images)
        ]
        labels = [names.index(content.class_names[label]) for label in content.labels]
        table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
        step, part = -(-len(images) // shards), "validation" if split == "val" else split
        for shard in range(shards):
            file = folder / "data" / f"{part}-{shard:05d}-of-{shards:05d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pa.parquet.write_table(table.slice(shard * step, step), file)


def write_arrays(folder, splits):
    """The package's own layout."""
    folder.mkdir(parents=True, exist_ok=True)
    size = splits["train"].images.shape[1]
    contents = {split: splits.get(split, other) for split, other in tiny_splits(2, 2, size).items()}
    data = ImageData("birds", **contents, mean=(0.5,) * 3, std=(0.25,) * 3, mirrors=False)
    write_prepared(data, folder, Options())
    for absent in set(SPLITS) - set(splits):
        (folder / f"{absent}_images.npy").unlink()


LAYOUTS = {
    "prepared arrays": write_arrays,
    "mini-ImageNet pickles": write_category,
    "mini-ImageNet cache pickles": write_cache,
    "tieredImageNet arrays": write_npz,
    "tieredImageNet PNG pickles": write_png,
    "CIFAR-FS or FC100 pickles": partial(write_category, pattern="CIFAR_FS_{}.pickle", names=False),
    "lists of images": partial(write_csv, kind="PNG"),
    "easyfsl specifications": write_json,
    "image folder": write_folders,
    "parquet files": write_parquet,
}
