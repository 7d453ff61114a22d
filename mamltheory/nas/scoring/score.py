"""A score and its settings: which kernel is built, what is read off it, and what a computation of it is named by."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mamltheory.errors import (
    ConfigurationError,
)
from mamltheory.kernels.empirical import Outputs
from mamltheory.linalg import Converged, Dynamics
from mamltheory.nas.genotype import Operator

Weights = Literal["weights", "all"]
"""Which parameters a kernel differentiates by: convolutions and head matrix, or norms and bias as well."""


RIDGE = Converged(ridge=1e-3)


@dataclass(frozen=True)
class ScoreSettings:
    """Which kernel is built and what is read off it.

    kernel: "maml" (Eq. 11), "anil" (Eq. 112: the last layer as the inner loop's kernel), or "ntk" (no inner
        loop: the score of TE-NAS, on queries and supports together).
    outputs: "full" for the paper's kn × kn blocks, "sum" for the kernel of the summed outputs, which the
        paper's released code uses and which is about four times cheaper.
    weights: "weights" for convolutions and head matrix, as released (the paper does not say), or "all", with
        the scales and shifts of the norms and the bias of the head.
    measure: "condition" for σ_max/σ_min of Eq. (14), or "harmonic" for tr Φ · tr Φ⁻¹ / n², which averages
        over the spectrum instead of taking its ends: it ranks alike and is less noisy.
    dynamics: the inner loop in kernel time; the default is λτ = ∞ with the ridge 1e-3 of the support inverse.
    """

    kernel: Literal["maml", "anil", "ntk"] = "maml"
    outputs: Outputs = "full"
    weights: Weights = "weights"
    measure: Literal["condition", "harmonic"] = "condition"
    dynamics: Dynamics = RIDGE

    def __post_init__(self) -> None:
        known = {
            "kernel": ("maml", "anil", "ntk"),
            "outputs": ("full", "sum"),
            "weights": ("weights", "all"),
            "measure": ("condition", "harmonic"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: expected one of {values}")


Failure = Literal["not finite", "no gradient", "singular"]
"""Why a network has no condition number: overflow on the way, an output that no weight moves, a singular kernel."""


@dataclass(frozen=True)
class Score:
    """C_N (lower is better, +inf for a network that cannot be scored) and R_N (higher is better) of one network.

    failure: why C_N is +inf, where it was found out; equality of scores does not look at it.
    halvings: how often the batch of this score, of which it is the first, had to be halved for want of memory.
    """

    condition: float
    regions: float
    failure: Failure | None = field(default=None, compare=False)
    halvings: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if math.isnan(self.condition) or not math.isfinite(self.regions):
            raise ConfigurationError(
                f"got {self}: a score must be a number (C may be +inf, R must be finite); NaN cannot be "
                "ranked"
            )


def failures(scores: Iterable[Score]) -> dict[str, int]:
    """How many of the scores are +inf, by reason ("unknown" where none was recorded)."""
    return dict(Counter(s.failure or "unknown" for s in scores if math.isinf(s.condition)))


def halvings(scores: Iterable[Score]) -> int:
    """How often a batch of candidates did not fit the memory and was halved, while these were scored."""
    return sum(score.halvings for score in scores)


class Job(NamedTuple):
    """One score to be computed: the supernet of the round (removed is None) or a candidate, in one repeat.

    beside: the candidate with which the supernet is compared, where every candidate has draws of its own; None
        where all candidates of a repeat share theirs, and with them one supernet.
    """

    round_index: int
    repeat: int
    removed: Operator | None
    beside: Operator | None = None
