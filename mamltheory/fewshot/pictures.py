"""Embedded few-shot data of natural images: regions of the pictures that come with three Python packages.

A class is a square region of a picture. A sample is a crop of it under a random shift, scale, rotation, colour and
noise. Training, validation and test classes come from different pictures.

The pictures are files of scikit-learn (china, flower), matplotlib (grace_hopper) and scikit-image (all others). They
are read from the packages that the user has installed and are not part of this one; their licences stand there.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.formats.common import no_progress
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics
from mamltheory.rng import generator, numpy_generator

TILE = 64  # pixels of a picture along the side of a region
SCALE = (0.45, 0.85)  # side of a crop in sides of its region
ROTATION = 0.6  # radians: at most 34 degrees either way
BRIGHTNESS = 0.2
CONTRAST = (0.6, 1.3)
SATURATION = (0.1, 1.3)
TINT = 0.25  # the channels are multiplied by 1 - TINT to 1 + TINT
NOISE = 0.06
LEAST_DETAIL = (
    0.03  # standard deviation of the grey values of each quarter of a region: sky and shadows have less
)
LEAST_DISTANCE = 0.12  # root mean square difference of two regions at 4 × 4 pixels

PICTURES = {
    "train": ("china.jpg", "astronaut.png", "motorcycle_left.png", "ihc.png"),
    "val": ("coffee.png", "flower.jpg", "rocket.jpg"),
    "test": ("grace_hopper.jpg", "chelsea.png", "coins.png"),
}
"""The pictures of each split."""

_FOLDERS = {
    "china.jpg": ("scikit-learn", "sklearn", "datasets/images"),
    "flower.jpg": ("scikit-learn", "sklearn", "datasets/images"),
    "grace_hopper.jpg": ("matplotlib", "matplotlib", "mpl-data/sample_data"),
}
_SCIKIT_IMAGE = ("scikit-image", "skimage", "data")

PICTURE_SETS: dict[str, dict[str, int]] = {
    "pictures": {
        "image_size": 32,
        "train_classes": 100,
        "val_classes": 32,
        "test_classes": 32,
        "samples_per_class": 30,
    },
}
"""The embedded data sets by name: about a second to cut at 32 pixels."""

Region = tuple[str, int, int]
"""Picture, row and column of a region."""


def picture_data(
    image_size: int = 32,
    train_classes: int = 100,
    val_classes: int = 32,
    test_classes: int = 32,
    samples_per_class: int = 30,
    seed: int = 0,
    advance: Callable[[int], None] = no_progress,
) -> ImageData:
    """Return few-shot images of regions of pictures: a deterministic function of the arguments and the pictures.

    The images of a region depend on (image_size, samples_per_class, seed), not on the other regions.

    Args:
        image_size: side of the images, at least 8 pixels; beyond 28 the smallest crops are enlarged.
        train_classes: number of training classes.
        val_classes: number of validation classes.
        test_classes: number of test classes.
        samples_per_class: images per class.
        seed: seed of the classes and images.
        advance: is called with n when n more images are cut.

    Raises:
        ConfigurationError: a split has fewer regions, or a number is too small.
    """
    if image_size < 8 or samples_per_class < 1:
        raise ConfigurationError(
            f"image_size {image_size} and samples_per_class {samples_per_class}: crops need at least 8 pixels and "
            "1 sample"
        )
    sizes = {"train": train_classes, "val": val_classes, "test": test_classes}
    chosen = {split: choose_regions(split, count, seed) for split, count in sizes.items()}
    splits = {}
    for split, regions in chosen.items():
        images = np.empty((len(regions) * samples_per_class, image_size, image_size, 3), dtype=np.uint8)
        for place, region in zip(np.split(images, len(regions)), regions, strict=True):
            place[:] = crop_region(region, image_size, samples_per_class, seed)
            advance(samples_per_class)
        names = tuple(f"{Path(name).stem} {row},{column}" for name, row, column in regions)
        labels = np.repeat(np.arange(len(regions)), samples_per_class).astype(np.int64)
        splits[split] = ImageSplit(images, labels, names)
    mean, std = channel_statistics(splits["train"])
    return ImageData("pictures", **splits, mean=mean, std=std, mirrors=True)


def choose_regions(split: str, count: int, seed: int) -> tuple[Region, ...]:
    """Return random regions of the pictures of a split.

    Args:
        split: "train", "val" or "test".
        count: number of regions.
        seed: seed of the choice.

    Raises:
        ConfigurationError: the split has fewer regions.
    """
    available = distinct_regions(split)
    if not 1 <= count <= len(available):
        raise ConfigurationError(
            f"{count} {split} classes were asked for; the pictures {', '.join(PICTURES[split])} give 1 to "
            f"{len(available)} distinct regions: ask for fewer"
        )
    order = numpy_generator(seed, f"picture classes {split}").permutation(len(available))
    return tuple(available[i] for i in order[:count])


@cache
def distinct_regions(split: str) -> tuple[Region, ...]:
    """Return the regions of a split that show something and differ from each other, by picture, row and column."""
    regions: list[Region] = []
    coarse: list[np.ndarray] = []
    for name in PICTURES[split]:
        rows, columns = (side // TILE for side in picture(name).shape[:2])
        for region in ((name, row, column) for row in range(rows) for column in range(columns)):
            pixels = region_pixels(region) / 255
            small = pixels.reshape(4, TILE // 4, 4, TILE // 4, 3).mean((1, 3))
            distances = [np.sqrt(np.mean((small - other) ** 2)) for other in coarse]
            detail = pixels.mean(2).reshape(2, TILE // 2, 2, TILE // 2).std((1, 3)).min()
            if detail >= LEAST_DETAIL and min(distances, default=1.0) >= LEAST_DISTANCE:
                regions.append(region)
                coarse.append(small)
    return tuple(regions)


@cache
def picture(name: str) -> np.ndarray:
    """Return a picture of an installed package as uint8 H×W×3.

    Args:
        name: its file name.

    Raises:
        DataError: the package is not installed, or comes without the picture.
    """
    package, module, folder = _FOLDERS.get(name, _SCIKIT_IMAGE)
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the data set pictures needs {name} of {package}, which is not installed: "
            "pip install 'mamltheory[pictures]'"
        )
    file = Path(spec.origin).parent / folder / name
    if not file.is_file():
        raise DataError(
            f"{file} is missing: install the version of {package} in constraints.txt, which has it"
        )
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def region_pixels(region: Region) -> np.ndarray:
    """The pixels of a region: uint8 TILE × TILE × 3."""
    name, row, column = region
    return picture(name)[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]


def crop_region(region: Region, size: int, samples: int, seed: int) -> np.ndarray:
    """Return random crops of one region: uint8 samples × size × size × 3.

    Args:
        region: its picture, row and column.
        size: side of the images in pixels.
        samples: number of images.
        seed: seed of the images.
    """
    name, row, column = region
    random = generator(seed, f"picture images {name}", row, column)
    pixels = torch.tensor(region_pixels(region)).permute(2, 0, 1).expand(samples, -1, -1, -1).float() / 255
    # Sampled at twice the resolution and averaged against aliasing. What a rotated crop would take from outside
    # of the region is reflected, so that regions share no pixel.
    grid = F.affine_grid(_crop_maps(samples, random), [samples, 3, 2 * size, 2 * size], align_corners=False)
    crops = F.avg_pool2d(F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False), 2)
    crops = _recolour(crops, random)
    crops = crops + NOISE * (2 * torch.rand(crops.shape, generator=random) - 1)
    return (crops.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _crop_maps(count: int, random: torch.Generator) -> Float[Tensor, "B 2 3"]:
    """Maps from a crop to its region, both with coordinates from -1 to 1."""
    scale, angle = _uniform(count, *SCALE, random), _uniform(count, -ROTATION, ROTATION, random)
    shift = (1 - scale)[:, None] * (2 * torch.rand(count, 2, generator=random) - 1)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    return torch.cat([torch.stack([cos, -sin, sin, cos], dim=1).view(count, 2, 2), shift[:, :, None]], dim=2)


def _recolour(images: Float[Tensor, "B 3 S S"], random: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """The images with random saturation, contrast, tint and brightness."""
    count = len(images)
    saturation, contrast, brightness = (
        _uniform(count, *bounds, random).view(-1, 1, 1, 1)
        for bounds in (SATURATION, CONTRAST, (-BRIGHTNESS, BRIGHTNESS))
    )
    tint = _uniform(3 * count, 1 - TINT, 1 + TINT, random).view(count, 3, 1, 1)
    grey = images.mean(1, keepdim=True)
    images = (grey + saturation * (images - grey)) * tint
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + contrast * (images - middle) + brightness


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random)
