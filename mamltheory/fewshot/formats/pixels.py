"""Images decoded and resized straight into their place: no second copy of a data set is ever made."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from os import cpu_count

import numpy as np
from PIL import Image, ImageOps

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import Options
from mamltheory.fewshot.formats.decoding import Source, rgb_image

CHUNK = 512  # images between two calls of `advance`
Named = tuple[str, Source]


def fitted(images: np.ndarray, split: str, options: Options) -> np.ndarray:
    """The images at the side that the options ask for (antialiased bilinear, centre-cropped to a square).

    As they are, be it a memory map, when they have it already; else in the room that the options give.
    """
    size = options.image_size
    if size is None or images.shape[1:3] == (size, size):
        return images
    target = options.allocate(split, (len(images), size, size, 3))
    for rows in _chunks(len(images)):
        _in_threads(partial(_resize_into, images, target, size), rows)
        options.advance(len(rows))
    return target


def _resize_into(images: np.ndarray, target: np.ndarray, size: int, row: int) -> None:
    target[row] = _fit(Image.fromarray(np.ascontiguousarray(images[row])), size)


def decoded(images: Iterable[Named], count: int, split: str, options: Options) -> np.ndarray:
    """Encoded images, each a name for messages and a file or its bytes, as one uint8 array N×H×W×3.

    They are asked for 512 at a time and decoded by :func:`~mamltheory.fewshot.formats.decoding.rgb_image`. All
    must have one size unless the options name one. Raises DataError for an image that cannot be read, is of
    another size or beyond the bounds on one image, and when there are not `count` of them.
    """
    done, target, images, several = 0, None, iter(images), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Whatever else Pillow finds odd about a picture (such as its palette) does not keep it from being one.
        warnings.filterwarnings("ignore", category=UserWarning)
        while chunk := list(islice(images, CHUNK)):
            if target is None:
                first, _ = _decode(*chunk[0], options.image_size)
                target = options.allocate(split, (count, *first.shape))
            if done + len(chunk) > count:
                break
            work = partial(_decode_into, target, chunk, done, options.image_size)
            several += sum(_in_threads(work, range(len(chunk))))
            done += len(chunk)
            options.advance(len(chunk))
    if target is None or done != count or next(images, None) is not None:
        raise DataError(f"{split}: {count} images are announced, and there are not so many")
    if several:
        options.notice(f"{split}: of {several} animated images or images of several pages the first is read")
    return target


def _decode_into(
    target: np.ndarray, chunk: Sequence[Named], start: int, size: int | None, index: int
) -> bool:
    name, source = chunk[index]
    image, several = _decode(name, source, size)
    if image.shape != target.shape[1:]:
        raise DataError(
            f"{name} has {image.shape[1]}×{image.shape[0]} pixels and the first image has "
            f"{target.shape[2]}×{target.shape[1]}: images of different sizes; give image_size to bring them "
            "to one"
        )
    target[start + index] = image
    return several


def _decode(name: str, source: Source, size: int | None) -> tuple[np.ndarray, bool]:
    image, several = rgb_image(name, source, size)
    return _fit(image, size), several


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, CHUNK):
        yield range(start, min(start + CHUNK, count))


def _in_threads(work: partial, rows: range) -> list:
    # Pillow decodes outside the interpreter's lock; every row has its own place, so order means nothing.
    if len(rows) < 64:
        return [work(row) for row in rows]
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        return list(pool.map(work, rows))
