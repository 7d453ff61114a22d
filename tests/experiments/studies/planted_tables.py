"""A table of cells with planted truth, as ``tabulate`` would write it."""

from mamltheory.nas.algorithms.surrogate import operation_counts
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.table import table_from
from mamltheory.rng import generator, numpy_generator
from mamltheory.runtime.records import plain

EPOCHS = (1, 2, 3, 4, 6, 8, 12)
USELESS = ("maml condition", "maml harmonic", "anil condition", "ntk condition", "ntk harmonic")


def planted_content(cells=64, doubled=24, scored=32, noise=0.01, seed=0):
    """Accuracy is a quality of the cell and the luck of a training.

    The count of linear regions is the quality itself, and conditions are noise. Few-shot accuracy on validation
    classes and the kernel regression know more with every epoch, and they know the luck as well.
    """
    random = numpy_generator(seed, "planted table")
    stream = generator(seed, "planted genotypes")
    rows = []
    for index in range(cells):
        genotype = random_genotype(stream)
        quality = 0.8 + 0.03 * random.standard_normal() + 0.01 * (operation_counts(genotype)[0] - 1)
        scores = {name: random.standard_normal(2).tolist() for name in USELESS}
        scores["regions"] = [quality, quality]
        scores["regression accuracy"] = random.standard_normal(2).tolist()
        kinds = [(0, 1), (1, 1)] + [(0, 2)] * (index < doubled)
        rows.append(
            {
                "genotype": genotype.to_json(),
                "scores": scores,
                "scoring_cpu_seconds": 1.5,
                "trainings": [_training(random, quality, noise, *kind) for kind in kinds],
            }
        )
        if index < scored:
            rows[-1]["trainings"][0]["trained_scores"] = _trained_scores(random, rows[-1]["trainings"][0])
    return {"settings": {"parameters": "36000:42000", "epochs": EPOCHS[-1], "data": "planted"}, "cells": rows}


def planted_table(**others):
    return table_from(plain(planted_content(**others)))


def _training(random, quality, noise, number, factor):
    final = quality + noise * random.standard_normal()
    seen = [final - 0.4 / e + 0.03 / e * random.standard_normal() for e in EPOCHS]
    val = {"1": seen, "5": [v + 0.1 for v in seen]}
    return {
        "training": number,
        "factor": factor,
        "parameters": int(random.integers(36000, 42000)) * factor,
        "macs": int(random.integers(10**6, 2 * 10**6)),
        "diverged": False,
        "epoch": [factor * e for e in EPOCHS],
        "loss": [5 - 4 * v for v in seen],
        "train_accuracy": [0.5] * len(EPOCHS),
        "val": val,
        "test": val,
        "cpu_seconds": [2.0 * factor * e for e in EPOCHS],
        "accuracy": {"1": final, "5": final + 0.1},
    }


def _trained_scores(random, training):
    val = dict(zip(training["epoch"], training["val"]["1"], strict=True)) | {0: 0.5}
    return {
        str(epoch): {name: random.standard_normal() for name in USELESS}
        | {"regression accuracy": val[epoch] + 0.02 * random.standard_normal()}
        for epoch in (0, 2, 4)
    }
