"""``search --method halving``: random cells of one size, trained a little; the best are trained further.

Every candidate is an ordinary training in ``candidates/NUMBER`` of the run folder, so that it continues bit for bit,
and the one that was found is read by ``evaluate`` and ``predict``. A rung is ranked when all its candidates are there:
the result does not depend on the number of processes.
"""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch

from mamltheory.errors import ValueRangeError
from mamltheory.fewshot.episodes import Episode
from mamltheory.fewshot.statistics import unit_accuracies
from mamltheory.nas.algorithms.halving import (
    Headroom,
    Measured,
    Rung,
    check_trained,
    headroom,
    ranked,
    successive_halving,
)
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.short_trainings import accuracies_of, ranking_hits, ranking_tasks, units_of
from mamltheory.rng import derived_seed
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import read_record, replace_file, to_json
from mamltheory.runtime.runlog import RUN_FILE, read_run
from mamltheory.runtime.temporary import FOLDER, owner
from mamltheory.runtime.workers import Mapper
from mamltheory.strict_json import sealed

from ..data.counts import refuse_shortage, search_shortage
from ..data.loading import data_of
from ..genotypes import write_genotype
from ..requirements import require
from ..training.settings import TRAIN, Train
from ..training.train import epoch_lines, train_network
from .one_size import at_scale, candidates_of, controls_of
from .settings import Search
from .words import p_in_words, rung_words

CANDIDATES, MEASUREMENTS, GENOTYPES, TRAINED = "candidates", "measurements", "genotypes", "train"


class Item(NamedTuple):
    """A candidate that trains up to an epoch; training 1 is the second one, for ``--confirm``."""

    candidate: int
    epochs: int
    training: int = 0

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.candidate:03d}" + "-again" * self.training


class Measurement(TypedDict):
    """What a candidate gave; a training that diverged has no numbers but its CPU seconds.

    ``units`` are the contributions of validation classes or images to the accuracy, which records of earlier versions
    lack, and ``correct`` the right answers in each task.
    CPU seconds are those of the process that finished the measurement: after a kill, the epochs that it found saved are
    not counted.
    """

    diverged: bool
    loss: float | None
    accuracy: float | None
    test_accuracy: float | None
    correct: list[int]
    units: NotRequired[list[float]]
    cpu_seconds: Annotated[float, 0]


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        genotypes: of all candidates.
        standings: every rung with its candidates, the best first.
        finalists: the candidates that were trained again for ``--confirm``.
        records: all measurements.
    """

    genotypes: tuple[Genotype, ...]
    standings: list[tuple[Rung, list[int]]]
    finalists: tuple[int, ...]
    records: dict[Item, Measurement]

    @property
    def candidate(self) -> int:
        """Number of the cell that was found."""
        return self.standings[-1][1][0]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the rungs; what confirms them is not part of the search."""
        items = [Item(i, rung.epochs) for rung, alive in self.standings for i in alive]
        return sum(self.records[item]["cpu_seconds"] for item in items)


def rungs_of(settings: Search) -> tuple[Rung, ...]:
    """The rungs of the settings."""
    return tuple(map(Rung, settings.rungs, settings.rung_epochs, settings.rank_by))


def checked_candidates(settings: Search) -> tuple[Genotype, ...]:
    """The candidates; a mistake in counts, band or table is found here, before the run folder is opened."""
    data = data_of(at_scale(settings))
    refuse_shortage(search_shortage(settings, data))
    return candidates_of(settings)


def halve(settings: Search, genotypes: tuple[Genotype, ...], device: str) -> Found:
    """Run or continue the rungs in the run folder of a search.

    Args:
        settings: Settings of the search, whose record is open.
        genotypes: All candidates.
        device: Where to compute.

    Returns:
        What was found. ConfigurationError is raised if all trainings diverge, or the networks of the first rung hardly
        differ.
    """
    for index, genotype in enumerate(genotypes):
        write_genotype(genotype_file(settings, index), genotype)
    records: dict[Item, Measurement] = {}
    with spread_over(settings.jobs) as spread:
        measure = partial(_measured, settings, genotypes, device, spread)

        def measure_rung(alive: Sequence[int], rung: Rung) -> list[Measured]:
            items, begun = [Item(i, rung.epochs) for i in alive], time.monotonic()
            records.update(measure(items, f"{len(alive)} cells to epoch {rung.epochs}"))
            found = [value_of(records[item]) for item in items]
            standing = _standing(alive, found, rung, settings)
            print(rung_words(rungs_of(settings), rung, found, time.monotonic() - begun), flush=True)
            if settings.verbose:
                print(standing, flush=True)
            if rung.epochs == settings.rung_epochs[0]:
                check_headroom(headroom_of([records[item] for item in items]), settings)
            return found

        standings = successive_halving(settings.rungs[0], rungs_of(settings), measure_rung)
        last = settings.rung_epochs[-1]
        good = [i for i in standings[-1][1] if not records[Item(i, last)]["diverged"]]
        finalists = tuple(good[: settings.confirm])
        if finalists:
            again = [Item(i, last, 1) for i in finalists] + [Item(i, last) for i in controls_of(settings)]
            records.update(measure(again, "second trainings and random cells"))
    found = Found(genotypes, standings, finalists, records)
    keep_trained(settings, found.candidate)
    return found


