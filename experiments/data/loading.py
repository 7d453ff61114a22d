"""The images of a command, read once per process, with warnings about files that are not read."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from mamltheory.errors import DataError, printable
from mamltheory.fewshot.datasets import ImageData, embedded_count, load_data
from mamltheory.fewshot.formats import recognise
from mamltheory.fewshot.formats.common import SPLITS
from mamltheory.fewshot.formats.folders import FLAT_FORMAT
from mamltheory.fewshot.inspection import Copies, copies, image_hashes, sampled

from ..runs import alone_or_leading, image_stage, quoted, warn
from ..settings import ExperimentSettings, shares_of
from ..training.settings import MetaTrain

MOST_HASHED = 2**30
"""Bytes of a split's images that are compared at every reading; ``data check`` compares all."""


@lru_cache(maxsize=2)
def cached_data(
    source: str,
    image_size: int,
    split: str | None = None,
    split_seed: int = 0,
    mirrors: bool | None = None,
) -> ImageData:
    """The images, read once per process, with warnings about files that are not read and copies of images.

    Args:
        source: "glyphs", "glyphs-mini", "pictures" or a folder.
        image_size: Side of the images in pixels.
        split: Shares of the classes, such as "60/20/20".
        split_seed: Seed of that split.
        mirrors: Whether a mirrored image shows the same class; None for what the data say.

    Returns:
        The images.
    """
    embedded = embedded_count(source)
    once = f"`data {quoted(Path(source))} --image-size {image_size} --prepare READY` does this once for all"
    description = printable(f"{'draw' if embedded else 'read'} {source}")
    classes: dict[str, Any] = {"split": shares_of(split), "split_seed": split_seed, "mirrors": mirrors}
    with image_stage(description, embedded, note=printable(once)) as advance:
        data = load_data(source, image_size=image_size, advance=advance, notice=warn, **classes)
    if not embedded and alone_or_leading():
        warn_of_copies(data, source)
    return data


def warn_of_copies(data: ImageData, source: str) -> None:
    """Warn of identical images in a split; beyond a gigabyte, only evenly spaced classes are compared."""
    with image_stage("compare images") as advance:
        for name in SPLITS:
            split = sampled(getattr(data, name), MOST_HASHED)
            found = copies(split, image_hashes(split, advance))
            if found.worst is not None:
                warn(f"{source}: {name}: {describe_copies(found)}; `data check` compares all images")


def describe_copies(found: Copies) -> str:
    """The number of copies in a split, and their consequence."""
    return (
        f"{found.within + found.across} of {found.images} images are copies of others ({found.within} in the same "
        f"class, {found.across} under another class; most in {found.worst!r}): a task can hold one image in "
        "support and query, and the accuracy is then not that on unseen images"
    )


def data_of(settings: ExperimentSettings) -> ImageData:
    """The images of the settings; raises DataError if they do not exist."""
    return cached_data(*source_in(settings))


def is_without_splits(data: str) -> bool:
    """Whether the data are folders of classes without splits, which a command splits; False where nothing is there."""
    try:
        return embedded_count(data) is None and recognise(Path(data))[0] is FLAT_FORMAT
    except DataError:
        return False


def source_in(settings: ExperimentSettings | MetaTrain) -> tuple:
    """The arguments of :func:`cached_data` for the settings."""
    place = (source_of(settings.data), settings.image_size)
    if isinstance(settings, MetaTrain):  # which mirrors no image
        return place if settings.class_split is None else (*place, settings.class_split, settings.split_seed)
    if settings.mirrors is not None:
        return (
            *place,
            settings.split,
            0 if settings.split is None else settings.split_seed,
            settings.mirrors,
        )
    return place if settings.split is None else (*place, settings.split, settings.split_seed)


def source_of(data: str) -> str:
    """The data set of ``--data`` in one spelling."""
    return str(Path(data))
