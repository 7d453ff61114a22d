"""Decode an image file to RGB with 8 bits a channel: upright, opaque, and within bounds on time and memory.

Every reader of encoded images uses this module. EXIF orientation is applied. Deeper images are scaled, not clipped.
Transparent pixels show a white background. Of an animation or of several pages the first image is read. Embedded
colour profiles are not applied (only LAB is known without a profile).
"""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from mamltheory.errors import DataError
from mamltheory.fewshot.safe_pickle import refuse_other_files

Source = Path | bytes
KINDS = (
    *("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "SGI"),
    *("QOI", "DDS", "MSP", "XBM", "XPM", "SUN", "PSD"),
)
"""Formats that are read: pictures that Pillow decodes without other programs, at the size that they declare.

Not read are EPS (a program), icons (several pictures), scientific containers and films."""
Image.init()
READ = tuple(kind for kind in KINDS if kind in Image.OPEN)  # AVIF needs a library
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in READ))
BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white."""
MOST_PIXELS = 2**25  # of a decoded image: 4 bytes a pixel and a few copies make half a gigabyte
MOST_BYTES = 2**27  # of a file
MOST_PARTS = 2**16  # strips or tiles
MOST_SCANS = 24  # passes of a progressive JPEG over an image of MOST_PIXELS; encoders make about ten
DRAFT_PIXELS = 2**24
"""Larger JPEG images are decoded at a half, quarter or eighth of their size if that is enough."""
SLOW: dict[str | None, int] = {"JPEG2000": 4}  # weight of a pixel in formats that decode slowly
PYTHON_WEIGHT = 64  # the same for decoders that Pillow has in Python
MOST_PIXELS_IN_THREADS = 2**25 + 2**22
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of this EXIF orientation upright."""


def rgb_image(name: str, source: Source, size: int | None = None) -> tuple[Image.Image, bool]:
    """Decode an image.

    Args:
        name: its name, for messages.
        source: a file or its bytes.
        size: the side to which it will be resized; very large JPEG images are then decoded at a part of their size.

    Returns:
        The image in RGB, and whether it is the first of several frames or pages.

    Raises:
        DataError: it is no image, no regular file, or larger than the bounds above.
    """
    raw = source if isinstance(source, bytes) else read_image_file(source, MOST_BYTES)
    try:
        with _opened(raw) as image, _room(_checked_cost(image, raw, size)):
            several = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            return _converted(image), several
    except (_TooLarge, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is refused: {error}; make it smaller") from None
    except _Unclear as error:
        raise DataError(f"{name} {error}: save it with 8 or 16 bits a channel") from None
    except Exception as error:  # the decoders fail in many ways on broken files
        refuse_other_files(Path(name), raw[:64])
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} cannot be read as an image ({reason}): remove it or fetch it again"
        ) from None


def upright_rgb(name: str, image: Image.Image) -> Image.Image:
    """A Pillow image in RGB as :func:`rgb_image` decodes its file; raises DataError if it cannot be converted."""
    try:
        return _converted(image)
    except _Unclear as error:
        raise DataError(f"{name} {error}: convert it to RGB") from None
    except Exception as error:  # a file that is closed or broken is decoded only here
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} cannot be converted to RGB ({reason}): load it again") from None


def _opened(raw: bytes) -> Image.Image:
    if len(raw) > MOST_BYTES:
        raise _TooLarge(f"it has {len(raw)} bytes, and {MOST_BYTES} are read")
    return Image.open(BytesIO(raw), formats=READ)


def read_image_file(file: Path, most: int) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes; DataError for others, without a wait for a pipe."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{file} cannot be read: it is no regular file; remove it")
            if status.st_size > most:
                raise DataError(f"{file} is refused: it has {status.st_size} bytes, and {most} are read")
            return opened.read()
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _TooLarge(Exception):
    """The image would take more time or memory than one image may."""


class _Unclear(Exception):
    """The image holds numbers whose white level is not defined."""


