"""The embedded few-shot data: characters in random faces, positions, colours and textures, without a download.

A class is a Unicode character. A sample is one of its faces under a random affine map, in a random colour on a random
background. Training, validation and test classes come from different scripts.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.formats.common import no_progress
from mamltheory.fewshot.glyph_shapes import SCRIPTS, distinct_characters, shapes_of
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics
from mamltheory.rng import generator, numpy_generator

ROTATION = 0.26  # radians: at most 15 degrees either way, so that no character turns into another
SHEAR = 0.2
STRETCH = 0.15
SCALE = (0.62, 1.0)  # part of the image side that the mask fills
SHIFT = 0.12
CONTRAST = 0.35  # least difference of brightness between ink and background, before noise
NOISE = 0.06
AT_ONCE = 32  # images in one piece of work: to allocate memory for hundreds of them costs as much as drawing

GLYPH_SETS: dict[str, dict[str, int]] = {
    "glyphs": {
        "image_size": 32,
        "train_classes": 96,
        "val_classes": 32,
        "test_classes": 32,
        "samples_per_class": 30,
    },
    "glyphs-mini": {
        "image_size": 84,
        "train_classes": 64,
        "val_classes": 16,
        "test_classes": 20,
        "samples_per_class": 600,
    },
}
"""The embedded data sets by name: a small one, and a stand-in for miniImageNet of its size (1.3 GB of memory,
two minutes to draw)."""


def named_glyphs(
    name: str, image_size: int | None = None, seed: int = 0, advance: Callable[[int], None] = no_progress
) -> ImageData:
    """Return a data set of :data:`GLYPH_SETS`.

    Args:
        name: its name.
        image_size: side of the images in pixels; None for the size of the set.
        seed: seed of the classes and images.
        advance: is called with n when n more images are drawn.

    Raises:
        ConfigurationError: another name.
    """
    if name not in GLYPH_SETS:
        raise ConfigurationError(
            f"no embedded data are called {name!r}: expected one of {', '.join(GLYPH_SETS)}"
        )
    size = {} if image_size is None else {"image_size": image_size}
    data = glyph_data(**GLYPH_SETS[name] | size, seed=seed, advance=advance)
    return replace(data, name=name)


def glyph_data(
    image_size: int = 32,
    train_classes: int = 96,
    val_classes: int = 32,
    test_classes: int = 32,
    samples_per_class: int = 30,
    seed: int = 0,
    advance: Callable[[int], None] = no_progress,
) -> ImageData:
    """Return few-shot images of characters: a deterministic function of the arguments.

    The classes are drawn among the distinct characters of each split, plain ones before letters with diacritics. The
    images of a character depend on (image_size, samples_per_class, seed), not on the other characters.

    Args:
        image_size: side of the images, at least 8 pixels.
        train_classes: number of training classes.
        val_classes: number of validation classes.
        test_classes: number of test classes.
        samples_per_class: images per class.
        seed: seed of the classes and images.
        advance: is called with n when n more images are drawn.

    Raises:
        ConfigurationError: a split has fewer characters, or a number is too small.
    """
    if image_size < 8 or samples_per_class < 1:
        raise ConfigurationError(
            f"image_size {image_size} and samples_per_class {samples_per_class}: characters need at least 8 "
            "pixels and 1 sample"
        )
    sizes = {"train": train_classes, "val": val_classes, "test": test_classes}
    chosen = {split: choose_characters(split, count, seed) for split, count in sizes.items()}
    splits = {
        split: _draw_split(codes, image_size, samples_per_class, seed, advance)
        for split, codes in chosen.items()
    }
    mean, std = channel_statistics(splits["train"])
    return ImageData("glyphs", **splits, mean=mean, std=std, mirrors=False)


def choose_characters(split: str, count: int, seed: int) -> tuple[int, ...]:
    """Return random code points of a split; letters with diacritics are used only when plain ones run out.

    Args:
        split: "train", "val" or "test".
        count: number of code points.
        seed: seed of the choice.

    Raises:
        ConfigurationError: the split has fewer characters.
    """
    available = distinct_characters(split)
    if not 1 <= count <= len(available):
        raise ConfigurationError(
            f"{count} {split} classes were asked for; the scripts {', '.join(SCRIPTS[split])} give 1 to "
            f"{len(available)} distinct characters: ask for fewer"
        )
    plain = [code for code in available if not unicodedata.decomposition(chr(code))]
    order = numpy_generator(seed, f"glyph classes {split}").permutation(len(plain))
    return tuple([plain[i] for i in order] + list(available[len(plain) :]))[:count]


def contact_sheet(split: ImageSplit, classes: int = 16, samples: int = 12, gap: int = 2) -> np.ndarray:
    """Return a picture of a split as one uint8 image.

    Args:
        split: the images.
        classes: number of rows.
        samples: number of columns.
        gap: width of the white gaps in pixels.
    """
    classes = min(classes, len(split.class_names))
    samples = min(samples, min(len(members) for members in split.members[:classes]))
    height, width = split.images.shape[1:3]
    sheet = np.full((classes * (height + gap) - gap, samples * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for row in range(classes):
        for column, image in enumerate(split.images[split.members[row][:samples]]):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = image
    return sheet


def _draw_split(
    codes: tuple[int, ...], size: int, samples: int, seed: int, advance: Callable[[int], None]
) -> ImageSplit:
    images = np.empty((len(codes) * samples, size, size, 3), dtype=np.uint8)
    for i, code in enumerate(codes):
        images[i * samples : (i + 1) * samples] = draw_character(code, size, samples, seed)
        advance(samples)
    names = tuple(f"U+{code:04X} {unicodedata.name(chr(code))}" for code in codes)
    return ImageSplit(images, np.repeat(np.arange(len(codes)), samples).astype(np.int64), names)


def draw_character(code: int, size: int, samples: int, seed: int) -> np.ndarray:
    """Return random images of one character: uint8 samples × size × size × 3.

    Args:
        code: its code point.
        size: side of the images in pixels.
        samples: number of images.
        seed: seed of the images.
    """
    random = generator(seed, "glyph images", code)
    masks = torch.from_numpy(shapes_of(code))
    # Every face is used before one is repeated, so a few samples still show all faces.
    faces = torch.randperm(len(masks), generator=random).repeat(-(-samples // len(masks)))[:samples]
    maps, colours = _affine_maps(samples, random), _colours(samples, random)
    images = np.empty((samples, size, size, 3), dtype=np.uint8)
    for start in range(0, samples, AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        ink = _place(masks[faces[rows]][:, None].float() / 255, maps[rows], size)
        picture = _paint(ink, *(each[rows] for each in colours))
        grain = NOISE * (2 * torch.rand(picture.shape, generator=random) - 1)
        picture = (picture + grain).clamp(0, 1)
        images[rows] = (picture * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return images


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random)


def _affine_maps(count: int, random: torch.Generator) -> Float[Tensor, "B 2 3"]:
    angle = _uniform(count, -ROTATION, ROTATION, random)
    shear = _uniform(count, -SHEAR, SHEAR, random)
    scale = _uniform(count, *SCALE, random)
    stretch = torch.exp(_uniform(count, -STRETCH, STRETCH, random))
    shift = torch.stack([_uniform(count, -SHIFT, SHIFT, random) for _ in range(2)], dim=1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # grid_sample maps output to input positions, hence the inverse: rotation, then shear, then 1/scale.
    linear = torch.stack([cos, sin, shear * cos - sin, shear * sin + cos], dim=1).view(count, 2, 2)
    linear = linear / torch.stack([scale * stretch, scale / stretch], dim=1)[:, :, None]
    return torch.cat([linear, shift[:, :, None]], dim=2)


def _place(
    masks: Float[Tensor, "B 1 M M"], maps: Float[Tensor, "B 2 3"], size: int
) -> Float[Tensor, "B 1 S S"]:
    """The masks under affine maps, sampled at twice the resolution and averaged against aliasing."""
    grid = F.affine_grid(maps, [len(masks), 1, 2 * size, 2 * size], align_corners=False)
    return F.avg_pool2d(F.grid_sample(masks, grid, align_corners=False), 2)


def _colours(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours of paper and ink B×3×1×1, of clearly different brightness; a texture B×3×4×4 and its strength."""
    dark = torch.rand(count, generator=random) < 0.5
    low = _uniform(count, 0.0, 0.5 - CONTRAST / 2, random)
    high = _uniform(count, 0.5 + CONTRAST / 2, 1.0, random)
    levels = [torch.where(dark, low, high), torch.where(dark, high, low)]
    tints = [0.3 * (torch.rand(count, 3, generator=random) - 0.5) for _ in levels]
    paper, ink = (
        (level[:, None] + tint)[:, :, None, None] for level, tint in zip(levels, tints, strict=True)
    )
    coarse = torch.rand(count, 3, 4, 4, generator=random) - 0.5
    return paper, ink, coarse, _uniform(count, 0.0, 0.45, random).view(-1, 1, 1, 1)


def _paint(
    shape: Float[Tensor, "B 1 S S"], paper: Tensor, ink: Tensor, coarse: Tensor, strength: Tensor
) -> Float[Tensor, "B 3 S S"]:
    """The shapes in ink on paper, whose colour varies smoothly."""
    texture = F.interpolate(coarse, shape.shape[-2:], mode="bicubic", align_corners=False)
    background = paper + strength * texture
    return background + shape * (ink - background)
