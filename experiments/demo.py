"""``demo``: theory figures, search, training, evaluation and a table on embedded data."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mamltheory.fewshot.evaluation import Evaluation, paired_difference
from mamltheory.fewshot.statistics import compare_networks
from mamltheory.intervals import Interval
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import parameter_count
from mamltheory.nas.sizes import random_genotype_like
from mamltheory.notebook import duration
from mamltheory.rng import derived_seed, generator
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.runlog import read_run
from mamltheory.runtime.workers import workers

from .data import check
from .data.loading import data_of
from .data.settings import Glyphs
from .genotypes import network_size, write_genotype
from .program import PROGRAM
from .runs import continued_by, quoted
from .search import figures, search
from .search.settings import Search
from .settings import Demo
from .terminal import for_terminal
from .theory import checks
from .theory.convergence import draw_convergence
from .theory.drift import draw_drift
from .theory.equivalence import draw_equivalence
from .theory.settings import Theory
from .theory.sweep import run_sweep
from .training import train
from .training.evaluate import evaluate_on_tasks
from .training.settings import Evaluate, Train
from .training.trained import read_training

TRAININGS = 3
"""Trainings of each cell that was found, and random cells of its size, each trained once."""
SIZE_DRAWS, SIZE_TOLERANCE = 1000, 0.05
JOBS = 2


def run_demo(settings: Demo) -> int:
    """Run all parts and print the time; a stopped demonstration continues from its run folders. Returns 0."""
    again = f"{PROGRAM} demo --seed {settings.seed} --budget {settings.budget:g}"
    with continued_by(f"{again} --out {quoted(settings.out)}"):
        demonstrate(settings)
    return 0


def demonstrate(settings: Demo) -> None:
    """Run the four parts."""
    begun = time.monotonic()
    print("1. The theory, checked exactly: identities in float64 at finite width")
    checks.print_checks(settings.seed)
    print("2. The theory, checked in the limit: training runs over widths")
    theory_figures(settings)
    print(
        "3. Two cells for glyph images: searched without training (Algorithm 1), and by halving short trainings"
    )
    found = find_cells(settings)
    print("4. The cells that were found and random cells of their sizes, trained and evaluated alike")
    write_table(settings, found, compare(settings, found))
    print(f"done in {duration(time.monotonic() - begun)}; figures and the table are in {settings.out}")


def work_folder(settings: Demo) -> Path:
    """The folder of all runs, by seed and budget."""
    return Path("runs") / f"demo-seed{settings.seed}-budget{settings.budget:g}"


def scaled(settings: Demo, amount: int, least: int) -> int:
    """An amount of work for ten minutes, scaled to the budget, and at least ``least``."""
    return max(least, round(amount * settings.budget / 10))


def theory_figures(settings: Demo) -> None:
    """Draw convergence, drift and equivalence, on the sphere and on glyph images, from the same runs."""
    for tasks in ("sphere", "glyphs"):
        theory = dataclasses.replace(
            DEMO_THEORY,
            tasks=tasks,
            seeds=scaled(settings, DEMO_THEORY.seeds, 2),
            seed=settings.seed,
            out=settings.out,
            runs=work_folder(settings) / "theory",
            jobs=JOBS,
        )
        measured = run_sweep(theory, "train over widths")
        for draw in (draw_convergence, draw_drift, draw_equivalence):
            draw(measured)


@dataclasses.dataclass(frozen=True)
class Found:
    """A cell that a search found, the folder of the search, and its CPU seconds."""

    genotype: Genotype
    folder: Path
    cpu_seconds: float


def find_cells(settings: Demo) -> dict[str, Found]:
    """Draw the contact sheets, search by both methods, and draw the cells that they find."""
    for split in ("train", "test"):
        check.draw_glyphs(Glyphs(split=split, seed=settings.seed, out=settings.out))
    found = {}
    for name, figure, chosen in (
        ("MetaNTK-NAS", "searched_cells", paper_search(settings)),
        ("halving", "halving_cells", halving_search(settings)),
    ):
        genotype = search.search_cells(chosen)
        print(f"wrote {figures.draw_cells(genotype, chosen, figure, settings.out)[0]} (and .pdf, .json)")
        found[name] = Found(genotype, chosen.out, read_run(chosen.out)["results"]["cpu_seconds"])
    return found


def paper_search(settings: Demo) -> Search:
    """The search of the paper, whose repeats follow the budget."""
    return dataclasses.replace(
        DEMO_SEARCH,
        repeats=scaled(settings, DEMO_SEARCH.value("repeats"), 1),
        seed=settings.seed,
        jobs=JOBS,
        out=work_folder(settings) / "search",
    )


def halving_search(settings: Demo) -> Search:
    """Successive halving by the recipe of all trainings, whose rungs follow the budget."""
    recipe = demo_recipe(settings)
    epochs = recipe.epochs
    return dataclasses.replace(
        DEMO_HALVING,
        rungs=tuple(
            scaled(settings, n, least) for n, least in zip(DEMO_HALVING.rungs, (3, 2, 1), strict=True)
        ),
        rung_epochs=(max(1, epochs // 6), max(2, epochs // 2), epochs),
        search_batch_size=recipe.batch_size,
        search_learning_rate=recipe.learning_rate,
        search_milestones=recipe.milestones,
        seed=settings.seed,
        jobs=JOBS,
        out=work_folder(settings) / "halving",
    )


def demo_recipe(settings: Demo) -> Train:
    """The recipe of all trainings, whose epochs follow the budget."""
    epochs, usual = scaled(settings, DEMO_TRAIN.epochs, 3), DEMO_TRAIN.epochs
    milestones = {max(1, epochs * m // usual) for m in DEMO_TRAIN.milestones}
    return dataclasses.replace(DEMO_TRAIN, epochs=epochs, milestones=tuple(sorted(milestones)))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the table: a training, or one that halving kept, by its run folder.

    Attributes:
        row: The row that it belongs to.
        folder: Run folder of the training.
        training: Cell and settings; None for a network that is trained already.
    """

    row: str
    folder: Path
    training: tuple[Genotype, Train] | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """The number of parameters of a network, and its evaluations by number of shots."""

    parameters: int
    results: dict[int, Evaluation]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: its networks, and the name of the row with random cells of their size, if any."""

    name: str
    networks: tuple[Measured, ...]
    control: str | None

    def accuracies(self, shots: int) -> np.ndarray:
        """The accuracy of every network on every task."""
        return np.stack([network.results[shots].accuracies for network in self.networks])


def compare(settings: Demo, found: dict[str, Found]) -> list[Row]:
    """Train the cells of both searches and random ones of their sizes alike, and evaluate all on the same tasks."""
    networks = [network for name, each in found.items() for network in networks_of(settings, name, each)]
    evaluation = dataclasses.replace(
        DEMO_EVALUATE, tasks=scaled(settings, DEMO_EVALUATE.tasks, 20), seed=settings.seed
    )
    measured = {}
    with workers(JOBS) as spread, stage("networks trained and evaluated", len(networks)) as advance:
        for network, each in spread(partial(train_and_evaluate, evaluation), networks):
            measured[network.folder] = each
            advance()
    rows = []
    for name in dict.fromkeys(network.row for network in networks):
        members = tuple(measured[network.folder] for network in networks if network.row == name)
        searched = next((each for each in found if name.startswith(each)), None)
        rows.append(Row(name, members, None if searched is None else control_of(searched)))
    return rows


def control_of(name: str) -> str:
    """The name of the row with random cells as large as the one that a search found."""
    return f"random, as large as that of {name}"


def networks_of(settings: Demo, name: str, found: Found) -> list[Network]:
    """The network that halving kept, trainings of the found cell, and trainings of random cells of its size."""
    size = network_size(DEMO_TRAIN, len(data_of(DEMO_TRAIN).train.class_names))
    kept = [Network(f"{name}, its network", found.folder / "train", None)] if name == "halving" else []
    networks, first = list(kept), len(kept)  # the first seed is that of the kept network
    row = f"{name}, its cell{' trained again' * len(kept)}"
    for i in range(first, first + TRAININGS):
        networks.append(_trained(settings, row, f"{name}-{i}", found.genotype, i))
    for i in range(TRAININGS):
        stream = generator(settings.seed, f"random cell of the size of {name}", i)
        cell = random_genotype_like(found.genotype, SIZE_DRAWS, SIZE_TOLERANCE, stream, size)
        networks.append(_trained(settings, control_of(name), f"{name}-random-{i}", cell, i))
    return networks


def _trained(settings: Demo, row: str, folder: str, genotype: Genotype, number: int) -> Network:
    """A training with the seed of this number; in every row, the same numbers have the same seeds."""
    out = work_folder(settings) / folder
    write_genotype(out / "genotype.json", genotype)
    seed = settings.seed if number == 0 else derived_seed(settings.seed, f"training {number}") % 2**31
    recipe = dataclasses.replace(demo_recipe(settings), seed=seed, genotype=out / "genotype.json", out=out)
    return Network(row, out, (genotype, recipe))


def train_and_evaluate(evaluation: Evaluate, network: Network) -> Measured:
    """The measurements of a network; it runs in any process."""
    if network.training is None:
        trained = read_training(network.folder).network
    else:
        genotype, recipe = network.training
        trained = train.train_network(recipe, genotype)
    data = data_of(DEMO_TRAIN)
    results = {
        shots: evaluate_on_tasks(trained, data, dataclasses.replace(evaluation, shots=shots))
        for shots in (1, 5)
    }
    return Measured(parameter_count(trained), results)


def write_table(settings: Demo, found: dict[str, Found], rows: list[Row]) -> None:
    """Write the table as Markdown and JSON and print it."""
    lines = [
        "| cells | networks | parameters | 5-way 1-shot (%) | 5-way 5-shot (%) | 1-shot: this − random, as large |",
        "|---|---|---|---|---|---|",
    ]
    by_name, record = {row.name: row for row in rows}, []
    for row in rows:
        sizes = [network.parameters for network in row.networks]
        means = {shots: row.accuracies(shots).mean(axis=1).tolist() for shots in (1, 5)}
        gains = (
            {} if row.control is None else {shots: gain(row, by_name[row.control], shots) for shots in (1, 5)}
        )
        words = [extent(sizes, 1, 0), *(extent(means[shots], 100, 1) for shots in (1, 5))]
        difference = percent(gains[1]) if gains else ""
        lines.append(f"| {row.name} | {len(sizes)} | {' | '.join(words)} | {difference} |")
        record.append(
            {
                "cell": row.name,
                "parameters": sizes,
                "accuracy": {f"{shots}-shot": means[shots] for shots in means},
                "gain": {f"{shots}-shot": dataclasses.asdict(each) for shots, each in gains.items()},
            }
        )
    text = "\n".join([*lines, "", caption(settings, found, rows)]) + "\n"
    replace_file(settings.out / "demo_table.md", text.encode())
    seconds = {name: each.cpu_seconds for name, each in found.items()}
    content = {"seed": settings.seed, "search_cpu_seconds": seconds, "rows": record}
    replace_file(settings.out / "demo_table.json", to_json(content).encode())
    print(for_terminal(text))


def gain(row: Row, control: Row, shots: int) -> Interval:
    """The networks of a row minus those of another one, on the same tasks."""
    paired_difference(
        row.networks[0].results[shots], control.networks[0].results[shots]
    )  # refuses other tasks
    return compare_networks(row.accuracies(shots), control.accuracies(shots))


def extent(values: list[float] | list[int], unit: float, digits: int) -> str:
    """The mean, with the least and the greatest value if they differ."""
    least, mean, most = (
        f"{unit * each:.{digits}f}" for each in (min(values), float(np.mean(values)), max(values))
    )
    return mean if least == most else f"{mean} ({least}–{most})"


def percent(interval: Interval) -> str:
    """Mean ± half-width in points, with the sign."""
    return f"{100 * interval.mean:+.1f} ± {100 * interval.half_width:.1f}"


def caption(settings: Demo, found: dict[str, Found], rows: list[Row]) -> str:
    """The meaning of the numbers, and its limits."""
    spent = " and ".join(f"{name} {each.cpu_seconds:.0f}" for name, each in found.items())
    return (
        f"Glyph images of unseen scripts, {rows[0].networks[0].results[1].config.tasks} tasks, seed {settings.seed}; "
        f"all networks are trained alike, {demo_recipe(settings).epochs} epochs; in brackets the least and the "
        "greatest of several. Random cells have as many parameters as the found one, within "
        f"{100 * SIZE_TOLERANCE:g} %. CPU seconds of the searches: {spent}. ± is the 95 % interval over networks and "
        "tasks, with few networks and therefore wide. "
        "One run can show that this cell, or this network, differs from random cells of its size; it cannot show that "
        f"the method finds better ones, for which `{PROGRAM} table --preset glyphs-halving` compares "
        "independent searches."
    )


# The demonstration: fitted to ten minutes on two cores, everything on embedded data.
DEMO_THEORY = Theory(widths=(64, 128, 256, 512), seeds=4, steps=50)
_DEMO_SIZE: dict[str, Any] = {"channels": 8, "cells": 3, "stem_stride": 2, "image_size": 32, "device": "cpu"}
# Both searches take about as long. As in the released code, the paper's uses smaller images than the training.
DEMO_SEARCH = Search(**_DEMO_SIZE | {"image_size": 16}, outputs="sum", tasks=3, repeats=2)
DEMO_HALVING = Search(
    **_DEMO_SIZE, method="halving", parameters="36000:42000", rungs=(20, 6, 2), rung_epochs=(1, 3, 6),
    search_milestones=(4, 5), validation_tasks=500, anyway=True,
)  # fmt: skip
DEMO_TRAIN = Train(**_DEMO_SIZE, epochs=6, learning_rate=0.1, milestones=(4, 5), drop_path=0.0)
DEMO_EVALUATE = Evaluate(tasks=100)
