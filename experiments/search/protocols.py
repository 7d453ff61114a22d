"""The protocols of the search: which settings "paper", "released" and "stable" stand for.

Every setting that a protocol names can still be given by itself.

paper
    Algorithm 1 as printed: every operator is taken out in turn, C_N and R_N before and after are subtracted, ranked,
    and the ranks added. Where the printed form cannot be meant, the obvious reading is taken: Kaiming weights, which
    the paper states; the same weights, head and tasks for all networks of a repeat, so that a difference is one of
    networks; equal values share their rank. 3 tasks and 3 repeats are the released code's, for the paper is silent. The
    presets of the paper's data sets and ``glyphs`` of the table take ``outputs="sum"`` in its place, as its code does.

released
    What the authors' program computes in effect. Reproduced, each with a setting of its own:
    - weights are PyTorch's default ones, for the program's names of initialisations do not match
      (``initialisation="default"``), and stay the same in all repeats of a round;
    - every candidate has its own batch of tasks and its own thin networks and patches, and the supernet beside it is
      scored anew, under another random head (``common_random_numbers=False``), which also doubles the cost;
    - the difference of C_N is divided by C of the supernet (``difference="relative"``);
    - ranks leave no gap after equal values, so that C_N, which rarely has any, outweighs R_N (``ties="dense"``);
    - the kernel is that of the sum of the outputs (``outputs="sum"``);
    - two inputs a node are kept at the end (``two_inputs=True``).
    As in every protocol here, and as there: networks are scored with GroupNorm, a final norm and ReLU, kernels
    leave out norms and biases, and regions are counted in thin networks of one channel and two cells.
    Not reproduced: at a finite inner time, a time operator of the kernel without its ridge; a negative least
    eigenvalue there gives a negative condition number, which counts as the best, and here +∞; NaN there counts as
    1e5, and here as +∞; differences rounded to three decimals and sorted by three digits of them; the supernet that
    is not updated between the nodes of the last stage; thin networks are drawn by Kaiming's rule, for BatchNorm
    removes the scale; support and query images that are augmented in different ways, and CIFAR's colour statistics;
    tasks from a pool of 1000 seeds.

stable
    The same question asked so that independent searches agree: tr Φ · tr Φ⁻¹/n² in place of σ_max/σ_min, all
    operators from one gradient, many tasks in one kernel, scores shrunken towards the mean of (cell type × operation),
    repeats until the choice is settled, and rounds without signal and edges without a clear choice decided by a rule
    that is written down (:mod:`mamltheory.nas.search.stopping`). Linear regions are left out: what they say reliably is
    the type of operation.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

Protocol = Literal["paper", "released", "stable"]

_PAPER: Mapping[str, Any] = {
    "metric": "condition",
    "estimator": "leave-one-out",
    "regions": True,
    "outputs": "full",
    "tasks": 3,
    "repeats": 3,
    "stopping": False,
    "least_repeats": 4,
    "shrinkage": False,
    "difference": "absolute",
    "ties": "min",
    "initialisation": "kaiming",
    "common_random_numbers": True,
    "two_inputs": False,
}

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "released": {
        **_PAPER,
        "outputs": "sum",
        "difference": "relative",
        "ties": "dense",
        "initialisation": "default",
        "common_random_numbers": False,
        "two_inputs": True,
    },
    "stable": {
        **_PAPER,
        "metric": "harmonic",
        "estimator": "gradient",
        "regions": False,
        "outputs": "sum",
        "tasks": 12,
        "repeats": 16,
        "stopping": True,
        "least_repeats": 8,
        "shrinkage": True,
        "difference": "log",
    },
}


Method = Literal["metantk-nas", "te-nas", "regions", "random"]
Criteria = tuple[Literal["condition", "regions"], ...]

_ONE_BY_ONE: Mapping[str, Any] = {"estimator": "leave-one-out", "shrinkage": False}

METHODS: Mapping[Method, Mapping[str, Any]] = {
    "metantk-nas": {},
    "te-nas": {
        **_ONE_BY_ONE,
        "metric": "condition",
        "outputs": "sum",
        "difference": "relative",
        "regions": True,
    },
    "regions": {**_ONE_BY_ONE, "regions": True},
    "random": {**_ONE_BY_ONE, "regions": False, "stopping": False},
}
"""What a method changes of the protocol; each can still be given by itself."""

KERNELS: Mapping[Method, Mapping[str, Any]] = {
    "te-nas": {"kernel": "ntk", "inner_time": math.inf, "ridge": 1e-3},
}
"""The kernel of a method that has one of its own: a kernel that is given, as by a preset, does not apply to it."""


def criteria(method: Method, regions: bool) -> Criteria:
    """What operators are ranked by."""
    if method == "random":
        return ()
    if method == "regions":
        return ("regions",)
    return ("condition", "regions") if regions else ("condition",)