def _measured(
    settings: Search,
    genotypes: tuple[Genotype, ...],
    device: str,
    spread: Mapper,
    items: Sequence[Item],
    title: str,
) -> dict[Item, Measurement]:
    """The measurements of all items; only those that the run folder lacks are computed."""
    files = {item: settings.out / MEASUREMENTS / f"{item.folder}-epoch-{item.epochs}.json" for item in items}
    found = {item: _read(path, settings) for item, path in files.items() if path.exists()}
    missing = [item for item in items if item not in found]
    with stage(f"halving: {title}", len(items), brief=True) as advance:
        advance(len(found), _best_of(found))
        for item, record in spread(partial(measure_candidate, settings, genotypes, device), missing):
            replace_file(files[item], sealed(to_json(record)))
            found[item] = record
            advance(note=_best_of(found))
    return found


def _best_of(found: dict[Item, Measurement]) -> str:
    good = {item: each["accuracy"] for item, each in found.items() if each["accuracy"] is not None}
    best = max(good, key=lambda item: (good[item], -item.candidate), default=None)
    return "" if best is None else f"best so far: cell {best.candidate}, {100 * good[best]:.1f} %"


def measure_candidate(
    settings: Search, genotypes: tuple[Genotype, ...], device: str, item: Item
) -> Measurement:
    """Train a candidate to an epoch in its run folder, and measure it; it runs in any process.

    Args:
        settings: Settings of the search.
        genotypes: All candidates.
        device: Where to compute.
        item: The candidate and the epoch.

    Returns:
        Its measurement. A training whose loss is not finite is marked as diverged.
    """
    data = data_of(at_scale(settings))  # images are read once, and are no cost of a candidate
    begun = time.process_time()
    train = dataclasses.replace(candidate_training(settings, item), device=device)
    try:
        network = train_network(
            train, genotypes[item.candidate], until=item.epochs, shown=False, free=("genotype",)
        )
        hits = _hits(settings, network, "val", device)
        ends = item.epochs == settings.rung_epochs[-1]
        test = float(accuracies_of(_hits(settings, network, "test", device)).mean()) if ends else None
    except ValueRangeError:
        seconds = time.process_time() - begun
        return Measurement(
            diverged=True, loss=None, accuracy=None, test_accuracy=None, correct=[], cpu_seconds=seconds
        )
    check_interrupted()
    return Measurement(
        diverged=False,
        loss=float(epoch_lines(train, item.epochs)[item.epochs]["loss"]),
        accuracy=float(accuracies_of(hits).mean()),
        test_accuracy=test,
        correct=hits.sum((1, 2)).tolist(),
        units=unit_accuracies(hits, _tasks(settings, "val"), data.val.members).tolist(),
        cpu_seconds=time.process_time() - begun,
    )


def _hits(settings: Search, network: torch.nn.Module, name: str, device: str) -> np.ndarray:
    """Whether a network classifies every query of every task of the validation or test classes correctly."""
    return ranking_hits(network, data_of(at_scale(settings)), name, _tasks(settings, name), device)


@lru_cache(maxsize=2)
def _tasks(settings: Search, name: str) -> tuple[Episode, ...]:
    return ranking_tasks(data_of(at_scale(settings)), name, settings.seed, settings.validation_tasks)


def candidate_training(settings: Search, item: Item) -> Train:
    """The training of a candidate: all share the initial weights of equal layers, the order and the augmentation."""
    scale = at_scale(settings)
    shared = ("data", "split", "split_seed", "mirrors", "image_size", "channels", "cells", "stem_stride")
    return Train(
        **{name: getattr(scale, name) for name in shared},
        seed=settings.seed if item.training == 0 else derived_seed(settings.seed, "halving again") % 2**31,
        genotype=genotype_file(settings, item.candidate),
        epochs=settings.rung_epochs[-1],
        batch_size=settings.search_batch_size,
        learning_rate=settings.search_learning_rate,
        milestones=settings.search_milestones,
        drop_path=0.0,
        out=settings.out / CANDIDATES / item.folder,
    )


def genotype_file(settings: Search, candidate: int) -> Path:
    """The file of a candidate's cells."""
    return settings.out / GENOTYPES / f"{candidate:03d}.json"


