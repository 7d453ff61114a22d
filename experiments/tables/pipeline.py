"""The runs behind a table: their folders and settings, which are finished, and making the others.

A run is a method under a seed: a cell (searched or random), its training, and an evaluation for each number of
shots. Methods under the same seed share tasks, augmentation and the initial weights of each layer.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.counts import Shortage
from mamltheory.nas.genotype import Genotype, random_genotype
from mamltheory.nas.sizes import Band, random_genotype_like, random_genotype_within
from mamltheory.rng import derived_seed, generator
from mamltheory.runtime.checkpoint import check_state, load_state
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import RUN_FILE, differences, read_run
from mamltheory.runtime.workers import workers

from ..data.counts import evaluate_shortage, joint_shortage, search_shortage, train_shortage
from ..data.loading import data_of
from ..genotypes import network_size, published_cell, read_genotype, write_genotype
from ..requirements import require
from ..runs import FREE
from ..search import search
from ..search.settings import Search
from ..settings import limits_of
from ..training import train
from ..training.evaluate import check_results, identity, record_evaluation
from ..training.settings import Evaluate, Train
from ..training.trained import saved_genotype
from .settings import CELLS, RECIPES, SIZED, Experiment, Method, Recipe, Table

SEARCHED: tuple[Method, ...] = (
    "metantk",
    "metantk-stable",
    "te-nas",
    "regions",
    "halving",
    "halving-warm",
    "metantk-band",
)
KEPT: tuple[Method, ...] = ("halving", "halving-warm")
"""Searches whose trained network is evaluated as it is."""
PLACES = (*FREE, *Train.IGNORED, "checkpoint", "genotype")
"""Settings that change when run folders are moved, where records and cells are compared instead, or no number."""
SIZE_DRAWS, SIZE_TOLERANCE = 2000, 0.02
"""Draws in the search for a random cell of a given size, and the tolerance of the size."""
PUBLISHED = 3
"""Published cells for each data set and size of the paper; runs take them in turn."""


@dataclass(frozen=True)
class Run:
    """One independent run of a method on an experiment; ``cell`` counts where a run has several cells."""

    experiment: Experiment
    method: Method
    seed: int
    folder: Path
    cell: int = 0

    @property
    def recipe(self) -> Recipe:
        """The settings that all runs of the experiment share."""
        return RECIPES[self.experiment]

    @property
    def genotype(self) -> Path:
        """The file of the cell."""
        if self.method == "halving-retrained":
            return _beside(self, "halving").genotype
        return self.folder / ("search" if self.method in SEARCHED else "") / "genotype.json"


def runs_of(settings: Table) -> tuple[Run, ...]:
    """All runs that the table is made of."""
    found = []
    for experiment in settings.experiments:
        for method in settings.methods:
            for seed in range(settings.seed, settings.seed + settings.runs):
                folder = settings.work / experiment / method / f"seed-{seed}"
                cells = CELLS.get(method, 1)
                parts = [f"cell-{i + 1}" if cells > 1 else "" for i in range(cells)]
                found += [Run(experiment, method, seed, folder / part, i) for i, part in enumerate(parts)]
    return tuple(found)


def _beside(run: Run, method: Method) -> Run:
    """The run of another method under the same seed."""
    return dataclasses.replace(run, method=method, folder=run.folder.parents[1] / method / run.folder.name)


def _common(settings: Table, run: Run) -> dict[str, Any]:
    data = {"mini-ImageNet": settings.mini, "tiered-ImageNet": settings.tiered}
    place = data.get(run.recipe.data, run.recipe.train.data)
    return {"data": place, "seed": run.seed, "device": settings.device}


def search_settings(settings: Table, run: Run) -> Search | None:
    """The settings of a run's search, as its record holds them; None for random and published cells."""
    if run.method not in SEARCHED:
        return None
    changes = {**_common(settings, run), **run.recipe.methods[run.method], "out": run.folder / "search"}
    return dataclasses.replace(run.recipe.search, **changes).resolved()


