"""Tables of cells as ``tabulate`` writes them, with planted accuracies, losses, scores and costs."""

import numpy as np

from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.table import table_from, table_of
from mamltheory.rng import generator

EPOCHS = (1, 2, 3, 4, 6, 8, 12)
SECONDS, SCORING_SECONDS = 2.0, 0.5
"""CPU seconds of an epoch, and of all scores of a cell."""


def genotypes(count, seed=0):
    return [random_genotype(generator(seed, "tabled genotype", i)) for i in range(count)]


def record(network, genotype, training, final, accuracy, loss, diverged_after=None, scores=None):
    """The record of one training.

    final: accuracy at its end. accuracy, loss: after each of EPOCHS. diverged_after: last epoch with a finite loss.
    scores: by name, one number per pool; None for a training without them.
    """
    points = [
        {
            "epoch": epoch,
            "loss": float(loss[i]),
            "train_accuracy": 0.5,
            "val": {"1": float(accuracy[i]), "5": float(accuracy[i])},
            "test": {"1": float(final), "5": float(final)},
            "cpu_seconds": SECONDS * epoch,
        }
        for i, epoch in enumerate(EPOCHS)
        if diverged_after is None or epoch <= diverged_after
    ]
    found = {
        "network": network,
        "training": training,
        "factor": 1,
        "genotype": genotype.to_json(),
        "seed": training,
        "parameters": 40_000,
        "macs": 10**6,
        "checkpoints": points,
        "diverged": diverged_after is not None,
    }
    if diverged_after is None:
        found["accuracy"] = {"1": float(final), "5": float(final)}
    if scores is not None:
        found |= {"scores": scores, "scoring_cpu_seconds": SCORING_SECONDS}
    return found


def records(final, accuracy=None, loss=None, scores=None, diverged=None, seed=0):
    """Two trainings of every cell.

    Args:
        final: cells × 2, or one number per cell for both of its trainings.
        accuracy: on the validation classes, cells × 2 × epochs; by default the final one after every epoch.
        loss: the same; by default 1 − final.
        scores: by name, one number or None per cell.
        diverged: last epoch with a finite loss by (cell, training).
        seed: of the genotypes.
    """
    final = np.asarray(final, dtype=float)
    final = np.stack([final, final], 1) if final.ndim == 1 else final
    flat = np.repeat(final[:, :, None], len(EPOCHS), 2)
    accuracy, loss = flat if accuracy is None else accuracy, 1 - flat if loss is None else loss
    return [
        record(
            i,
            genotype,
            t,
            final[i, t],
            accuracy[i][t],
            loss[i][t],
            (diverged or {}).get((i, t)),
            {name: [values[i]] * 2 for name, values in (scores or {}).items()} if t == 0 else None,
        )
        for i, genotype in enumerate(genotypes(len(final), seed))
        for t in (0, 1)
    ]


def synthetic_table(*args, **kwargs):
    """The table of :func:`records`."""
    return table_from(table_of({"planted": True}, records(*args, **kwargs)))
