"""``demo``: theory figures, search, training, evaluation and a table on embedded data."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

from experiments.data import check
from experiments.data.loading import data_of
from experiments.data.settings import Glyphs
from experiments.genotypes import network_size, write_genotype
from experiments.runs import continued_by, quoted
from experiments.search import figures, search
from experiments.search.settings import Search
from experiments.settings import Demo
from experiments.theory import checks
from experiments.theory.convergence import draw_convergence
from experiments.theory.drift import draw_drift
from experiments.theory.equivalence import draw_equivalence
from experiments.theory.settings import Theory
from experiments.theory.sweep import run_sweep
from experiments.training import train
from experiments.training.evaluate import evaluate_on_tasks
from experiments.training.settings import Evaluate, Train
from mamltheory.fewshot.evaluate import Evaluation, paired_difference
from mamltheory.fewshot.statistics import Interval
from mamltheory.nas.genotype import Genotype, random_genotype
from mamltheory.nas.network import parameter_count
from mamltheory.nas.sizes import random_genotype_like
from mamltheory.rng import generator
from mamltheory.runtime.progress import duration, stage
from mamltheory.runtime.records import replace_file, to_json
from mamltheory.runtime.workers import workers

RANDOM_CELLS = 2
"""Random cells of any size; there are equally many of the searched cell's size."""
SIZE_DRAWS, SIZE_TOLERANCE = 1000, 0.05
JOBS = 2


def run_demo(settings: Demo) -> int:
    """Run all parts and print the time; a stopped demonstration continues from its run folders. Returns 0."""
    again = f"python -m experiments demo --seed {settings.seed} --budget {settings.budget:g}"
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
    print("3. A cell, searched without training (Algorithm 1) on glyph images")
    found = find_cell(settings)
    print("4. The searched cell and random cells, trained and evaluated alike")
    write_table(settings, compare(settings, found))
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


def find_cell(settings: Demo) -> Genotype:
    """Draw the contact sheets, search, and draw the two cells."""
    for split in ("train", "test"):
        check.draw_glyphs(Glyphs(split=split, seed=settings.seed, out=settings.out))
    chosen: Search = dataclasses.replace(
        DEMO_SEARCH,
        repeats=scaled(settings, DEMO_SEARCH.value("repeats"), 1),
        seed=settings.seed,
        jobs=JOBS,
        out=work_folder(settings) / "search",
    )
    genotype = search.search_cells(chosen)
    figures.draw_cells(genotype, chosen, "searched_cells", settings.out)
    return genotype


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a trained cell, its size, and its evaluations by number of shots."""

    name: str
    parameters: int
    results: dict[int, Evaluation]


def compare(settings: Demo, found: Genotype) -> list[Row]:
    """Train the searched cell and random ones with one recipe and evaluate them on the same tasks."""
    cells = cells_to_compare(settings, found)
    trainings: list[tuple[str, Genotype, Train]] = []
    for name, genotype in cells.items():
        folder = work_folder(settings) / name.replace(" ", "-")
        write_genotype(folder / "genotype.json", genotype)
        recipe = dataclasses.replace(
            DEMO_TRAIN,
            epochs=(epochs := scaled(settings, DEMO_TRAIN.epochs, 2)),
            milestones=tuple(
                sorted({max(1, epochs * m // DEMO_TRAIN.epochs) for m in DEMO_TRAIN.milestones})
            ),
            seed=settings.seed,
            genotype=folder / "genotype.json",
            out=folder,
        )
        trainings.append((name, genotype, recipe))
    evaluation = dataclasses.replace(
        DEMO_EVALUATE, tasks=scaled(settings, DEMO_EVALUATE.tasks, 20), seed=settings.seed
    )
    rows = {}
    with workers(JOBS) as spread, stage("cells trained", len(trainings)) as advance:
        for _, row in spread(partial(train_and_evaluate, evaluation), trainings):
            rows[row.name] = row
            advance()
    return [rows[name] for name in cells]


def cells_to_compare(settings: Demo, found: Genotype) -> dict[str, Genotype]:
    """The searched cell, random ones, and random ones with as many parameters, within 5 %."""
    size = network_size(DEMO_TRAIN, len(data_of(DEMO_TRAIN).train.class_names))
    cells = {"searched": found}
    for i in range(RANDOM_CELLS):
        cells[f"random {i + 1}"] = random_genotype(generator(settings.seed, "random cell", i), inputs="all")
    for i in range(RANDOM_CELLS):
        stream = generator(settings.seed, "random cell of the same size", i)
        cells[f"same size {i + 1}"] = random_genotype_like(found, SIZE_DRAWS, SIZE_TOLERANCE, stream, size)
    return cells


def train_and_evaluate(evaluation: Evaluate, training: tuple[str, Genotype, Train]) -> Row:
    """One row of the table; it runs in any process."""
    name, genotype, recipe = training
    network = train.train_network(recipe, genotype)
    data = data_of(recipe)
    results = {
        shots: evaluate_on_tasks(network, data, dataclasses.replace(evaluation, shots=shots))
        for shots in (1, 5)
    }
    return Row(name, parameter_count(network), results)


def write_table(settings: Demo, rows: list[Row]) -> None:
    """Write the table as Markdown and JSON and print it; differences are over common tasks."""
    lines = [
        "| cell | parameters | 5-way 1-shot (%) | 5-way 5-shot (%) | 5-shot: searched − this, same tasks |",
        "|---|---|---|---|---|",
    ]
    searched = rows[0]
    for row in rows:
        accuracies = [percent(row.results[shots].interval) for shots in (1, 5)]
        other = "" if row is searched else percent(paired_difference(searched.results[5], row.results[5]))
        lines.append(f"| {row.name} | {row.parameters} | {' | '.join(accuracies)} | {other} |")
    lines += ["", caption(settings, rows)]
    text = "\n".join(lines) + "\n"
    replace_file(settings.out / "demo_table.md", text.encode())
    record = [
        {
            "cell": row.name,
            "parameters": row.parameters,
            "accuracy": {f"{shots}-shot": dataclasses.asdict(r.interval) for shots, r in row.results.items()},
        }
        for row in rows
    ]
    replace_file(settings.out / "demo_table.json", to_json({"seed": settings.seed, "rows": record}).encode())
    print(text)


def percent(interval: Interval) -> str:
    """Mean ± half-width in per cent."""
    return f"{100 * interval.mean:.1f} ± {100 * interval.half_width:.1f}"


def caption(settings: Demo, rows: list[Row]) -> str:
    """The meaning of the numbers, and its limits."""
    return (
        f"Glyph images of unseen scripts, {rows[0].results[5].config.tasks} tasks, seed {settings.seed}; ± is "
        "the 95 % interval over tasks of one trained network. Cells of the same size are random ones with the "
        "searched cell's number of parameters, within 5 %. One searched cell says little about the search: "
        "`python -m experiments table --preset glyphs` compares independent runs."
    )


# The demonstration: fitted to ten minutes on two cores, everything on embedded data.
DEMO_THEORY = Theory(widths=(64, 128, 256, 512), seeds=4, steps=50)
_DEMO_SIZE: dict[str, Any] = {"channels": 8, "cells": 3, "stem_stride": 2, "image_size": 32, "device": "cpu"}
DEMO_SEARCH = Search(**_DEMO_SIZE, outputs="sum", tasks=3, repeats=2)
DEMO_TRAIN = Train(**_DEMO_SIZE, epochs=6, learning_rate=0.1, milestones=(4, 5), drop_path=0.0)
DEMO_EVALUATE = Evaluate(tasks=200)
