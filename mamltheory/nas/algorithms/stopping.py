"""What the repeats of a round are worth: when they suffice (the stopping rule), and on what basis a round is decided.

- *Reliability* r₁ is the share of signal in one repeat (:mod:`mamltheory.nas.statistics.reliability`). A round whose
  r₁ lies inside the permutation null is a *tie*: its scores cannot be told from noise.
- *Certainty* is the probability that bootstrap draws of the repeats prune the same operator. An edge whose certainty
  is below SEPARATED is *undecided*.
- The *stopping rule* ends a round, not before MIN_REPEATS, when the certainty, averaged over edges, reaches
  ENOUGH_AGREEMENT; when a wrong choice costs less than LITTLE_REGRET standard deviations of one repeat; or when the
  budget is spent.
- The *basis* decides with shrinkage: the operators' own scores, or in a tie the means over (cell type × operation), or
  the sizes of the operations if those means are a tie as well. An undecided edge uses the means over (cell type ×
  operation): what an operator does on one edge rather than on another is the smallest and noisiest part of its score.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Operator
from mamltheory.nas.statistics.reliability import (
    Agreement,
    Earlier,
    Labels,
    Scores,
    codes,
    combined,
    effects,
    group_means,
    half_agreement,
    members_of,
    permutation_null,
    shrunken_scores,
    single_repeat_reliability,
    standardised,
    weighted_mean,
)

Basis = Literal["operators", "types", "parameters"]
"""What decides a round: the operators' own scores, those of their (cell type × operation), or their sizes."""

Stop = Literal["agreement", "regret", "budget", "fixed"]
"""Why a round took no further repeat; "fixed": their number was given."""

MIN_REPEATS = 4
"""Repeats before a search may stop, unless it sets more or fewer."""
ENOUGH_AGREEMENT, LITTLE_REGRET = 0.85, 0.05
SEPARATED = 0.9


@dataclass(frozen=True, eq=False)
class Compared:
    """The operators of a round whose scores are finite in every repeat.

    Attributes:
        scores: operators × repeats, larger = better to prune.
        edges: the edge of every operator, or its node in the second stage.
        operators: the operators.
        earlier: the same operators in the repeats of earlier rounds, for the means over types alone.
    """

    scores: Scores
    edges: Labels
    operators: Sequence[Operator]
    earlier: Earlier | None = None

    @property
    def types(self) -> Labels:
        """(cell type, operation) of every operator."""
        return [(o.cell, o.operation) for o in self.operators]


@dataclass(frozen=True)
class Certainty:
    """How surely the operators to prune are known, from bootstrap draws of the repeats.

    Attributes:
        same: probability that the same operator is pruned, averaged over edges.
        regret: what the choice loses against the best one of a draw, in standard deviations of one repeat, averaged
            over edges.
        by_edge: ``same`` of every edge, in order of first appearance.
    """

    same: float
    regret: float
    by_edge: tuple[float, ...]


@dataclass(frozen=True)
class RoundReliability:
    """What the scores of a round are worth; :func:`round_reliability` computes it.

    Attributes:
        repeats: number of repeats that were compared.
        single: r₁, the reliability of one repeat.
        specific: r₁ of what edges add to the means over (cell type × operation).
        null: central 95 % of r₁ when operators change places on their edge.
        agreement: between disjoint halves of the repeats.
        certainty: of the choice on every edge.
        share: λ of the shrinkage.
        basis: what decides the round.
    """

    repeats: int
    single: float
    specific: float
    null: tuple[float, float]
    agreement: Agreement
    certainty: Certainty
    share: float
    basis: Basis

    @property
    def tied(self) -> bool:
        """Whether r₁ lies inside the permutation null."""
        return self.single <= self.null[1]

    def to_json(self) -> dict:
        """Numbers, strings and lists."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping) -> "RoundReliability":
        """The inverse of :meth:`to_json`; raises KeyError or TypeError for anything else."""
        agreement, certain = (_numbers(data[name]) for name in ("agreement", "certainty"))
        parts = {"agreement": Agreement(**agreement), "certainty": Certainty(**certain)}
        numbers = _numbers({name: data[name] for name in ("single", "specific", "null", "share")})
        return RoundReliability(**{**data, **numbers, **parts})


def _numbers(data: Mapping) -> dict:
    """Numbers and lists of numbers from JSON, where infinite ones are strings."""
    return {
        key: tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
        for key, value in data.items()
    }


def certainty(
    compared: Compared,
    random: np.random.Generator,
    shrinkage: bool,
    share: float | None = None,
    pruned: Collection[Operator] = (),
    draws: int = 200,
) -> Certainty:
    """Bootstrap over the repeats of the operator with the largest mean, or with shrinkage the largest shrunken score.

    Repeats of earlier rounds are drawn separately. Deviations are widened by √(R/(R − 1)), by which the bootstrap of R
    repeats is too narrow.

    Args:
        compared: the scores.
        random: generator of the draws.
        shrinkage: whether the shrunken scores decide.
        share: λ of the shrinkage, by default that of all repeats; every draw uses the same.
        pruned: the operators that are pruned; on an edge without one it is the largest over all repeats.
        draws: number of bootstrap draws.

    Returns:
        The certainty of the choice.

    Raises:
        ConfigurationError: for fewer than 2 repeats.
    """
    scores, edges, earlier = compared.scores, compared.edges, compared.earlier
    if scores.shape[1] < 2:
        raise ConfigurationError(f"a bootstrap over repeats needs at least 2, got {scores.shape[1]}")
    centre, means = _bootstrap(standardised(scores, edges), random, draws)
    if shrinkage:
        share = shrunken_scores(scores, edges, compared.types)[1] if share is None else share
        basis, repeats, more = effects(edges, compared.types), scores.shape[1], 0
        before = np.zeros_like(centre), np.zeros_like(means)
        if earlier is not None and earlier.shape[1] > 1:
            before, more = _bootstrap(standardised(earlier, edges), random, draws), earlier.shape[1]
        centre, means = (
            combined(own, weighted_mean(own, repeats, past, more), basis, share)
            for own, past in zip((centre, means), before, strict=True)
        )
    same, regret = [], []
    for members in members_of(edges):
        rows = means[members]
        chosen = [i for i, row in enumerate(members.tolist()) if compared.operators[row] in pruned]
        pick = chosen[0] if chosen else int(centre[members].argmax())
        same.append(float((rows.argmax(0) == pick).mean()))
        regret.append(float((rows.max(0) - rows[pick]).mean()))
    return Certainty(float(np.mean(same)), float(np.mean(regret)), tuple(same))


def _bootstrap(values: Scores, random: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the repeats as a column, and the means of bootstrap draws, widened."""
    repeats = values.shape[1]
    weights = random.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws).T / repeats
    centre = values.mean(1, keepdims=True)
    return centre, centre + math.sqrt(repeats / (repeats - 1)) * (values @ weights - centre)


