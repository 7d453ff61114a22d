"""Encoded pictures of every kind that people have, for the tests of decoding."""

import io

import numpy as np
from PIL import Image

ROTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""EXIF orientation → how a camera held that way stores an upright picture."""


def saved(image, kind, **options) -> bytes:
    """The bytes of a Pillow image or an array in a format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def phone_photo(upright, orientation, kind="PNG") -> bytes:
    """An upright picture as a phone held otherwise stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(ROTATIONS[orientation](upright), kind, exif=exif)


def half_transparent(colour=(200, 10, 60)) -> Image.Image:
    """The colour everywhere; above it is fully transparent, below opaque."""
    image = Image.new("RGBA", (6, 8), (*colour, 0))
    image.paste((*colour, 255), (0, 4, 6, 8))
    return image


def big_endian(values) -> Image.Image:
    """A 16-bit grey image that is held, and saved as TIFF, with the high byte first."""
    return Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())
