"""Random cells of one size, which ``search --parameters`` draws, and those of them that a table of cells proposes."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from mamltheory.nas.algorithms.surrogate import fit_surrogate
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.short_trainings import CANDIDATES, SHOTS, different_genotypes
from mamltheory.nas.sizes import Band, usual_band
from mamltheory.nas.table import Table, load_table
from mamltheory.rng import generator
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.runlog import differences

from ..data.loading import data_of, source_of
from ..genotypes import network_size, read_genotype
from ..named import space_of
from ..requirements import require
from ..settings import limits_of
from .settings import Search


def at_scale(settings: Search) -> Search:
    """The settings with the size of networks and images while searching."""
    names = ("channels", "cells", "image_size", "stem_stride")
    own = {name: getattr(settings, f"search_{name}") for name in names}
    return dataclasses.replace(settings, **{name: value for name, value in own.items() if value is not None})


def full_size(settings: Search) -> NetworkSettings:
    """The size of the network whose parameters are counted, whatever the scale of the search."""
    return network_size(settings, len(data_of(at_scale(settings)).train.class_names))


def band_of(settings: Search) -> Band:
    """The sizes of the network that are allowed: those of ``parameters``, or about the median of random cells."""
    text = settings.parameters
    if text is None:
        return usual_band(full_size(settings), settings.seed, _form_of(settings), space_of(settings.space))
    if text.endswith(".json"):
        return Band.around(read_genotype(Path(text)), full_size(settings))
    return Band(*limits_of(text))


def with_band(settings: Search) -> Search:
    """The settings with the band that halving takes where none was given, as a run records it."""
    if settings.method != "halving" or settings.parameters is not None:
        return settings
    return dataclasses.replace(settings, parameters=str(band_of(settings)))


def random_cells(settings: Search, count: int, stream: str) -> tuple[Genotype, ...]:
    """Random cells of the band, no two alike.

    Args:
        settings: Settings of the search.
        count: Number of cells.
        stream: Name of the stream of random numbers.

    Returns:
        The cells, in the order in which they were drawn; ConfigurationError is raised if the band has too few.
    """
    random, size, space = generator(settings.seed, stream), full_size(settings), space_of(settings.space)
    form = _form_of(settings)
    return different_genotypes(band_of(settings), count, random, size, form, check_interrupted, space)


def _form_of(settings: Search) -> Literal["all", "two"]:
    """The inputs of a node: those of the genotype that names the band, else by the settings."""
    text = settings.parameters or ""
    if not text.endswith(".json"):
        return "two" if settings.value("two_inputs") else "all"
    nodes = read_genotype(Path(text)).normal.nodes
    return "two" if all(len(node) == 2 for node in nodes) else "all"


def candidates_of(settings: Search) -> tuple[Genotype, ...]:
    """The cells of the first rung, followed by those of :func:`controls_of` that are not among them."""
    if settings.warm_start is None:
        return random_cells(settings, settings.rungs[0], CANDIDATES)
    table = load_table(None if settings.warm_start == "glyphs" else Path(settings.warm_start))
    _check_table(table, settings)
    drawn = random_cells(settings, settings.proposals, CANDIDATES)
    known = [(cell.genotype, cell.trained()) for cell in table.cells]
    trained = [
        (genotype, each.accuracy[SHOTS]) for genotype, each in known if each and SHOTS in each.accuracy
    ]
    trained = [(genotype, accuracy) for genotype, accuracy in trained if np.isfinite(accuracy)]
    surrogate = fit_surrogate([genotype for genotype, _ in trained], [accuracy for _, accuracy in trained])
    best = np.argsort(-surrogate.predict(drawn), kind="stable")[: settings.rungs[0]]
    return (*(drawn[i] for i in best), *drawn[: settings.confirm])


def controls_of(settings: Search) -> range:
    """Numbers of the random cells with which ``--confirm`` compares: nothing but chance has chosen them."""
    first = 0 if settings.warm_start is None else settings.rungs[0]
    return range(first, first + settings.confirm)


def _check_table(table: Table, settings: Search) -> None:
    """Raise ConfigurationError unless a table is of such trainings as those of the search."""
    scale, there = at_scale(settings), dict(table.settings)
    names = ("split", "split_seed", "mirrors", "image_size", "channels", "cells", "stem_stride")
    ours = {name: getattr(scale, name) for name in names}
    ours |= {"data": source_of(scale.data), "inputs": _form_of(settings)}
    wrong = differences(there, ours, there.keys() - ours.keys(), {})
    band = band_of(settings)
    if not wrong and (scale.channels, scale.cells) == (settings.channels, settings.cells):
        least, most = limits_of(str(there.get("parameters")))
        wrong = (
            ""
            if least <= band.most and band.least <= most
            else f"parameters ({least}:{most} there, {band} now)"
        )
    require(
        not wrong,
        f"the table of --warm-start is of other cells than this search trains: {wrong}; give one that `tabulate` made "
        "with these settings, or leave out --warm-start",
    )
