"""Run folders of every kind, written with few numbers and without computing anything."""

import json
from pathlib import Path

from experiments.search.settings import Search
from experiments.training.settings import Evaluate, MetaTrain, Predict, Train
from mamltheory.nas.genotype import random_genotype
from mamltheory.rng import generator
from mamltheory.runtime.records import plain
from mamltheory.runtime.runlog import open_run

FIGURES = Path(__file__).resolve().parents[3] / "figures"
GENOTYPE = random_genotype(generator(0, "page")).to_json()
MACHINE = {"python": "3.11", "torch": "2.13", "commit": "abc123", "threads": 1}


def write(folder, command, settings, lines=(), files=None, status="finished", results=None):
    """A run folder with its record, measurements and other files; returns it."""
    log = open_run(folder, command, settings, 0, MACHINE)
    for line in lines:
        log.log(**line)
    for name, content in (files or {}).items():
        text = content if isinstance(content, str) else json.dumps(plain(content))
        (folder / name).write_text(text, encoding="utf-8")
    if status != "running":
        log.close(status, **(results or {}))
    return folder


def searched(folder):
    """The committed search of five cells, as a run."""
    record = json.loads((FIGURES / "glyph-5" / "search.json").read_text())
    cells = json.loads((FIGURES / "glyph-5" / "cells.json").read_text())
    files = {"search.json": record, "genotype.json": record["genotype"], "cells.json": cells}
    lines = [{"round": k, "cpu_seconds": 10.5 * k, **one} for k, one in enumerate(record["rounds"], 1)]
    settings = Search(protocol="stable", cells=5, out=folder)
    return write(folder, "search", settings, lines, files, results={"cpu_seconds": 63.0})


def search_begun(folder):
    """The same, stopped after two rounds."""
    rounds = json.loads((FIGURES / "glyph-5" / "search.json").read_text())["rounds"][:2]
    lines = [{"round": k, "cpu_seconds": 10.5 * k, **one} for k, one in enumerate(rounds, 1)]
    return write(folder, "search", Search(out=folder), lines, status="interrupted")


def halved(folder, confirmed=None):
    """A search by halving of four cells; one diverged."""
    first = [(2, 0.5, 3.0, False), (0, 0.4, 3.5, False), (1, 0.3, 3.6, False), (3, None, None, True)]
    rungs = [
        {"epochs": 2, "by": "accuracy", "cells": _cells(first)},
        {"epochs": 4, "by": "loss", "cells": _cells(first[:2])},
    ]
    record = {
        "method": "halving", "genotype": GENOTYPE, "cell": 2, "parameters": 37696, "rungs": rungs,
        "headroom": {"deviation": 0.07, "p_value": 0.0, "most": 0.15},
        "control": {"epochs": 2, "random cells": 0.4, "found": 0.5},
        "cost": {"epochs": 12, "full trainings": 3.0}, "diverged": [3], "confirmed": confirmed,
    }  # fmt: skip
    settings = Search(method="halving", parameters="36000:42000", out=folder)
    return write(folder, "search", settings, files={"search.json": record}, results={"cpu_seconds": 245.2})


def _cells(rows):
    names = ("cell", "accuracy", "loss", "diverged")
    return [dict(zip(names, row, strict=True)) for row in rows]


def sampled(folder):
    """The best of three sampled cells."""
    cells = [
        {
            "genotype": GENOTYPE,
            "parameters": 37000 + i,
            "log condition": 5.0 + i,
            "regions": 20.0,
            "rank": 2 + i,
        }
        for i in range(3)
    ]
    record = {
        "method": "metantk-nas in a band",
        "genotype": GENOTYPE,
        "cell": 0,
        "parameters": 37000,
        "cells": cells,
    }
    settings = Search(parameters="36000:42000", out=folder)
    return write(folder, "search", settings, files={"search.json": record}, results={"cpu_seconds": 25.0})


def trained(folder, epochs=3, of=3, status="finished", **others):
    """A training with so many of its epochs."""
    lines = [
        {"epoch": k, "loss": 4.0 / k, "accuracy": 0.1 * k, "learning_rate": 0.1, "drop_path": 0.0}
        | ({"val_accuracy": 0.2 * k, "val_half_width": 0.01} if k % 2 else {})
        for k in range(1, epochs + 1)
    ]
    settings = Train(epochs=of, milestones=(2,), out=folder, **others)
    results = {"epochs": of, "parameters": 36412, "cpu_seconds": 83.0}
    return write(folder, "train", settings, lines, status=status, results=results)


def evaluated(folder, correct, digest="same tasks", **others):
    """An evaluation with these numbers of correct images, of 10, in its tasks."""
    mean = sum(correct) / len(correct) / 10
    results = {
        "accuracy": mean, "half_width": 0.02, "description": "", "parameters": 36412, "tasks_digest": digest,
        "queries_per_task": 10, "correct": correct, "cpu_seconds": 7.5, "training": "0" * 64,
    }  # fmt: skip
    settings = Evaluate(ways=5, tasks=len(correct), out=folder, **others)
    return write(folder, "evaluate", settings, results=results)


def meta_trained(folder, status="finished"):
    """A meta-training with two points of its curve."""
    lines = [
        {"step": k, "loss": 1.0 / k, "accuracy": 0.3, "val_accuracy": 0.3, "val_half_width": 0.02}
        for k in (10, 20)
    ]
    results = {"before": [0.2, 0.02], "accuracy": 0.42, "half_width": 0.03} if status == "finished" else {}
    return write(folder, "meta-train", MetaTrain(steps=20, out=folder), lines, status=status, results=results)


def predicted(folder):
    """A prediction of two images, one with a name that is markup."""
    table = 'file,class,probability\n"<i>a</i>.png",cat,0.9\nb.png,dog,0.8\n'
    results = {"summary": ["2 images in 2 classes", "  cat: 1"]}
    return write(folder, "predict", Predict(out=folder), files={"predictions.csv": table}, results=results)


KINDS = {
    "search": searched,
    "begun": search_begun,
    "halving": halved,
    "band": sampled,
    "train": trained,
    "meta-train": meta_trained,
    "evaluate": lambda folder: evaluated(folder, [5, 6, 7, 8]),
    "predict": predicted,
}
