"""Images and labels as users hold them: arrays, tensors, Pillow images, files and folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import Options, no_progress
from mamltheory.fewshot.formats.decoding import upright_rgb
from mamltheory.fewshot.formats.listing import image_files
from mamltheory.fewshot.formats.pixels import decoded, fit_image
from mamltheory.fewshot.images import ImageSplit
from mamltheory.files import shown

Given = np.ndarray | torch.Tensor | Image.Image | str | Path | Sequence[Any]
"""One image or several, see :func:`images_of_side`."""
SCALED = "convert values in [0, 1] by (255 * x).round().astype(numpy.uint8)"


def images_of_side(side: int, name: str, images: object) -> np.ndarray:
    """Images uint8 n×side×side×3, from any of the forms that are unambiguous.

    Args:
        side: in pixels.
        name: of the images, for messages.
        images: an array or tensor of uint8, n×side×side×3, or side×side×3 for one image; a Pillow image, an image file
            or a folder of such files; or a list of arrays, Pillow images or files. Pillow images and files are brought
            to the size.

    Returns:
        The array.

    Raises:
        DataError: something else, or arrays of another shape or type.
    """
    if isinstance(images, str | Path):
        return _read(_files(Path(images), name), side, name)
    if isinstance(images, Image.Image):
        return _converted([images], side, name)
    if isinstance(images, list | tuple):
        if not images:
            raise DataError(f"{name} is an empty list: give at least one image")
        if all(isinstance(each, str | Path) for each in images):
            return _read([Path(each) for each in images], side, name)
        if all(isinstance(each, Image.Image) for each in images):
            return _converted(images, side, name)
        if all(isinstance(each, np.ndarray | torch.Tensor) for each in images):
            several = [_array(each, side, f"{name}[{i}]") for i, each in enumerate(images)]
            return np.concatenate(several)
        kinds = sorted({type(each).__name__ for each in images})
        raise DataError(
            f"{name} is a list of {' and '.join(kinds)}: expected a list of image files, of Pillow images or of uint8 "
            "arrays"
        )
    return _array(images, side, name)


def split_in_memory(given: tuple[object, ...]) -> ImageSplit:
    """The images and labels that a user holds in memory.

    Args:
        given: images uint8 n×h×w×3, an array or tensor, and their n labels, whole numbers or text.

    Returns:
        The images by class; classes have the names of their labels, in ascending order.

    Raises:
        DataError: other arrays, or labels that do not fit them.
    """
    if len(given) != 2:
        raise DataError(f"the data are a tuple of {len(given)}: expected a pair of images and labels")
    images, labels = given
    pixels = _numpy(images)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise DataError(
            f"the images are {_what(images)}: expected uint8 with the shape n × height × width × 3; {SCALED}"
        )
    names, numbers = np.unique(given_labels(labels, len(pixels)), return_inverse=True)
    return ImageSplit(pixels, numbers.astype(np.int64), tuple(map(str, names)))


def given_labels(labels: object, count: int) -> np.ndarray:
    """Labels of ``count`` images as an array of whole numbers or of text; DataError is raised for anything else."""
    try:
        found = np.asarray(_numpy(labels))
    except (TypeError, ValueError, RuntimeError):
        found = np.empty(0, object)
    mixed = isinstance(labels, list | tuple) and found.dtype.kind == "U" and not _all_text(labels)
    if found.shape != (count,) or found.dtype.kind not in "iuU" or mixed:
        listed = isinstance(labels, list | tuple)
        what = "text and other values" if mixed else shown(labels) if listed else _what(labels)
        raise DataError(
            f"labels is {what} for {count} labelled images: give a whole number for each, or a name for each"
        )
    return found


def _numpy(value: object) -> object:
    """A dense tensor as an array; anything else as it is."""
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return value.detach().cpu().numpy() if dense else value  # type: ignore[attr-defined]


def _all_text(labels: Sequence[object]) -> bool:
    return all(isinstance(each, str) for each in labels)


def _what(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, np.ndarray | torch.Tensor):
        shape = " × ".join(map(str, value.shape)) or "()"
        return f"{'an array' if isinstance(value, np.ndarray) else 'a tensor'} of {value.dtype} with the shape {shape}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"{shown(value)}"


def _array(images: object, side: int, name: str) -> np.ndarray:
    pixels = _numpy(images)
    wanted = f"uint8 with the shape n × {side} × {side} × 3"
    if not isinstance(pixels, np.ndarray):
        raise DataError(
            f"{name} is {_what(images)}: expected a list of image files, a folder, Pillow images, or an array of "
            f"{wanted}"
        )
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3) or not len(pixels):
        hint = f"; {SCALED}" if pixels.dtype.kind == "f" else ""
        if pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1] == 3 != pixels.shape[3]:
            hint = "; put the channels last"
        raise DataError(f"{name} is {_what(images)}: expected {wanted}{hint}")
    return pixels


def _files(path: Path, name: str) -> list[Path]:
    if not path.is_dir():
        if path.is_file():
            return [path]
        raise DataError(
            f"{name} is {str(path)[:200]!r}, and there is no such file or folder: expected a list of image files, one "
            "file, or a folder of them"
        )
    files = list(image_files(path, path).files)
    if not files:
        raise DataError(f"{name} is the folder {path}, which holds no images: give another")
    return files


def _read(files: Sequence[Path], side: int, name: str) -> np.ndarray:
    return decoded(
        [(str(file), file) for file in files], len(files), name, Options(side, advance=no_progress)
    )


def _converted(images: Sequence[Image.Image], side: int, name: str) -> np.ndarray:
    return np.stack([fit_image(upright_rgb(f"{name}[{i}]", image), side) for i, image in enumerate(images)])
