"""``cell``: the published cells by name, as files that training reads."""

import difflib
import os
from pathlib import Path
from typing import Any

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.genotype import Genotype, PublishedCell, published_genotypes
from mamltheory.nas.genotype_file import GENOTYPE_FILE, genotype_path, parsed_file
from mamltheory.nas.network import NetworkSettings
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.runlog import RUN_FILE, read_run

from .named import space_of
from .program import PROGRAM
from .requirements import require
from .runs import quoted
from .settings import ExperimentSettings, PublishedCells

COLUMNS = "{:18} {:15} {:12} {:>5} {:>8} {:>12}"
SOURCE = (
    "Genotypes of the paper's Tables 1 and 2 (arXiv 2203.09137), without weights; those of MetaNAS are cells\n"
    "that it retrained. Parameters: with 48 channels. A name after the command writes the genotype."
)


def write_published_cell(settings: PublishedCells) -> int:
    """Write the named cell, or print the list of cells; returns 0."""
    if settings.name:
        cell = published_cell(settings.name)
        write_genotype(settings.out, cell.genotype)
        print(f"wrote {settings.out}: {cell.name}, {cell.parameters:,} parameters with 48 channels")
        print(f"train it: {PROGRAM} train --genotype {quoted(settings.out)} --cells {cell.cells}")
    else:
        print(cell_list())
    return 0


def published_cell(name: str) -> PublishedCell:
    """The published cell of this name; raises ConfigurationError for an unknown name."""
    cells = {cell.name: cell for cell in published_genotypes()}
    near = difflib.get_close_matches(name, cells, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(cells)}"
    require(name in cells, f"there is no published cell '{name}': {hint}")
    return cells[name]


def cell_list() -> str:
    """One line per cell: name, data, method, stacked cells, classes, parameters with 48 channels; then their source."""
    lines = [COLUMNS.format("name", "data", "found by", "cells", "classes", "parameters")]
    for cell in published_genotypes():
        data = "tieredImageNet" if "tiered" in cell.name else "miniImageNet"
        method = "MetaNAS" if cell.name.startswith("metanas") else "MetaNTK-NAS"
        lines.append(
            COLUMNS.format(cell.name, data, method, cell.cells, cell.classes, f"{cell.parameters:,}")
        )
    return "\n".join([*lines, "", SOURCE])


def network_size(settings: ExperimentSettings, classes: int) -> NetworkSettings:
    """The size of the stacked network, with BatchNorm, for a number of classes."""
    return NetworkSettings(settings.channels, settings.cells, classes, settings.stem_stride)


def read_genotype(path: Path) -> Genotype:
    """The genotype in a file or the folder of a search; raises CheckpointError if that search found another one."""
    genotype = parsed_file(path, genotype_from)
    _check_as_found(genotype_path(path), genotype)
    return genotype


def genotype_from(content: dict[str, Any]) -> Genotype:
    """The genotype in the content of a file.

    Args:
        content: The genotype, with the MODULE:NAME of its space if that is a user's.

    Returns:
        The genotype. GenotypeError is raised for other content.

    Raises:
        ConfigurationError: Its space is not to be found from here.
    """
    name = content.get("space")
    try:
        space = space_of(name if name is None or isinstance(name, str) else repr(name))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; run this command in the folder that the search ran in") from error
    return Genotype.from_json(content, space)


def _check_as_found(path: Path, genotype: Genotype) -> None:
    if path.name != GENOTYPE_FILE or not (path.parent / RUN_FILE).exists():
        return
    record: dict[str, Any] = read_run(path.parent)
    found = record.get("results", {}).get("genotype")
    if record["command"] == "search" and found is not None and found != genotype.to_json():
        raise CheckpointError(
            f"{path} is not the genotype that the search in its folder found: run `{PROGRAM} search "
            f"--config {quoted(path.parent)}` to write that again, or keep another genotype in another folder"
        )


def write_genotype(path: Path, genotype: Genotype) -> None:
    """Write the genotype as JSON; raises ConfigurationError if the file exists with other content."""
    text = to_json(genotype.to_json()).encode()
    same = path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text
    free = same or not os.path.lexists(path)
    require(free, f"{path} is there already and holds something else: remove it, or name another file")
    if not same:
        replace_file(path, text)
