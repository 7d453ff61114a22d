"""Shapes of characters from the fonts that matplotlib ships: characters, their faces, and look-alikes."""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

MASK_SIZE = 48  # pixels of a square mask; the longer side of the shape fills MASK_SIZE - 8
FEWEST_FACES = 6
LOOK_ALIKE = 0.88  # two coarse, centred, size-normalised shapes with a larger cosine are one class

_UPRIGHT = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
)
_SLANTED = (
    *("DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
)
_STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
# Their tables hold other shapes outside ASCII.
_COMPUTER_MODERN = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
# Not used: LastResortHE covers every code point with a placeholder, STIXNonUni and STIXSiz use private ones.

# First and last code point of scripts and kinds of symbols. Split by script, as Omniglot is by alphabet.
SCRIPTS = {
    "train": {"Latin": (0x21, 0x2AF), "Cyrillic": (0x400, 0x4FF), "Punctuation": (0x2020, 0x205E)},
    "val": {
        "Arrows": (0x2190, 0x21FF),
        "Operators": (0x2200, 0x22FF),
        "Technical": (0x2300, 0x23FF),
        "Geometric": (0x25A0, 0x25FF),
        "Lao": (0xE80, 0xEFF),
    },
    "test": {
        "Greek": (0x370, 0x3FF),
        "Armenian": (0x530, 0x58F),
        "Georgian": (0x10A0, 0x10FF),
        "Symbols": (0x2600, 0x26FF),
        "Dingbats": (0x2700, 0x27BF),
        "Polytonic": (0x1F00, 0x1FFF),
    },
}
_KINDS = {"Lu", "Ll", "Lo", "Nd", "Po", "Ps", "Pe", "Sm", "Sc", "So"}  # no dashes, marks, modifiers, numerals


@cache
def _charmap(face: str) -> frozenset[int]:
    return frozenset(FT2Font(str(_font_file(face))).get_charmap())


def _font_file(face: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # BASIC layout: the shapes must not depend on whether libraqm is installed.
    return ImageFont.truetype(str(_font_file(face)), 64, layout_engine=ImageFont.Layout.BASIC)


def faces_of(code: int) -> tuple[str, ...]:
    """Return the faces that have the shape of a character; Cyrillic italics have other shapes (и is drawn like u)."""
    cyrillic = 0x400 <= code <= 0x4FF
    faces = _UPRIGHT + (("STIXGeneral", "STIXGeneralBol") if cyrillic else _SLANTED + _STIX)
    covered = tuple(face for face in faces if code in _charmap(face))
    return covered + (_COMPUTER_MODERN if chr(code).isascii() and chr(code).isalnum() else ())


@cache
def glyph_mask(code: int, face: str) -> np.ndarray | None:
    """The shape of a character, centred and scaled to a square mask (uint8), or None for blanks and dots."""
    font = _font(face)
    left, top, right, bottom = font.getbbox(chr(code))
    width, height = int(right - left), int(bottom - top)
    if max(width, height) < 16:
        return None
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).text((-left, -top), chr(code), fill=255, font=font)
    ink = canvas.getbbox()
    if ink is None or max(ink[2] - ink[0], ink[3] - ink[1]) < 16:
        return None
    canvas = canvas.crop(ink)
    scale = (MASK_SIZE - 8) / max(canvas.size)
    canvas = canvas.resize([max(1, round(side * scale)) for side in canvas.size], Image.Resampling.BILINEAR)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    mask.paste(canvas, ((MASK_SIZE - canvas.width) // 2, (MASK_SIZE - canvas.height) // 2))
    return np.asarray(mask)


def shapes_of(code: int) -> np.ndarray:
    """All faces of a character as masks: faces × MASK_SIZE × MASK_SIZE, uint8."""
    return np.stack(list(_masks(code)))


def _masks(code: int) -> Iterator[np.ndarray]:
    return (mask for face in faces_of(code) if (mask := glyph_mask(code, face)) is not None)


@cache
def distinct_characters(split: str) -> tuple[int, ...]:
    """Return the characters of "train", "val" or "test" without look-alikes of earlier ones, plain letters first.

    Look-alikes are searched over all three splits (Greek capitals repeat Latin ones), so that no test class is a
    training class under another name.
    """
    return _distinct_by_split()[split]


@cache
def _distinct_by_split() -> dict[str, tuple[int, ...]]:
    owners = {code: split for split in SCRIPTS for code in _candidates(split)}
    codes = sorted(owners, key=lambda code: bool(unicodedata.decomposition(chr(code))))
    kept = np.zeros(len(codes), dtype=bool)
    similar = likeness(codes) > LOOK_ALIKE
    for row in range(len(codes)):
        kept[row] = not similar[row, :row][kept[:row]].any()
    chosen = [code for code, keep in zip(codes, kept, strict=True) if keep]
    return {split: tuple(code for code in chosen if owners[code] == split) for split in SCRIPTS}


def _candidates(split: str) -> list[int]:
    blocks = [range(first, last + 1) for first, last in SCRIPTS[split].values()]
    codes = [code for block in blocks for code in block if unicodedata.category(chr(code)) in _KINDS]
    return [code for code in codes if len(faces := faces_of(code)) >= FEWEST_FACES and _drawn(code, faces)]


def _drawn(code: int, faces: Sequence[str]) -> bool:
    return glyph_mask(code, faces[0]) is not None


def likeness(codes: Sequence[int]) -> np.ndarray:
    """Cosines of the shapes of characters at 16 × 16, the larger of those in a sans and in a serif face."""
    return np.maximum(*(shapes @ shapes.T for shapes in (_coarse(codes, 0), _coarse(codes, 4))))


def _coarse(codes: Sequence[int], upright: int) -> np.ndarray:
    """Unit vectors of the shapes in one upright face, or in the first face of a character that is not in it."""
    side = MASK_SIZE // 16
    rows = []
    for code in codes:
        mask = glyph_mask(code, face) if code in _charmap(face := _UPRIGHT[upright]) else None
        mask = next(_masks(code)) if mask is None else mask
        rows.append(mask.reshape(16, side, 16, side).mean((1, 3)).ravel())
    coarse = np.stack(rows)
    return coarse / np.linalg.norm(coarse, axis=1, keepdims=True)
