"""Classes of new images from a few labelled ones: the evaluation's procedure (Appendix E) without labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mamltheory.errors import DataError
from mamltheory.fewshot.augment import Augmentation
from mamltheory.fewshot.features import FeatureMap
from mamltheory.fewshot.heads import Head, fit_confidence


@dataclass(frozen=True, eq=False)
class Predictions:
    """For each query image its class and how sure the head is: see :func:`fit_confidence`."""

    labels: np.ndarray
    confidence: np.ndarray
    converged: bool


def predict(
    network: torch.nn.Module,
    support: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    head: Head = "logistic",
    C: float = 1.0,
    copies: int = 5,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Predictions for query images (uint8 m×H×W×3) of a head fitted on the support images (n×H×W×3).

    labels: n whole numbers, at least two different ones. The support goes through the training transform
    `copies` times (0: as it is). The network is moved to the device and left in its mode. Raises DataError
    for images of different sizes or a single class.
    """
    if support.shape[1:] != query.shape[1:] or len(np.unique(labels)) < 2:
        raise DataError(
            f"got support images of shape {support.shape[1:]} in {len(np.unique(labels))} classes and query "
            f"images of shape {query.shape[1:]}: give images of one size and at least two classes"
        )
    mode = network.training
    features = FeatureMap(network.to(device).eval(), mean, std, device)
    try:
        rows = [np.arange(len(support))]
        (augmented,) = features.supports(support, rows, augmentation or Augmentation(), copies, seed)
        queries = features.plain(query, np.arange(len(query)))
    finally:
        network.train(mode)
    return Predictions(*fit_confidence(head, C, augmented, np.tile(labels, max(copies, 1)), queries))
