"""Readers of few-shot image data on disk: for each layout a test and a reader."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mamltheory.errors import DataError
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics
from mamltheory.fewshot.safe_pickle import load_pickle

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Of mini-ImageNet's training images, on the scale 0..255; RFS uses them for tieredImageNet too.
IMAGENET_MEAN = tuple(v / 255 for v in (120.39586422, 115.59361427, 104.54012653))
IMAGENET_STD = tuple(v / 255 for v in (70.68188272, 68.27635443, 72.54505529))


@dataclass(frozen=True)
class Options:
    """What the caller may choose: side of the square images (None: as stored), channel order of tiered
    files.
    """

    image_size: int | None = None
    tiered_bgr: bool = True


@dataclass(frozen=True)
class Format:
    """One layout on disk: its name, what it looks like (for error messages), a test and a reader."""

    name: str
    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Options], ImageData]


def resize(images: np.ndarray, size: int | None) -> np.ndarray:
    """The images at size × size (antialiased bilinear, centre-cropped to a square); as they are for None."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.stack([_fit(Image.fromarray(np.ascontiguousarray(image)), size) for image in images])


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _renumbered(
    images: np.ndarray, labels: Sequence[int] | np.ndarray, names: dict[int, str], split: str
) -> ImageSplit:
    """A split with labels 0..n-1; classes without a name are called after the split, so they stay
    distinct.
    """
    raw = np.asarray(labels)
    if raw.ndim != 1 or len(raw) != len(images) or raw.dtype.kind not in "iu":
        raise DataError(f"{split}: {len(images)} images but labels of shape {raw.shape} and type {raw.dtype}")
    values, compact = np.unique(raw, return_inverse=True)
    known = all(int(v) in names for v in values)
    titles = tuple(names[int(v)] if known else f"{split}/{int(v)}" for v in values)
    return ImageSplit(images, compact.astype(np.int64), titles)


# --- image folder: {train,val,test}/<class>/*.png|jpg ---


def _matches_folder(path: Path) -> bool:
    return all((path / split).is_dir() for split in SPLITS)


def _read_folder(path: Path, options: Options) -> ImageData:
    splits = {split: _read_class_folders(path / split, options.image_size) for split in SPLITS}
    return ImageData(path.name, **splits, **_statistics(splits["train"]))


def _statistics(train: ImageSplit) -> dict[str, tuple[float, float, float]]:
    return dict(zip(("mean", "std"), channel_statistics(train), strict=True))


def _read_class_folders(folder: Path, size: int | None) -> ImageSplit:
    files = {
        entry.name: sorted(f for f in entry.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    }
    empty = [name for name, images in files.items() if not images]
    if not files or empty:
        where = folder / empty[0] if empty else folder
        raise DataError(
            f"{where} holds no images: expected one folder per class with {', '.join(IMAGE_SUFFIXES)} files"
        )
    images = [_open_image(file, size) for group in files.values() for file in group]
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{folder}: images of different sizes; give image_size to bring them to one")
    labels = np.repeat(np.arange(len(files)), [len(group) for group in files.values()])
    return ImageSplit(np.stack(images), labels.astype(np.int64), tuple(files))


def _open_image(file: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return _fit(image.convert("RGB"), size)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as an image ({error}): remove it or fetch it again") from None


# --- mini-ImageNet as RFS and MetaOptNet keep it ---

_MINI = "miniImageNet_category_split_{}.pickle"
_MINI_PARTS = {"train": "train_phase_train", "val": "val", "test": "test"}


def _matches_mini(path: Path) -> bool:
    return any((path / _MINI.format(part)).is_file() for part in _MINI_PARTS.values())


def _read_mini(path: Path, options: Options) -> ImageData:
    splits = {
        split: _read_mini_file(path / _MINI.format(part), split, options)
        for split, part in _MINI_PARTS.items()
    }
    return ImageData("mini-ImageNet", **splits, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _read_mini_file(file: Path, split: str, options: Options) -> ImageSplit:
    content = _dictionary(file, "data", "labels")
    names = content.get("catname2label")
    names = {int(label): str(name) for name, label in names.items()} if isinstance(names, dict) else {}
    images = content["data"]
    if not isinstance(images, np.ndarray):
        raise DataError(f"{file}: 'data' is a {type(images).__name__}, expected a uint8 array N×H×W×3")
    return _renumbered(resize(images, options.image_size), content["labels"], names, split)


def _dictionary(file: Path, *keys: str) -> dict:
    if not file.is_file():
        raise DataError(f"{file} is missing: the data set consists of one such file for each split")
    content = load_pickle(file)
    if not isinstance(content, dict) or any(key not in content for key in keys):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{file} holds {found}; expected a dictionary with {', '.join(keys)}")
    return content


# --- tieredImageNet: {split}_images.npz and {split}_labels.pkl ---


def _matches_tiered(path: Path) -> bool:
    return any((path / f"{split}_images.npz").is_file() for split in SPLITS)


def _read_tiered(path: Path, options: Options) -> ImageData:
    splits = {split: _read_tiered_split(path, split, options) for split in SPLITS}
    return ImageData("tieredImageNet", **splits, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _read_tiered_split(path: Path, split: str, options: Options) -> ImageSplit:
    images = open_npz_member(path / f"{split}_images.npz", "images")
    if options.tiered_bgr:
        images = images[..., ::-1]  # the files were written by OpenCV; a view, so a memory map stays one
    content = _dictionary(path / f"{split}_labels.pkl")
    # Ren's original files call the labels label_specific, the RFS and MetaOptNet copies labels.
    key = next((key for key in ("labels", "label_specific") if key in content), None)
    if key is None:
        raise DataError(
            f"{path / f'{split}_labels.pkl'} holds {sorted(map(str, content))}: expected 'labels'"
        )
    words = content.get("label_specific_str")
    names = dict(enumerate(map(str, words))) if isinstance(words, list) else {}
    return _renumbered(resize(images, options.image_size), content[key], names, split)


def open_npz_member(file: Path, name: str) -> np.ndarray:
    """An array of an npz file: mapped in place when it is stored uncompressed, else loaded; never
    unpickled.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing: the data set consists of images and labels for each of {SPLITS}")
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type == zipfile.ZIP_STORED:
                return _map_member(file, info)
        with np.load(file, allow_pickle=False) as content:
            return content[name]
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{file} is not an npz file with an array {name!r} ({error}): fetch it again and compare its size"
        ) from None


def _map_member(file: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with file.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # the local header ends with the lengths of its two variable fields
        lengths = np.frombuffer(raw.read(4), "<u2")
        raw.seek(info.header_offset + 30 + int(lengths.sum()))
        version = np.lib.format.read_magic(raw)
        reader = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(raw)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        return np.memmap(file, dtype, "r", raw.tell(), shape, "F" if fortran else "C")


FORMATS = (
    Format("image folder", "{train,val,test}/<class>/*.png|jpg", _matches_folder, _read_folder),
    Format("mini-ImageNet pickles", _MINI.format("{train_phase_train,val,test}"), _matches_mini, _read_mini),
    Format(
        "tieredImageNet arrays", "{train,val,test}_images.npz + _labels.pkl", _matches_tiered, _read_tiered
    ),
)