def train_settings(settings: Table, run: Run) -> Train:
    """The training of a run: for halving that of the search, for a retrained cell one with another seed."""
    common, out = _common(settings, run), run.folder / ("search/train" if run.method in KEPT else "train")
    if run.method == "halving-retrained":
        common["seed"] = derived_seed(run.seed, "cell of a search, retrained") % 2**31
    return dataclasses.replace(run.recipe.train, **common, genotype=run.genotype, out=out)


def evaluate_settings(settings: Table, run: Run, shots: int) -> Evaluate:
    """An evaluation of a run."""
    train, out = train_settings(settings, run).out, run.folder / f"evaluate-{shots}-shot"
    return dataclasses.replace(
        run.recipe.evaluate[shots], **_common(settings, run), checkpoint=train, out=out
    )


def finished_run(settings: Search | Train | Evaluate, command: str) -> dict[str, Any] | None:
    """The record of the finished run with these settings, apart from newer ones, in their folder; None if absent."""
    if not (settings.out / RUN_FILE).exists():
        return None
    record: dict[str, Any] = read_run(settings.out)
    before = settings.before() if isinstance(settings, Search) else None
    same = not differences(record["config"], settings, PLACES, before)
    return record if same and record["command"] == command and record.get("status") == "finished" else None


def finished_training(settings: Table, run: Run) -> dict[str, Any] | None:
    """The record of a finished training of the cell that is in the run's folder now."""
    training = train_settings(settings, run)
    record = finished_run(training, "train")
    if record is None or not run.genotype.exists():
        return None
    checkpoint = load_state(training.out / "state", report=print)
    if checkpoint is None:
        return record  # without the weights the record is still valid
    check_state(checkpoint, train.TrainingContent)
    return record if saved_genotype(checkpoint) == read_genotype(run.genotype) else None


def finished_evaluation(settings: Table, run: Run, shots: int) -> dict[str, Any] | None:
    """The record of a finished evaluation of the training that is in the run's folder now."""
    record = finished_run(evaluate_settings(settings, run, shots), "evaluate")
    training = finished_training(settings, run)
    if record is None or training is None:
        return None
    check_results(run.folder / f"evaluate-{shots}-shot", record.get("results"))
    return record if record["results"]["training"] == identity(training) else None


def make_missing_runs(settings: Table) -> None:
    """Make the missing runs of each seed: searches, then cells of their size, trainings and evaluations."""
    refuse_small_data(settings)
    with workers(settings.jobs) as spread:
        for seed, group in groupby(sorted(runs_of(settings), key=_seed), key=_seed):
            runs = list(group)
            for title, work, lacking in (
                ("cells searched", _search, _lacking_a_search),
                ("networks trained and evaluated", _train_and_evaluate, _lacking_a_result),
            ):
                items = lacking(settings, runs)
                if not items:
                    continue
                for run in {run.experiment: run for run in items}.values():
                    data_of(train_settings(settings, run))  # read or drawn once, before processes start
                with stage(f"seed {seed}: {title}", len(items)) as advance:
                    for run, _ in spread(partial(work, settings), items):
                        advance(note=f"{run.experiment} {run.method}")


def _seed(run: Run) -> int:
    return run.seed


def _lacking_a_search(settings: Table, runs: Iterable[Run]) -> list[Run]:
    pairs = ((run, search_settings(settings, run)) for run in runs)
    return [run for run, search in pairs if search is not None and finished_run(search, "search") is None]


def _lacking_a_result(settings: Table, runs: Iterable[Run]) -> list[Run]:
    return [
        run
        for run in runs
        if any(finished_evaluation(settings, run, shots) is None for shots in run.recipe.evaluate)
    ]