def keep_trained(settings: Search, candidate: int) -> None:
    """Copy the training of the found cell to ``train`` in the run folder, whole or not at all."""
    place = settings.out / TRAINED
    if place.exists() or settings.then_train is not None:
        return
    temporary = settings.out / f"{FOLDER}{owner(os.getpid())}"
    shutil.copytree(settings.out / CANDIDATES / Item(candidate, 0).folder, temporary)
    record = read_run(temporary)
    record["config"]["out"] = place
    replace_file(temporary / RUN_FILE, sealed(to_json(record)))
    temporary.rename(place)


def full_training(settings: Search) -> Train:
    """The training of the found cell at full scale, by the recipe ``then_train``, on the data of the search."""
    assert settings.then_train is not None, "the caller trains only where a recipe is named"
    shared = (
        "data",
        "split",
        "split_seed",
        "mirrors",
        "image_size",
        "channels",
        "cells",
        "stem_stride",
        "seed",
        "device",
    )
    return dataclasses.replace(
        TRAIN[settings.then_train],
        **{name: getattr(settings, name) for name in shared},
        genotype=settings.out / "genotype.json",
        out=settings.out / TRAINED,
    )


def _read(path: Path, settings: Search) -> Measurement:
    again = "remove it, and it is measured again"
    record: Any = read_record(path, Measurement, again)
    whole = all(record[name] is not None for name in ("loss", "accuracy"))
    fits = whole and len(record["correct"]) == settings.validation_tasks
    require(
        record["diverged"] or fits,
        f"{path} lacks the accuracies of {settings.validation_tasks} tasks: {again}",
    )
    return record


def value_of(record: Measurement) -> Measured:
    """What ranks a candidate."""
    loss, accuracy = (math.nan if each is None else each for each in (record["loss"], record["accuracy"]))
    return Measured(loss, accuracy, record["diverged"])


def headroom_of(records: Sequence[Measurement]) -> Headroom | None:
    """What choosing among the candidates of a rung can gain.

    The p-value is that of the hypothesis that they are equally accurate on other validation classes, or on other images
    of these classes where one task has all of them.

    Args:
        records: The measurements of the rung.

    Returns:
        The estimate; None for fewer than three trainings that went well, or if a record of an earlier version has no
        units.
    """
    rows = [record.get("units") for record in records if not record["diverged"]]
    return headroom(np.array(rows)) if len(rows) >= 3 and None not in rows else None


def units_words(settings: Search) -> str:
    """How many classes or images the statements about a search are drawn from."""
    data = data_of(at_scale(settings))
    count, unit = units_of(data, "val")
    if unit == "class":
        return f"{count} validation classes"
    return f"{count} images of {len(data.val.class_names)} validation classes"


def check_headroom(room: Headroom | None, settings: Search) -> None:
    """Say what a search can gain; raises ConfigurationError if it is nothing and more rungs are to come.

    Where too few classes or images let equal networks differ by more than ``least_gain``, they cannot tell, and the
    search continues.
    """
    if room is None:
        return
    units, epoch = units_words(settings), f"at epoch {settings.rung_epochs[0]}"
    if not room.differ and 100 * room.luck >= settings.least_gain:
        print(
            f"{units} cannot tell whether networks of this size differ {epoch} ({p_in_words(room.p_value)}): the best "
            f"of {settings.rungs[0]} would seem {100 * room.luck:.1f} points ahead of their mean by chance"
        )
        return
    nothing = not room.differ or 100 * room.most < settings.least_gain
    found = (
        f"{epoch} networks of this size differ by {100 * room.deviation:.1f} points beyond the noise of "
        f"{units} ({p_in_words(room.p_value)}); the best of {settings.rungs[0]} can be "
        f"{100 * room.most:.1f} points ahead of their mean, luck of the training included"
    )
    require(
        settings.anyway or not nothing or len(settings.rungs) == 1,
        f"{found}: a search can gain next to nothing here; take any cell of this size, or give --anyway",
    )
    print(found)


def _standing(alive: Sequence[int], measured: Sequence[Measured], rung: Rung, settings: Search) -> str:
    """The rung in a line; raises ConfigurationError if all its trainings diverged."""
    rate = settings.search_learning_rate
    check_trained(measured, rung, f"lower --search-learning-rate, which is {rate:g}")
    good = [i for i in ranked(measured, rung.by) if not measured[i].diverged]
    shown = [
        f"{alive[i]} ({100 * measured[i].accuracy:.1f} %, loss {measured[i].loss:.2f})" for i in good[:4]
    ]
    later = [
        count
        for count, epochs in zip(settings.rungs, settings.rung_epochs, strict=True)
        if epochs > rung.epochs
    ]
    lost = len(alive) - len(good)
    return (
        f"epoch {rung.epochs}: {len(alive)} cells ranked by {rung.by}: {', '.join([*shown, *['…'] * (len(good) > 4)])}"
        + f"; {lost} diverged and {'is' if lost == 1 else 'are'} last" * bool(lost)
        + (f"; the best {later[0]} are trained further" if later else "")
    )
