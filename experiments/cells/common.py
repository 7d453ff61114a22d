"""What search, training and evaluation share: data, network sizes, genotypes on disk, run folders."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from experiments.cells.steps import alone_or_leading, watched
from experiments.config import settings_before
from experiments.requirements import require
from experiments.settings import MetaTrain, Network, shares_of
from mamltheory.errors import CheckpointError, GenotypeError, printable
from mamltheory.fewshot.datasets import ImageData, load_data
from mamltheory.fewshot.formats.common import SPLITS
from mamltheory.fewshot.glyphs import GLYPH_SETS, glyph_count
from mamltheory.fewshot.inspection import Copies, copies, image_hashes, sampled
from mamltheory.files import reason
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.runtime.device import environment
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.runlog import RUN_FILE, RunLog, open_run, read_run
from mamltheory.runtime.workers import ON_ONE_THREAD
from mamltheory.strict_json import INFINITE
from mamltheory.strict_json import read as read_json

GENOTYPE_FILE, MOST_GENOTYPE = "genotype.json", 2**20
FREE = ("out", "jobs", "device")
"""Settings that do not change the numbers: a run goes on with other ones."""
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
    with watched(description, glyph_count(source) if embedded else None) as advance:
        data = load_data(source, image_size=image_size, advance=advance, notice=warn, **classes)
    if not embedded and alone_or_leading():
        warn_of_copies(data, source)
    return data


def warn(text: str) -> None:
    """Say on standard error, in one process of a command, what a result should be read with."""
    if alone_or_leading():
        sys.stderr.write(f"warning: {printable(text)}\n")


def warn_of_copies(data: ImageData, source: str) -> None:
    """Say which splits hold identical images; of splits beyond a gigabyte, evenly spaced classes are looked at."""
    with watched("compare images") as advance:
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


def data_of(settings: Network) -> ImageData:
    """The images that the settings name; raises DataError when they are not there."""
    return cached_data(*source_in(settings))


def source_in(settings: Network | MetaTrain) -> tuple:
    """The arguments of :func:`cached_data` that the settings name."""
    split = settings.class_split if isinstance(settings, MetaTrain) else settings.split
    drawn = () if split is None else (split, settings.split_seed)
    return (source_of(settings.data), settings.image_size, *drawn)


def source_of(data: str) -> str:
    """The data set that ``--data`` names, whatever the spelling of its folder."""
    return str(Path(data))


def network_size(settings: Network, classes: int) -> NetworkSettings:
    """The stacked network that the settings describe, with BatchNorm, for so many classes."""
    return NetworkSettings(settings.channels, settings.cells, classes, settings.stem_stride)


def begin(settings: Network, command: str, device: str) -> RunLog:
    """Open the run folder of a search; raises ConfigurationError when it holds a run with other settings."""
    before, free = settings_before(settings), (*FREE, *ON_ONE_THREAD)
    where = environment(device)
    return open_run(settings.out, command, settings, settings.seed, where, free, before)


def quoted(path: Path) -> str:
    """The path as a word of a command line."""
    return shlex.quote(str(path))


def read_genotype(path: Path) -> Genotype:
    """A genotype from its JSON file; raises GenotypeError for a missing file or anything else in it.

    Raises CheckpointError where the search that has finished in the same folder recorded another one.
    """
    try:
        content = read_json(path, MOST_GENOTYPE)
    except OSError as error:
        raise GenotypeError(
            f"cannot read {path}: {reason(error)}; search first, or name another file"
        ) from None
    except ValueError as error:
        raise GenotypeError(f"{path} {error}: expected a genotype as the search writes it") from None
    if not isinstance(content, dict):
        raise GenotypeError(
            f"{path} holds no genotype: expected an object with the keys 'normal' and 'reduce'"
        )
    try:
        genotype = Genotype.from_json(content)
    except GenotypeError as error:
        raise GenotypeError(f"{path} holds no genotype: {error}") from None
    _check_as_found(path, genotype)
    return genotype


def _check_as_found(path: Path, genotype: Genotype) -> None:
    if path.name != GENOTYPE_FILE or not (path.parent / RUN_FILE).exists():
        return
    record = read_run(path.parent)
    found = record.get("results", {}).get("genotype")
    if record["command"] == "search" and found is not None and found != genotype.to_json():
        raise CheckpointError(
            f"{path} is not the genotype that the search in its folder found: run `python -m experiments search "
            f"--config {quoted(path.parent)}` to write that again, or keep another genotype in another folder"
        )


def write_genotype(path: Path, genotype: Genotype) -> None:
    """Put the genotype's JSON in place; raises ConfigurationError where something else is there already."""
    text = to_json(genotype.to_json()).encode()
    same = path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text
    free = same or not os.path.lexists(path)
    require(free, f"{path} is there already and holds something else: remove it, or name another file")
    replace_file(path, text)


def numbers_of(line: Mapping[str, object]) -> dict[str, object]:
    """The same with infinite numbers for the words that JSON has for them."""
    return {key: float(value) if value in INFINITE else value for key, value in line.items()}


def without_paths(settings: object) -> dict[str, object]:
    """The settings that decide a figure's numbers, for its JSON."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in FREE}