def may_stop(found: Certainty, repeats: int, budget: int, least: int = MIN_REPEATS) -> Stop | None:
    """The stopping rule.

    Args:
        found: the certainty after the repeats so far.
        repeats: number of repeats so far.
        budget: most repeats of a round.
        least: fewest repeats of a round.

    Returns:
        "agreement", "regret" or "budget", or None when the round needs another repeat.
    """
    if repeats >= budget:
        return "budget"
    if repeats < least:
        return None
    if found.same >= ENOUGH_AGREEMENT:
        return "agreement"
    return "regret" if found.regret < LITTLE_REGRET else None


def round_reliability(
    compared: Compared, random: np.random.Generator, shrinkage: bool = True, pruned: Collection[Operator] = ()
) -> RoundReliability:
    """Everything that the repeats of a round say about themselves, and the basis that decides the round.

    Args:
        compared: the scores, of at least 2 repeats.
        random: generator of permutations, halves and bootstrap draws.
        shrinkage: False for a search that uses the operators' own scores whatever they are worth.
        pruned: the operators that are pruned, where something else than these scores decides.

    Returns:
        The reliability of the round.
    """
    scores, edges, types = compared.scores, compared.edges, compared.types
    single, null = single_repeat_reliability(scores, edges), permutation_null(scores, edges, random)
    basis: Basis = "operators"
    if shrinkage and single <= null[1]:
        basis = _basis_of_a_tie(compared, random)
    share = shrunken_scores(scores, edges, types)[1]
    used = types if shrinkage else None
    return RoundReliability(
        repeats=scores.shape[1],
        single=single,
        specific=single_repeat_reliability(scores, edges, types),
        null=null,
        agreement=half_agreement(scores, edges, random, used, earlier=compared.earlier),
        certainty=certainty(compared, random, shrinkage, 0.0 if basis == "types" else share, pruned),
        share=share,
        basis=basis,
    )


def _basis_of_a_tie(compared: Compared, random: np.random.Generator) -> Basis:
    """The means over (cell type × operation), of all rounds, where their r₁ exceeds its null; otherwise the sizes."""
    values = standardised(compared.scores, compared.edges)
    if compared.earlier is not None and compared.earlier.shape[1]:
        values = np.concatenate([values, standardised(compared.earlier, compared.edges)], 1)
    means = group_means(values, codes(compared.types))
    cells = [cell for cell, _ in dict.fromkeys(compared.types)]
    null = permutation_null(means, cells, random)
    return "types" if single_repeat_reliability(means, cells) > null[1] else "parameters"


def undecided_edges(compared: Compared, found: RoundReliability) -> tuple[str, ...]:
    """The edges on which the certainty is below SEPARATED; all of them where sizes decide."""
    by_edge = zip(dict.fromkeys(compared.edges), found.certainty.by_edge, strict=True)
    counts = Counter(compared.edges)
    return tuple(
        edge
        for edge, same in by_edge
        if counts[edge] > 1 and (found.basis == "parameters" or same < SEPARATED)
    )


def decisive_scores(
    compared: Compared, parameters: Sequence[int], basis: Basis, undecided: Collection[Hashable] = ()
) -> Float[np.ndarray, " o"]:
    """The scores that decide a round with shrinkage, to be compared within an edge; larger = to be pruned.

    Types decide nothing between two operators of one type, as the inputs of a node may be: such contests always use
    the operators' scores.

    Args:
        compared: the scores of all repeats.
        parameters: the size of every operator. With the basis "parameters" the smaller is pruned: where scores say
            nothing, accuracy is known to grow with the number of parameters.
        basis: what decides the round.
        undecided: edges that use the scores of their types in any case.

    Returns:
        One number per operator.
    """
    if basis == "parameters":
        return -np.asarray(parameters, dtype=float)
    scores, edges, types = compared.scores, compared.edges, compared.types
    by_type, by_operator = (
        shrunken_scores(scores, edges, types, share, compared.earlier)[0] for share in (0.0, None)
    )
    counts = Counter(zip(edges, types, strict=True))
    doubled = {edge for (edge, _), count in counts.items() if count > 1}
    unclear = [(basis == "types" or edge in undecided) and edge not in doubled for edge in edges]
    return np.where(unclear, by_type, by_operator)
