"""Search methods replayed on a table of cells of one size: what they gain over random cells, and what they cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mamltheory.nas.algorithms.halving import DEFAULT_RUNGS, Ranking, Rung
from mamltheory.nas.algorithms.replay import (
    Draws,
    Method,
    Replay,
    at_random,
    best_by_ranks,
    best_by_score,
    by_halving,
    replay,
    warm_started,
)
from mamltheory.nas.table import Table

from .table_findings import BOTH, SHOTS, SUMS, Cells, epochs_of_table

BOOTSTRAPS = 60
SHAPES = (
    ((32, 2), (8, 4), (4, 12)),
    ((64, 1), (16, 3), (4, 12)),
    ((48, 1), (12, 4), (4, 12)),
    ((24, 3), (4, 12)),
    ((16, 4), (4, 12)),
    ((16, 3), (8, 6), (4, 12)),
)
"""Candidates and epochs of the rungs that are compared; each costs eight to eleven full trainings."""


@dataclass(frozen=True)
class Tried:
    """A search method on some of the cells.

    Attributes:
        label: what it does.
        group: "training-free", "training" or "warm start".
        cells: on which it was replayed: "all", "even" or "odd".
        found: its gains; the seconds and epochs include a full training of what it chose.
        trainings: epochs in full trainings.
    """

    label: str
    group: str
    cells: str
    found: Replay
    trainings: float


@dataclass(frozen=True)
class Replays:
    """Search methods on a table.

    Attributes:
        all: on all cells.
        examined: variants of halving on the cells at even positions, without intervals.
        chosen: the label of the best of them by the mean of both gains, "" if the table is too small for any.
        confirmed: this one and the default on the cells at odd positions, also with a surrogate that was fitted on
            the even ones.
    """

    all: Sequence[Tried]
    examined: Sequence[Tried]
    chosen: str
    confirmed: Sequence[Tried]


def replays(table: Table, draws: int, seed: int) -> Replays:
    """All methods that the table suffices for.

    Args:
        table: with at least 16 cells that were trained twice.
        draws: searches per method.
        seed: of the searches.

    Returns:
        Their gains.
    """
    cells, last = table.having(BOTH), epochs_of_table(table.having(BOTH))[-1]
    parts = [[c for i, c in enumerate(table.cells) if i % 2 == k and c in cells] for k in (0, 1)]

    def tried(
        label: str, group: str, method: Method, where: Cells, name: str, interval: bool = True
    ) -> Tried:
        full = and_trained(method, last)
        found = replay(full, where, draws, seed, SHOTS, BOOTSTRAPS if interval else 0)
        return Tried(label, group, name, found, found.epochs / last)

    every = [tried(*each, cells, "all") for each in methods(cells)]
    variants = [rungs for rungs in halving_variants(cells) if fits(rungs, parts[0]) and fits(rungs, parts[1])]
    examined = [
        tried(in_words(rungs), "training", by_halving(rungs), parts[0], "even", False) for rungs in variants
    ]
    if not examined:
        return Replays(every, [], "", [])
    best = max(
        range(len(examined)), key=lambda i: examined[i].found.kept.mean + examined[i].found.retrained.mean
    )
    compared = dict.fromkeys((variants[best], *(each for each in (DEFAULT_RUNGS,) if each in variants)))
    confirmed = []
    for rungs in compared:
        confirmed += [tried(in_words(rungs), "training", by_halving(rungs), parts[1], "odd")]
        warm = warm_started(parts[0], len(parts[1]), rungs)
        confirmed += [tried(in_words(rungs), "warm start", warm, parts[1], "odd")]
    return Replays(every, examined, examined[best].label, confirmed)


def and_trained(method: Method, epochs: int) -> Method:
    """The method, and a full training of what it chose, which is paid as well."""

    def choose(draws: Draws) -> int:
        chosen = method(draws)
        draws.train(chosen, epochs)
        return chosen

    return choose


def methods(cells: Cells) -> Iterator[tuple[str, str, Method]]:
    """(label, group, method) of all that the cells suffice for."""
    yield "random cell", "training-free", at_random
    names, epochs = cells[0].scores.keys(), epochs_of_table(cells)
    for count in (8, 16):
        if "maml condition" in names:
            yield f"best of {count} by C_N", "training-free", best_by_score("maml condition", count)
    if {*SUMS["paper"]} <= names:
        yield "best of 16 by C_N + R_N", "training-free", best_by_ranks(SUMS["paper"], 16)
    for epoch in (1, 2, 4):
        rungs = (Rung(16, epoch), Rung(1, epochs[-1]))
        if fits(rungs, cells):
            label = f"best of 16 by accuracy after {epoch} epoch{'s' * (epoch > 1)}"
            yield label, "training", by_halving(rungs)
    for rungs in (with_rankings(SHAPES[4], "accuracy", "loss"), DEFAULT_RUNGS):
        if fits(rungs, cells):
            yield f"halving {in_words(rungs)}", "training", by_halving(rungs)


def halving_variants(cells: Cells) -> Iterator[tuple[Rung, ...]]:
    """All shapes, with accuracy or loss in the early rungs and in the last."""
    for shape in SHAPES:
        for early in ("accuracy", "loss"):
            for late in ("loss", "accuracy"):
                rungs = with_rankings(shape, early, late)
                if fits(rungs, cells):
                    yield rungs


def with_rankings(shape: Sequence[tuple[int, int]], early: Ranking, late: Ranking) -> tuple[Rung, ...]:
    """Rungs of this shape, ranked by one quantity but for the last."""
    *first, last = shape
    return *(Rung(*each, early) for each in first), Rung(*last, late)


def fits(rungs: Sequence[Rung], cells: Cells) -> bool:
    """Whether the cells suffice, and their epochs were recorded up to the end."""
    epochs = epochs_of_table(cells)
    return (
        rungs[0].candidates <= len(cells)
        and {rung.epochs for rung in rungs} <= {*epochs}
        and rungs[-1].epochs == epochs[-1]
    )


def in_words(rungs: Sequence[Rung]) -> str:
    """For example "32 → 8 → 4 at 2/4/12 by accuracy, last by loss"."""
    counts = " → ".join(str(rung.candidates) for rung in rungs)
    epochs = "/".join(str(rung.epochs) for rung in rungs)
    last = f", last by {rungs[-1].by}" if rungs[-1].by != rungs[0].by else ""
    return f"{counts} at {epochs} by {rungs[0].by}{last}"
