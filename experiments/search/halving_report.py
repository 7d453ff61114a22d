"""What a search by halving says: ``search.json``, its control, its cost, what was confirmed, and the figure."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from mamltheory.nas.algorithms.halving import epochs_of
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import derived_network
from mamltheory.nas.short_trainings import task_counts
from mamltheory.nas.sizes import genotype_parameters, multiply_accumulates
from mamltheory.nas.spelling import cells_in_words
from mamltheory.strict_json import read_json_file

from ..data.loading import data_of
from ..genotypes import network_size
from ..plotting import curve, figure, legend_below, save_figure
from ..program import program_in
from ..runs import quoted, without_paths
from ..training.settings import TRAIN
from ..training.train import evaluate_command
from .halving import TRAINED, Found, Item, full_training, headroom_of, rungs_of, units_words
from .one_size import at_scale, band_of, controls_of, full_size
from .settings import Search
from .words import p_in_words, task_words

SEARCH_FILE = "search.json"


def record_of(found: Found, settings: Search) -> dict[str, Any]:
    """What ``search.json`` says; it holds no times, so that two searches of one seed write the same bytes."""
    size, best, first = full_size(settings), found.candidate, settings.rung_epochs[0]
    kept = ("loss", "accuracy", "diverged")
    rungs = [
        {
            "epochs": rung.epochs,
            "by": rung.by,
            "cells": [
                {"cell": i, **{name: found.records[Item(i, rung.epochs)][name] for name in kept}}
                for i in alive
            ],
        }
        for rung, alive in found.standings
    ]
    start = [found.records[Item(i, first)] for i in sorted(found.standings[0][1])]
    room = headroom_of(start)
    genotype, data = found.genotypes[best], data_of(at_scale(settings))
    tasks, classes = task_counts(data, "val"), len(data.val.class_names)
    return {
        "method": "halving",
        "genotype": genotype.to_json(),
        "words": cells_in_words(genotype.edges()),
        "cell": best,
        "parameters": genotype_parameters(genotype, size),
        "rungs": rungs,
        "tasks": {"ways": tasks.ways, "shots": tasks.shots, "queries": tasks.queries, "classes": classes},
        "headroom": None if room is None else {**dataclasses.asdict(room), "units": units_words(settings)},
        "control": {
            "epochs": first,
            "random cells": _mean([each["accuracy"] for each in start]),
            "found": found.records[Item(best, first)]["accuracy"],
        },
        "cost": {
            "epochs": epochs_of(rungs_of(settings)),
            "full trainings": full_trainings(settings, genotype, size.classes),
        },
        "diverged": sorted({item.candidate for item, each in found.records.items() if each["diverged"]}),
        "confirmed": confirmed(found, settings),
        "config": without_paths(settings),
    }


def full_trainings(settings: Search, genotype: Genotype, classes: int) -> float:
    """The cost of the rungs in full trainings, by the multiply-accumulates of all their epochs.

    Args:
        settings: Settings of the search.
        genotype: The cells whose networks are compared, at both scales.
        classes: Of the training images.

    Returns:
        How many full trainings cost as much. A full training is that of ``then_train``, or of the last rung's epochs,
        at the network's own size.
    """
    epochs = TRAIN[settings.then_train].epochs if settings.then_train else settings.rung_epochs[-1]
    ratio, scale = epochs_of(rungs_of(settings)) / epochs, at_scale(settings)
    if scale == settings:
        return ratio
    with torch.random.fork_rng(devices=[]):
        small, full = (
            multiply_accumulates(
                derived_network(genotype, network_size(each, classes), 0),
                torch.zeros(1, 3, each.image_size, each.image_size),
            )
            for each in (scale, settings)
        )
    return ratio * small / full


def confirmed(found: Found, settings: Search) -> dict[str, Any] | None:
    """Final accuracies on the test classes: finalists as trained and trained again, and random cells.

    Args:
        found: The search.
        settings: Its settings.

    Returns:
        The accuracies, and both gains over the random cells with the half-widths of their 95 % intervals over
        networks; None where nothing was confirmed.
    """
    if not found.finalists:
        return None
    last = settings.rung_epochs[-1]
    items = {
        "kept": [Item(i, last) for i in found.finalists],
        "trained again": [Item(i, last, 1) for i in found.finalists],
        "random cells": [Item(i, last) for i in controls_of(settings)],
    }
    rows = {name: [found.records[item]["test_accuracy"] for item in each] for name, each in items.items()}
    network, cells = (_gain(rows[name], rows["random cells"]) for name in ("kept", "trained again"))
    return {
        "finalists": list(found.finalists),
        **rows,
        "gain of the network": network[0],
        "half-width of the network": network[1],
        "gain of the cells": cells[0],
        "half-width of the cells": cells[1],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that did not diverge."""
    good = [each for each in values if each is not None]
    return float(np.mean(good)) if good else None


