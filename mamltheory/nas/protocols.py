"""The settings of the protocols "paper", "released" and "stable"; flags override each of them.

paper
    Algorithm 1 as printed: leave-one-out differences of C_N and R_N for every operator are ranked, and the ranks are
    added. Some details are not in the paper: all networks in one repeat share weights, head and tasks, so that
    differences are between networks alone; equal values share their rank; 3 tasks and 3 repeats are those of the
    released code. Weights are Kaiming normal, as the paper states. The presets of the paper's data sets, and
    ``glyphs`` of the table, use ``outputs="sum"``, as its code does.

released
    The computation of the authors' program. Reproduced, each by a setting:

    - weights have PyTorch's default initialisation, because the program's names of initialisations do not match
      (``initialisation="default"``), and are the same in all repeats in one round;
    - every candidate has independent tasks, thin networks and patches, and the supernet is scored again with each
      candidate under another random head (``common_random_numbers=False``), which doubles the cost;
    - the difference of C_N is divided by C of the supernet (``difference="relative"``);
    - ranks have no gap after equal values, so that C_N, which rarely has any, outweighs R_N (``ties="dense"``);
    - the kernel is that of the sum of the outputs (``outputs="sum"``);
    - two inputs per node are kept at the end (``two_inputs=True``).

    As in every protocol here: networks are scored with GroupNorm, a final norm and ReLU, kernels omit norms and
    biases, and regions are counted in thin networks of one channel and two cells.
    Not reproduced: the time operator at a finite inner time, which uses the kernel without its ridge; negative
    condition numbers from negative eigenvalues, which count as the best (+∞ here); NaN as 1e5 (+∞ here); differences
    rounded to three decimals and sorted by three digits of them; a supernet without updates between the nodes in the
    last stage; default weights of thin networks (Kaiming here, since BatchNorm removes the scale); different
    augmentation of support and query images, and CIFAR's colour statistics; tasks from a pool of 1000 seeds.

stable
    A search whose independent runs agree: tr Φ · tr Φ⁻¹/n² replaces σ_max/σ_min, one gradient scores all operators,
    a kernel has many tasks, scores are shrunken towards the mean of (cell type × operation), repeats continue until
    the choice is settled, and a fixed rule (:mod:`mamltheory.nas.algorithms.stopping`) decides rounds without signal
    and edges without a clear choice. Linear regions are not used, because they reliably tell the type of operation
    alone.
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


Method = Literal["metantk-nas", "halving", "te-nas", "regions", "random"]
Criteria = tuple[Literal["condition", "regions"], ...]

_ONE_BY_ONE: Mapping[str, Any] = {"estimator": "leave-one-out", "shrinkage": False}

METHODS: Mapping[Method, Mapping[str, Any]] = {
    "metantk-nas": {},
    "halving": {},
    "te-nas": {
        **_ONE_BY_ONE,
        "metric": "condition",
        "outputs": "sum",
        "difference": "relative",
        "regions": True,
    },
    "regions": {**_ONE_BY_ONE, "regions": True},
    # Equal scores are drawn: in the order of operations, which "dense" takes, every cell would be the same.
    "random": {**_ONE_BY_ONE, "regions": False, "stopping": False, "ties": "min"},
}
"""Changes of the protocol by a method; flags override each of them."""

OWN_SCORE: Mapping[str, Any] = {
    "estimator": "leave-one-out",
    "regions": False,
    "difference": "absolute",
    "common_random_numbers": True,
}
"""Changes of the protocol by a user's score; of them flags may override the regions, whose ranks are then added."""

KERNEL: Mapping[str, Any] = {"kernel": "maml", "inner_time": math.inf, "ridge": 1e-3}
"""The usual kernel: the MetaNTK of MAML at λτ = ∞."""
KERNELS: Mapping[Method, Mapping[str, Any]] = {"te-nas": {**KERNEL, "kernel": "ntk"}}
"""The kernel of a method, which replaces the kernel of a preset or a flag."""


def criteria(method: Method, regions: bool) -> Criteria:
    """The criteria of the ranking."""
    if method in ("random", "halving"):
        return ()
    if method == "regions":
        return ("regions",)
    return ("condition", "regions") if regions else ("condition",)