def _checked_cost(image: Image.Image, raw: bytes, size: int | None) -> int:
    """The number of pixels that decoding needs, from the header of the file; _TooLarge beyond the bounds."""
    width, height = image.size
    scans = raw.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if size is not None and width * height > DRAFT_PIXELS and scans == 1:
        image.draft(None, (4 * size, 4 * size))  # does nothing for other formats
    pixels, parts = image.size[0] * image.size[1], getattr(image, "tile", [])
    weight = SLOW.get(image.format, 1)
    if any(part[0] in Image.DECODERS for part in parts):
        weight = PYTHON_WEIGHT
    if pixels * weight > MOST_PIXELS:
        raise _TooLarge(
            f"it has {width}×{height} pixels, and {MOST_PIXELS // weight} pixels are decoded of its kind"
        )
    if pixels * scans > MOST_PIXELS * MOST_SCANS:
        raise _TooLarge(f"it scans {width}×{height} pixels {scans} times")
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))
    if len(parts) > MOST_PARTS or tile > MOST_PIXELS:
        raise _TooLarge(f"it has {len(parts)} parts, of {tile} pixels if they are tiles")
    return pixels * weight


_free, _changed = [MOST_PIXELS_IN_THREADS], threading.Condition()


@contextmanager
def _room(cost: int) -> Iterator[None]:
    """Wait until other threads leave memory for ``cost`` pixels, which bounds the memory of all threads."""
    with _changed:
        _changed.wait_for(lambda: _free[0] >= cost)
        _free[0] -= cost
    try:
        yield
    finally:
        with _changed:
            _free[0] += cost
            _changed.notify_all()


def _converted(image: Image.Image) -> Image.Image:
    parts, tags = getattr(image, "tile", []), getattr(image, "tag_v2", {})
    rawmode = str(parts[0][3]) if parts else ""
    bits = _depth(image, rawmode, tags)
    image.load()
    turn = _orientation(image)
    key = image.info.get("transparency")
    if image.mode[0] in "IF":
        image = _scaled(image, bits, inverted=tags.get(262) == 0, key=key)
    elif image.mode in ("1", "L") and isinstance(key, int):
        image = _with_key(np.asarray(image.convert("L")), round(key * 255 / (2**bits - 1)))
    elif isinstance(key, tuple) and ";16" in rawmode:
        raise _Unclear("has a transparent colour of 16 bits a channel")
    image = _opaque(image)
    return image if turn is None else image.transpose(turn)


def _depth(image: Image.Image, rawmode: str, tags: Any) -> int:
    """Bits of a grey value as the file declares them."""
    if image.mode[0] == "I":
        return int(tags.get(258, (16,))[0]) if image.format == "TIFF" else 16
    return next(
        (bits for part, bits in ((";2", 2), (";4", 4)) if part in rawmode), 1 if image.mode == "1" else 8
    )


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata do not spoil a picture
        return None


def _scaled(image: Image.Image, bits: int, inverted: bool, key: object) -> Image.Image:
    """A grey image of more than 8 bits, or of floating-point numbers from 0 to 1, on the scale 0 to 255."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise _Unclear(f"holds floating-point numbers from {low:.4g} to {high:.4g}, and 0 to 1 are read")
        return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise _Unclear("holds signed or 32-bit whole numbers")
    white = np.uint32(2**bits - 1)
    grey = ((values.astype(np.uint32) * np.uint32(255) + white // 2) // white).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    return _with_key(grey, key, values) if isinstance(key, int) else Image.fromarray(grey)


def _with_key(grey: np.ndarray, key: int, values: np.ndarray | None = None) -> Image.Image:
    alpha = np.where((grey if values is None else values) == key, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        return Image.alpha_composite(
            Image.new("RGBA", image.size, (*BACKGROUND, 255)), image.convert("RGBA")
        ).convert("RGB")
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB")) or image
    return image.convert("RGB")
