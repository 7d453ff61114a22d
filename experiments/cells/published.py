"""``cell``: the published cells by name, as files that training reads."""

import difflib

from experiments.cells.common import quoted, write_genotype
from experiments.requirements import require
from experiments.settings import PublishedCells
from mamltheory.nas.genotype import PublishedCell, published_genotypes

COLUMNS = "{:18} {:>5} {:>8} {:>12}"


def run(settings: PublishedCells) -> int:
    """Write the named cell, or list all of them; returns 0."""
    if settings.name:
        cell = named(settings.name)
        write_genotype(settings.out, cell.genotype)
        print(f"wrote {settings.out}: {cell.name}, {cell.parameters} parameters with 48 channels")
        print(f"train it: python -m experiments train --genotype {quoted(settings.out)} --cells {cell.cells}")
    else:
        print(listing())
    return 0


def named(name: str) -> PublishedCell:
    """The cell of this name; raises ConfigurationError with the names that there are."""
    cells = {cell.name: cell for cell in published_genotypes()}
    near = difflib.get_close_matches(name, cells, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(cells)}"
    require(name in cells, f"there is no published cell '{name}': {hint}")
    return cells[name]


def listing() -> str:
    """A line for every cell: name, stacked cells, classes and parameters of its network with 48 channels."""
    lines = [COLUMNS.format("name", "cells", "classes", "parameters")]
    lines += [
        COLUMNS.format(cell.name, cell.cells, cell.classes, cell.parameters) for cell in published_genotypes()
    ]
    return "\n".join(lines)