def _gain(ours: Sequence[float | None], others: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Difference of the means, and half of Welch's 95 % interval; None where too few trainings are left."""
    one, other = ([each for each in row if each is not None] for row in (ours, others))
    if not one or not other:
        return None, None
    gain = float(np.mean(one) - np.mean(other))
    if min(len(one), len(other)) < 2 or len({*one}) == len({*other}) == 1:
        return gain, None
    limits = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    return gain, float(limits.high - limits.low) / 2


def gain_words(record: Mapping[str, Any], settings: Search) -> str:
    """What the search gained at its first rung, over all cells there, and what could be gained at all."""
    control, room = record["control"], record["headroom"]
    gain = 100 * (control["found"] - control["random cells"])
    drawn = "random cells" if settings.warm_start is None else "cells that the table proposed"
    words = f"{gain:+.1f} points from the mean of all {drawn} at epoch {control['epochs']}"
    if room is None:
        return words
    units, sure = room["units"], p_in_words(room["p_value"])
    if room["p_value"] > 0.05:
        return f"{words}, where {units} cannot tell whether they differ ({sure})"
    return f"{words}, where they differ by {100 * room['deviation']:.1f} beyond the noise of {units} ({sure})"


def cost_words(record: Mapping[str, Any], cpu_seconds: float) -> str:
    """What the rungs cost."""
    cost = record["cost"]
    full = _number(cost["full trainings"])
    return f"{cost['epochs']} epochs, as much as {full} full trainings; {cpu_seconds:.0f} CPU seconds"


def found_command(settings: Search) -> str:
    """The command that evaluates the network that the search keeps."""
    scale = at_scale(settings)
    small = "  # at the scale of the search" * (scale != settings)
    return f"{evaluate_command(settings.out / TRAINED, data_of(scale))}{small}"


def confirmed_words(found: Mapping[str, Any]) -> str:
    """What the finalists gain over random cells on the test classes, as networks and as cells."""
    network, cells = found["gain of the network"], found["gain of the cells"]
    both = [
        "unknown" if gain is None else f"{100 * gain:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")
        for gain, half in (
            (network, found["half-width of the network"]),
            (cells, found["half-width of the cells"]),
        )
    ]
    luck = ""
    if None not in (network, cells):
        luck = f"; the difference, {100 * (network - cells):+.1f}, is luck of the training"
    return (
        f"on test classes, {len(found['finalists'])} finalists against {len(found['random cells'])} random "
        f"cells: the networks as trained {both[0]} points, the cells trained again {both[1]} points{luck}"
    )


def training_command(settings: Search, processes: int) -> str:
    """The command that trains the found cell at full scale."""
    assert settings.then_train is not None, "the caller asks only where a recipe is named"
    training = full_training(settings)
    usual = vars(TRAIN[settings.then_train])
    given = {name: value for name, value in vars(training).items() if value != usual[name]}
    flags = [f"--{name.replace('_', '-')} {quoted(Path(str(value)))}" for name, value in given.items()]
    return " ".join([program_in(processes), "train --preset", settings.then_train, *flags])


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def draw_rungs(settings: Search) -> None:
    """Draw the accuracies of a finished search over the epochs of its rungs, of all candidates and the found one."""
    record: Any = read_json_file(settings.out / SEARCH_FILE)
    best = record["cell"]
    curves: dict[int, list[tuple[int, float]]] = {}
    for rung in record["rungs"]:
        for cell in rung["cells"]:
            if not cell["diverged"]:
                curves.setdefault(cell["cell"], []).append((rung["epochs"], 100 * cell["accuracy"]))
    with figure("column", 2.9) as (drawing, axes):
        panel = axes[0, 0]
        for number, points in sorted(curves.items(), key=lambda item: item[0] == best):
            style = curve(0) if number == best else {"color": "0.75", "marker": "."}
            panel.plot(*zip(*points, strict=True), label="found" if number == best else None, **style)
        first, mean = record["control"], curve(1) | {"linestyle": "none"}
        drawn = "random cells" if settings.warm_start is None else "proposed cells"
        panel.plot(first["epochs"], 100 * first["random cells"], label=f"mean of the {drawn}", **mean)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("epochs of training")
        panel.set_ylabel("\n".join(task_words(record.get("tasks")).split(", ")) + " (%)")
        legend_below(panel)
        panel.set_title(
            f"{settings.rungs[0]} cells, {band_of(settings)} parameters,\n"
            f"{Path(settings.data).name}, seed {settings.seed}"
        )
        save_figure(
            drawing, "rungs", {"rungs": record["rungs"]}, settings.out, without_paths(settings), settings.seed
        )
