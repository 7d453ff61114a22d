"""Where the images of a command come from: read once per process, with a warning about what was left out."""

from functools import lru_cache
from pathlib import Path

from experiments.runs import alone_or_leading, image_stage, quoted, warn
from experiments.settings import ExperimentSettings, shares_of
from experiments.training.settings import MetaTrain
from mamltheory.errors import printable
from mamltheory.fewshot.datasets import ImageData, load_data
from mamltheory.fewshot.formats.common import SPLITS
from mamltheory.fewshot.glyphs import GLYPH_SETS, glyph_count
from mamltheory.fewshot.inspection import Copies, copies, image_hashes, sampled

MOST_HASHED = 2**30
"""Bytes of a split's images that are compared whenever it is read; ``data check`` compares all."""


@lru_cache(maxsize=2)
def cached_data(source: str, image_size: int, split: str | None = None, split_seed: int = 0) -> ImageData:
    """The images, read once in every process; the embedded characters do not depend on the run's seed.

    The process that speaks to the user says what was left out, and which splits hold an image twice.
    """
    embedded = source in GLYPH_SETS
    once = f"`data {quoted(Path(source))} --image-size {image_size} --prepare READY` does this once for all"
    description = printable(f"{'draw' if embedded else 'read'} {source} ({once})")
    classes = {"split": shares_of(split), "split_seed": split_seed}
    with image_stage(description, glyph_count(source) if embedded else None) as advance:
        data = load_data(source, image_size=image_size, advance=advance, notice=warn, **classes)
    if not embedded and alone_or_leading():
        warn_of_copies(data, source)
    return data


def warn_of_copies(data: ImageData, source: str) -> None:
    """Say which splits hold identical images; of splits beyond a gigabyte, evenly spaced classes are looked at."""
    with image_stage("compare images") as advance:
        for name in SPLITS:
            split = sampled(getattr(data, name), MOST_HASHED)
            found = copies(split, image_hashes(split, advance))
            if found.worst is not None:
                warn(f"{source}: {name}: {describe_copies(found)}; `data check` compares all images")


def describe_copies(found: Copies) -> str:
    """How many images of a split are there twice, and what that does."""
    return (
        f"{found.within + found.across} of {found.images} images are copies of others ({found.within} in the same "
        f"class, {found.across} under another class; most in {found.worst!r}): a task can hold one image in "
        "support and query, and the accuracy is then not that on unseen images"
    )


def data_of(settings: ExperimentSettings) -> ImageData:
    """The images that the settings name; raises DataError when they are not there."""
    return cached_data(*source_in(settings))


def source_in(settings: ExperimentSettings | MetaTrain) -> tuple:
    """The arguments of :func:`cached_data` that the settings name."""
    split = settings.class_split if isinstance(settings, MetaTrain) else settings.split
    drawn = () if split is None else (split, settings.split_seed)
    return (source_of(settings.data), settings.image_size, *drawn)


def source_of(data: str) -> str:
    """The data set that ``--data`` names, whatever the spelling of its folder."""
    return str(Path(data))