def refuse_small_data(settings: Table) -> None:
    """Raise ConfigurationError if data are too small for a method without results; all counts are named together."""
    found: dict[str, Shortage] = {}
    lacking: set[tuple[Experiment, Method]] = set()
    for run in {(run.experiment, run.method): run for run in _unevaluated(settings)}.values():
        training, chosen = train_settings(settings, run), search_settings(settings, run)
        data = data_of(training)
        shortages = [train_shortage(training, data)]
        shortages += [evaluate_shortage(each, data) for each in run.recipe.evaluate.values()]
        shortages += [search_shortage(chosen, data)] if chosen is not None else []
        for each in (short for short in shortages if short is not None):
            lacking.add((run.experiment, run.method))
            # The recipes of a table have no flags.
            found[data.name] = joint_shortage(found.get(data.name), dataclasses.replace(each, fitting={}))
    each_once = [dataclasses.replace(s, reasons=tuple(dict.fromkeys(s.reasons))) for s in found.values()]
    advice = _smaller_table(settings, lacking) or _needed(settings)
    require(not each_once, "; ".join([*(short.message(flags=True) for short in each_once), advice]))


def _smaller_table(settings: Table, lacking: set[tuple[Experiment, Method]]) -> str:
    """The flags of the experiments, or else the methods, that fit their data; empty if none do."""
    for setting, place in (("experiments", 0), ("methods", 1)):
        refused = {pair[place] for pair in lacking}
        left = tuple(each for each in getattr(settings, setting) if each not in refused)
        try:
            dataclasses.replace(settings, **{setting: left})
        except ConfigurationError:  # none is left, or one that needs the cell of another
            continue
        return f"or leave out what does not fit: --{setting} {' '.join(left)}"
    return ""


def _needed(settings: Table) -> str:
    """The classes and images that the evaluations and the batches of the recipes need."""
    recipes = [RECIPES[name] for name in settings.experiments]
    tests = [each for recipe in recipes for each in recipe.evaluate.values()]
    images = max(each.shots + each.queries for each in tests)
    return (
        f"the recipes of the table need {max(each.ways for each in tests)} test classes of {images} images, "
        f"{max(recipe.search.ways for recipe in recipes)} training classes and "
        f"{max(recipe.train.batch_size for recipe in recipes)} training images; search, train and evaluate have flags "
        "for fewer, which `data check` names"
    )


def _unevaluated(settings: Table) -> list[Run]:
    """The runs without a record of every evaluation, whatever it evaluated; no weights are read."""
    return [
        run
        for run in runs_of(settings)
        if any(
            finished_run(evaluate_settings(settings, run, shots), "evaluate") is None
            for shots in run.recipe.evaluate
        )
    ]


def _search(settings: Table, run: Run) -> None:
    chosen = search_settings(settings, run)
    assert chosen is not None, f"{run.method} has no search"
    search.search_cells(chosen)


def _train_and_evaluate(settings: Table, run: Run) -> None:
    if run.method not in SEARCHED and not run.genotype.exists():
        write_genotype(run.genotype, cell_without_search(settings, run))
    training = train_settings(settings, run)
    if finished_training(settings, run) is None:
        train.train_network(training, read_genotype(run.genotype))
    for shots in run.recipe.evaluate:
        if finished_evaluation(settings, run, shots) is None:
            record_evaluation(evaluate_settings(settings, run, shots))


def cell_without_search(settings: Table, run: Run) -> Genotype:
    """A published cell, or a random one in the form that the search derives, of any size or of the searched cell's."""
    if run.method == "metanas":
        return published_cell(f"metanas-{run.recipe.published}").genotype
    if run.method == "metantk-published":
        return published_cell(f"{run.recipe.published}-{(run.seed - settings.seed) % PUBLISHED + 1}").genotype
    if run.method == "random":
        return random_genotype(generator(run.seed, "random cell of a table"), run.recipe.inputs)
    training = train_settings(settings, run)
    size = network_size(training, len(data_of(training).train.class_names))
    if run.method == "random-band":
        band = Band(*limits_of(str(run.recipe.band)))
        return random_genotype_within(band, generator(run.seed, "random cell of a band", run.cell), size)
    found = read_genotype(_beside(run, SIZED[run.method]).genotype)
    stream = generator(run.seed, "random cell of a table, of a given size")
    return random_genotype_like(found, SIZE_DRAWS, SIZE_TOLERANCE, stream, size)
