"""Tiny settings of the studies, and measurements with planted relations."""

import numpy as np

from experiments.studies import correlation_report, stability
from experiments.studies.settings import Correlation, Stability
from mamltheory.rng import numpy_generator

TINY = {"image_size": 16, "channels": 4, "cells": 3, "stem_stride": 4, "device": "cpu"}


def correlation_settings(folder, **others):
    usual = {"networks": 4, "repeated": 3, "epochs": 1, "milestones": (), "test_tasks": 2, "pools": 2}
    usual |= {"pool_images": 3, "initialisations": 2, "joint_tasks": 1, "batches": 1, "regression_tasks": 2}
    files = {"out": folder / "figures", "runs": folder / "runs"}
    return Correlation(**TINY | usual | {"patches": 50, "draws": 10} | files | others)


def stability_settings(folder, **others):
    usual = {"gradient_tasks": (1, 2), "gradient_repeats": 4, "exact_tasks": 1, "exact_repeats": 4}
    files = {"out": folder / "figures", "runs": folder / "runs"}
    return Stability(**TINY | usual | {"region_repeats": 4, "patches": 50, "draws": 10} | files | others)


def planted_network(index, training, accuracy, scores):
    return {
        "network": index,
        "training": training,
        "parameters": 1000 + 10 * index,
        "macs": 5000 + (index * 7919) % 40 * 10,
        "accuracy": {"1": accuracy, "5": accuracy + 0.1},
        "scores": scores,
        "cpu_seconds": 2.0,
        "scoring_cpu_seconds": 0.5,
    }


def planted_records(networks=12, repeated=4):
    """Accuracy follows the regions exactly, the loss of the regression not at all; other scores follow the size."""
    random = numpy_generator(0, "planted")
    quality = random.permutation(networks)
    records = {}
    for i in range(networks):
        scores = {name: np.full((2, 2), float(i)).tolist() for name in correlation_scores()}
        scores["regions"] = (np.full((2, 2), quality[i]) + 0.01 * random.random((2, 2))).tolist()
        scores["regression loss"] = random.random((2, 2)).tolist()
        records[f"{i}-0"] = planted_network(i, 0, 0.2 + 0.05 * quality[i], scores)
        if i < repeated:
            records[f"{i}-1"] = planted_network(i, 1, 0.21 + 0.05 * quality[i], {})
    return records


def correlation_scores():
    return sorted(
        {part for parts in correlation_report.COMPONENTS.values() for part in parts} - {"parameters", "macs"}
    )


def planted_repeats(settings):
    """Every score of reliability 0.5, but for the regions, which are noise; exact ones equal the gradients."""
    random = numpy_generator(0, "planted")
    signal = random.standard_normal(126)
    records = {}
    for name, (estimator, tasks, repeat) in stability.repeats_of(settings).items():
        own = numpy_generator(1, "repeat", repeat)
        measures = ("regions",) if estimator == "regions" else stability.MEASURES
        share = 0.0 if estimator == "regions" else 1.0
        drawn = {m: (share * signal + own.standard_normal(126)).tolist() for m in measures}
        records[name] = {
            "estimator": estimator,
            "tasks": tasks,
            "repeat": repeat,
            "differences": drawn,
            "cpu_seconds": dict.fromkeys(measures, 2.0),
            "evaluation_seconds": 0.5,
        }
    return records
