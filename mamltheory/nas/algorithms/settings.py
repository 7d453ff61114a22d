"""How a search decides, as one value."""

from dataclasses import dataclass
from typing import Literal

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.stopping import MIN_REPEATS
from mamltheory.nas.scoring.score import check_choices

Criterion = Literal["condition", "regions"]
CRITERIA: tuple[Criterion, Criterion] = ("condition", "regions")
Estimator = Literal["leave-one-out", "gradient"]

Ties = Literal["min", "dense", "index"]
Difference = Literal["log", "relative", "absolute"]


@dataclass(frozen=True)
class SearchSettings:
    """How the search decides; :mod:`mamltheory.nas.algorithms.algorithm1` explains the choices.

    Attributes:
        seed: of draws between equal operators, and of permutations and bootstrap draws.
        repeats: independent draws of weights, head, tasks and patches, whose differences are averaged; with
            ``stopping`` the most of them.
        criteria: what is ranked; () prunes at random and scores nothing.
        ties: the ranks of equal operators.
        difference: how C_N is compared.
        inputs: "two" for the second stage.
        estimator: of the differences.
        shrinkage: whether ΔC is shrunk towards the mean of (cell type × operation).
        stopping: whether a round may stop before ``repeats``.
        least_repeats: fewest repeats with ``stopping``.
        common_random_numbers: whether candidates are compared on the same draws.

    Raises:
        ConfigurationError: for values that are unknown or do not go together.
    """

    seed: int = 0
    repeats: int = 3
    criteria: tuple[Criterion, ...] = ("condition", "regions")
    ties: Ties = "min"
    difference: Difference = "log"
    inputs: Literal["all", "two"] = "all"
    estimator: Estimator = "leave-one-out"
    shrinkage: bool = False
    stopping: bool = False
    least_repeats: int = MIN_REPEATS
    common_random_numbers: bool = True

    def __post_init__(self) -> None:
        if self.least_repeats < 2:
            raise ConfigurationError(
                f"least_repeats is {self.least_repeats}: agreement takes at least 2 repeats"
            )
        if self.repeats < 1:
            raise ConfigurationError(f"repeats is {self.repeats}: a score needs at least 1 draw")
        if not set(self.criteria) <= {"condition", "regions"} or len(set(self.criteria)) < len(self.criteria):
            raise ConfigurationError(
                f"criteria is {self.criteria}: name 'condition' and 'regions' at most once"
            )
        check_choices(self)
        if self.estimator == "gradient" and "regions" in self.criteria:
            raise ConfigurationError("the gradient scores C_N alone: give criteria=('condition',) with it")
        if self.estimator == "gradient" and not self.common_random_numbers:
            raise ConfigurationError(
                "one gradient serves all candidates: leave common_random_numbers, or take leave-one-out"
            )
