"""Images decoded and resized straight into their place: no second copy of a data set is ever made."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from os import cpu_count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import Options
from mamltheory.fewshot.safe_pickle import refuse_other_files

SUFFIXES = (".png", ".jpg", ".jpeg")
KINDS = ("PNG", "JPEG")
CHUNK = 512  # images between two calls of `advance`
Source = Path | bytes
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
    """PNG and JPEG images, each a name for messages and a file or its bytes, as one uint8 array N×H×W×3.

    They are asked for 512 at a time. All must have one size unless the options name one. Raises DataError
    for an image that cannot be read, is of another size, or has more pixels than Pillow's limit against
    images that unpack to gigabytes, and when there are not `count` of them.
    """
    done, target, images = 0, None, iter(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Whatever else Pillow finds odd about a picture (such as its palette) does not keep it from being one.
        warnings.filterwarnings("ignore", category=UserWarning)
        while chunk := list(islice(images, CHUNK)):
            if target is None:
                first = _decode(*chunk[0], options.image_size)
                target = options.allocate(split, (count, *first.shape))
            if done + len(chunk) > count:
                break
            _in_threads(partial(_decode_into, target, chunk, done, options.image_size), range(len(chunk)))
            done += len(chunk)
            options.advance(len(chunk))
    if target is None or done != count or next(images, None) is not None:
        raise DataError(f"{split}: {count} images are announced, and there are not so many")
    return target


def _decode_into(
    target: np.ndarray, chunk: Sequence[Named], start: int, size: int | None, index: int
) -> None:
    name, source = chunk[index]
    image = _decode(name, source, size)
    if image.shape != target.shape[1:]:
        raise DataError(
            f"{name} has {image.shape[1]}×{image.shape[0]} pixels and the first image has "
            f"{target.shape[2]}×{target.shape[1]}: images of different sizes; give image_size to bring them "
            "to one"
        )
    target[start + index] = image


def _decode(name: str, source: Source, size: int | None) -> np.ndarray:
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=KINDS) as image:
            return _fit(image.convert("RGB"), size)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is refused: {error}; make it smaller") from None
    except Exception as error:  # the decoders fail in many ways on broken files
        head = source[:64] if isinstance(source, bytes) else _head(source)
        refuse_other_files(Path(name), head)
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} cannot be read as an image ({reason}): remove it or fetch it again"
        ) from None


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(64)
    except OSError:
        return b""


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, CHUNK):
        yield range(start, min(start + CHUNK, count))


def _in_threads(work: partial, rows: range) -> None:
    # Pillow decodes outside the interpreter's lock; every row has its own place, so order means nothing.
    if len(rows) < 64:
        for row in rows:
            work(row)
        return
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        list(pool.map(work, rows))
