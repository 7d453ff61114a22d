"""The methods that the paper compares, as settings of one search: what "te-nas", "regions" and "random" stand for.

metantk-nas
    The condition number of the MetaNTK and the number of linear regions, or what the protocol makes of them.
te-nas
    The search that MetaNTK-NAS starts from: the condition number of the plain NTK of the summed outputs, on queries
    and supports of all tasks together (30 images with the usual counts), compared relative to the supernet's, and
    linear regions; every operator is taken out in turn.
regions
    Linear regions alone; no kernel is computed.
random
    No criterion: on every edge chance decides.

Repeats, common random numbers, ties and the number of inputs stay those of the protocol, so that two methods under
one protocol differ in their criteria alone.
"""

import math
from collections.abc import Mapping
from typing import Literal

Method = Literal["metantk-nas", "te-nas", "regions", "random"]
Criteria = tuple[Literal["condition", "regions"], ...]

_ONE_BY_ONE: Mapping[str, object] = {"estimator": "leave-one-out", "shrinkage": False}

METHODS: Mapping[Method, Mapping[str, object]] = {
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

KERNELS: Mapping[Method, Mapping[str, object]] = {
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
