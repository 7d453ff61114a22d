"""What search, training and evaluation share: data, network sizes, genotypes on disk, run folders."""

import dataclasses
import json
import os
import shlex
from functools import lru_cache
from pathlib import Path

from experiments.cells.steps import watched
from experiments.config import settings_before
from experiments.requirements import require
from experiments.settings import Network
from mamltheory.errors import GenotypeError
from mamltheory.fewshot.datasets import ImageData, load_data
from mamltheory.fewshot.glyphs import GLYPH_SETS, glyph_count
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.runtime.device import environment
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.runlog import RunLog, open_run
from mamltheory.runtime.workers import ON_ONE_THREAD

FREE = ("out", "jobs", "device", "shard")
"""Settings that do not change the numbers: a run goes on with other ones."""
SHARDS = "shards"
"""Folder of the shares of a search that are computed apart, before the search itself has a record."""


@lru_cache(maxsize=2)
def cached_data(source: str, image_size: int) -> ImageData:
    """The images, read once in every process; the embedded characters do not depend on the run's seed."""
    embedded = source in GLYPH_SETS
    once = f"`data {quoted(Path(source))} --image-size {image_size} --prepare READY` does this once for all"
    description = f"{'draw' if embedded else 'read'} {source} ({once})"
    with watched(description, glyph_count(source) if embedded else None) as advance:
        return load_data(source, image_size=image_size, advance=advance)


def data_of(settings: Network) -> ImageData:
    """The images that the settings name; raises DataError when they are not there."""
    return cached_data(source_of(settings.data), settings.image_size)


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
    return open_run(settings.out, command, settings, settings.seed, where, free, before, known=(SHARDS,))


def quoted(path: Path) -> str:
    """The path as a word of a command line."""
    return shlex.quote(str(path))


def read_genotype(path: Path) -> Genotype:
    """A genotype from its JSON file; raises GenotypeError for a missing file or anything else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GenotypeError(
            f"cannot read {path}: {error.strerror}; search first, or name another file"
        ) from None
    except ValueError as error:
        raise GenotypeError(
            f"{path} is not JSON ({error}): expected a genotype as the search writes it"
        ) from None
    if not isinstance(content, dict):
        raise GenotypeError(
            f"{path} holds no genotype: expected an object with the keys 'normal' and 'reduce'"
        )
    try:
        return Genotype.from_json(content)
    except GenotypeError as error:
        raise GenotypeError(f"{path} holds no genotype: {error}") from None


def write_genotype(path: Path, genotype: Genotype) -> None:
    """Put the genotype's JSON in place; raises ConfigurationError where something else is there already."""
    text = to_json(genotype.to_json()).encode()
    same = path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text
    free = same or not os.path.lexists(path)
    require(free, f"{path} is there already and holds something else: remove it, or name another file")
    replace_file(path, text)


def without_paths(settings: object) -> dict[str, object]:
    """The settings that decide a figure's numbers, for its JSON."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in FREE}
