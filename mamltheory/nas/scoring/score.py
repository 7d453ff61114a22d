"""What a score is: its settings, its value, the job of computing it, and the protocol of those who compute it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from mamltheory.errors import ConfigurationError
from mamltheory.kernels.empirical import Outputs
from mamltheory.linalg import Converged, Dynamics, Measure
from mamltheory.nas.genotype import Candidates, Operator

Weights = Literal["weights", "all"]
"""Which parameters a kernel differentiates by: convolutions and head matrix, or norms and bias as well."""


RIDGE = Converged(ridge=1e-3)


def check_choices(settings: object) -> None:
    """Raise ConfigurationError for a field of settings that has none of the values of its Literal."""
    for name, kind in get_type_hints(type(settings)).items():
        if get_origin(kind) is Literal and (value := getattr(settings, name)) not in get_args(kind):
            raise ConfigurationError(f"{name} is {value!r}: expected one of {get_args(kind)}")


@dataclass(frozen=True)
class ScoreSettings:
    """Which kernel is built, and which number of it is the score.

    Attributes:
        kernel: "maml" (Eq. 11), "anil" (Eq. 112: the last layer as the inner loop's kernel), or "ntk" (no inner loop:
            the score of TE-NAS, on queries and supports together).
        outputs: "full" for the paper's kn × kn blocks, "sum" for the kernel of the summed outputs, which the paper's
            released code uses and which is about four times cheaper.
        weights: "weights" for convolutions and head matrix, as released (the paper does not say), or "all", with the
            scales and shifts of the norms and the bias of the head.
        measure: "condition" for σ_max/σ_min of Eq. (14), or "harmonic" for tr Φ · tr Φ⁻¹ / n², which averages over the
            spectrum instead of taking its ends: it ranks alike and is less noisy.
        dynamics: the inner loop in kernel time; the default is λτ = ∞ with the ridge 1e-3 of the support inverse.

    Raises:
        ConfigurationError: for other values.
    """

    kernel: Literal["maml", "anil", "ntk"] = "maml"
    outputs: Outputs = "full"
    weights: Weights = "weights"
    measure: Measure = "condition"
    dynamics: Dynamics = RIDGE

    def __post_init__(self) -> None:
        check_choices(self)


Failure = Literal["not finite", "no gradient", "singular"]
"""Why a network has no condition number: an overflow, an output that depends on no weight, a singular kernel."""


@dataclass(frozen=True)
class Score:
    """C_N, or what a search has in its place, and R_N of one network.

    Attributes:
        condition: C_N, or a user's score in its place, the sign such that lower is better; +∞ for a network that
            cannot be scored.
        regions: R_N, higher is better.
        failure: why C_N is +∞, where it is known; equality of scores ignores it.
        halvings: how often the batch of which this is the first score had to be halved because of memory.

    Raises:
        ConfigurationError: for NaN, and for an infinite R_N.
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
    """Number of infinite scores, by reason ("unknown" where none was recorded)."""
    return dict(Counter(s.failure or "unknown" for s in scores if math.isinf(s.condition)))


def halvings(scores: Iterable[Score]) -> int:
    """How often a batch had to be halved because of memory, while these networks were scored."""
    return sum(score.halvings for score in scores)


class Job(NamedTuple):
    """One score to be computed: of the supernet of a round, or of the supernet without one operator, in one repeat.

    Attributes:
        round_index: the round.
        repeat: the repeat; scores of one repeat are compared with each other.
        removed: the operator that is removed; None for the supernet.
        pair: with independent random numbers the candidate whose draws are used, also for the supernet that it is
            compared with; None with common random numbers, where all candidates of one repeat share a supernet.
    """

    round_index: int
    repeat: int
    removed: Operator | None
    pair: Operator | None = None

    def network(self, candidates: Candidates) -> Candidates:
        """The network to score, given the supernet of the round."""
        return candidates if self.removed is None else candidates.without(self.removed)


@runtime_checkable
class Scorer(Protocol):
    """Computes the scores that Algorithm 1 asks for."""

    def __call__(self, candidates: Candidates, jobs: Sequence[Job]) -> Mapping[Job, Score]:
        """The scores of jobs of one round.

        Args:
            candidates: the supernet of the round.
            jobs: what to score. Scores may not depend on which jobs are asked for together, up to rounding.

        Returns:
            The score of every job, and of no other.
        """


def jobs_by_repeat(jobs: Iterable[Job]) -> dict[tuple[int, int], list[Job]]:
    """The jobs of every (round, repeat)."""
    found: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.round_index, job.repeat), []).append(job)
    return found
