"""What search, training and evaluation share: data, network sizes, genotypes on disk, run folders."""

import dataclasses
import json
from functools import lru_cache
from pathlib import Path

from experiments.settings import EMBEDDED_DATA, Network
from mamltheory.errors import GenotypeError
from mamltheory.fewshot.datasets import ImageData, load_data
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.runtime.device import environment
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.runlog import RunLog, open_run

FREE = ("out", "jobs", "device")
"""Settings that do not change the numbers: a run goes on with other ones."""


@lru_cache(maxsize=2)
def cached_data(source: str, image_size: int) -> ImageData:
    """The images, read once in every process; the embedded characters do not depend on the run's seed."""
    return load_data(source, image_size=image_size)


def data_of(settings: Network) -> ImageData:
    """The images that the settings name; raises DataError when they are not there."""
    source = settings.data if settings.data == EMBEDDED_DATA else str(Path(settings.data))
    return cached_data(source, settings.image_size)


def network_size(settings: Network, classes: int) -> NetworkSettings:
    """The stacked network that the settings describe, with BatchNorm, for so many classes."""
    return NetworkSettings(settings.channels, settings.cells, classes, settings.stem_stride)


def begin(settings: Network, command: str, device: str) -> RunLog:
    """Open the run folder; raises ConfigurationError when it holds a run with other settings."""
    return open_run(settings.out, command, settings, settings.seed, environment(device), FREE)


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
    return Genotype.from_json(content)


def write_genotype(path: Path, genotype: Genotype) -> None:
    """Put the genotype's JSON in place."""
    replace_file(path, to_json(genotype.to_json()).encode())


def without_paths(settings: object) -> dict[str, object]:
    """The settings that decide a figure's numbers, for its JSON."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in FREE}
