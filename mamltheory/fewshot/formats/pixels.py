"""Decode and resize images directly into their array, without a second copy of the data set."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from os import cpu_count

import numpy as np
from PIL import Image, ImageOps

from mamltheory.errors import DataError, ImageSizesError
from mamltheory.fewshot.formats.common import Options
from mamltheory.fewshot.formats.decoding import Source, rgb_image

CHUNK = 512  # images between two calls of ``advance``
MOST_NAMED = 5
"""Broken images that a message names."""
Named = tuple[str, Source]


def fitted(images: np.ndarray, split: str, options: Options) -> np.ndarray:
    """Return the images at the size of the options (antialiased bilinear, centre-cropped to a square).

    The array or memory map itself is returned if it has this size, else an array that the options allocate.
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
    target[row] = fit_image(Image.fromarray(np.ascontiguousarray(images[row])), size)


def decoded(images: Iterable[Named], count: int, split: str, options: Options) -> np.ndarray:
    """Return decoded images as one uint8 array N×H×W×3; 512 are decoded in one piece of work.

    Args:
        images: a name for messages, and a file or its bytes, for each image.
        count: number of images.
        split: the split.
        options: the size of the images, and where they are written; without a size all must have the same one.

    Raises:
        DataError: images cannot be read or are too large, all of which are counted; or there are not ``count`` of them.
        ImageSizesError: an image has another size than the first.
    """
    done, target, rest, several = 0, None, iter(images), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Other warnings of Pillow, such as those on palettes, do not matter.
        warnings.filterwarnings("ignore", category=UserWarning)
        while chunk := list(islice(rest, CHUNK)):
            if done + len(chunk) > count:
                break
            try:
                if target is None:
                    first, _ = _decode(*chunk[0], options.image_size)
                    target = options.allocate(split, (count, *first.shape))
                work = partial(_decode_into, target, chunk, done, options.image_size)
                several += sum(_in_threads(work, range(len(chunk))))
            except ImageSizesError:
                raise
            except DataError as error:
                raise DataError(_all_broken(error, chain(chunk, rest), options.image_size)) from None
            done += len(chunk)
            options.advance(len(chunk))
    if target is None or done != count or next(rest, None) is not None:
        raise DataError(f"{split}: {count} images are announced, and there are not so many")
    if several:
        options.notice(f"{split}: of {several} animated images or images of several pages the first is read")
    return target


def _all_broken(first: DataError, images: Iterable[Named], size: int | None) -> str:
    """The message on the first broken image, with the number and names of all in its chunk and later ones."""
    broken = []
    for name, source in images:
        try:
            _decode(name, source, size)
        except DataError:
            broken.append(name)
    if len(broken) < 2:
        return str(first)
    more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    return f"{first}; {len(broken)} images are broken: {', '.join(broken[:MOST_NAMED])}{more}"


def _decode_into(
    target: np.ndarray, chunk: Sequence[Named], start: int, size: int | None, index: int
) -> bool:
    name, source = chunk[index]
    image, several = _decode(name, source, size)
    if image.shape != target.shape[1:]:
        raise ImageSizesError(
            f"{name} has {image.shape[1]}×{image.shape[0]} pixels and the first image has "
            f"{target.shape[2]}×{target.shape[1]}: images of different sizes; give image_size (--image-size) to bring "
            "them to one"
        )
    target[start + index] = image
    return several


def _decode(name: str, source: Source, size: int | None) -> tuple[np.ndarray, bool]:
    image, several = rgb_image(name, source, size)
    return fit_image(image, size), several


def fit_image(image: Image.Image, size: int | None) -> np.ndarray:
    """The pixels of an RGB image as a square of this side, antialiased bilinear and centre-cropped."""
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, CHUNK):
        yield range(start, min(start + CHUNK, count))


def _in_threads(work: partial, rows: range) -> list:
    # Pillow releases the interpreter's lock; every row has its place, so the order does not matter.
    if len(rows) < 64:
        return [work(row) for row in rows]
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        return list(pool.map(work, rows))
