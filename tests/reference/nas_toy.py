"""Slow and obvious twins for the cell search: literal Algorithm 1, brute-force regions, planted scores."""

import itertools
import json
import math

import numpy as np
import torch

from mamltheory.nas.algorithms.algorithm1 import prune, record_scores
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.genotype import CELL_TYPES, EDGES, Candidates, Operator
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring.score import Score, jobs_by_repeat
from mamltheory.rng import numpy_generator


def network_by_network(score):
    """The scorer that calls ``score(network, round, repeat)`` for every job."""

    def scorer(candidates, jobs):
        return {job: score(job.network(candidates), job.round_index, job.repeat) for job in jobs}

    return scorer


def repeat_by_repeat(scores):
    """The scorer of ``scores(candidates, round, repeat)``, which returns those of all operators (supernet: None)."""

    def scorer(candidates, jobs):
        found = {}
        for index, asked in jobs_by_repeat(jobs).items():
            known = scores(candidates, *index)
            found |= {job: known[job.removed] for job in asked}
        return found

    return scorer


def planted_scorer(condition, regions):
    """The scorer of :func:`planted_score`."""
    return network_by_network(planted_score(condition, regions))


def planted_score(condition, regions):
    """C and R as sums over the live operators of planted values."""

    def score(candidates, *_):
        live = candidates.operators()
        return Score(1.0 + sum(condition[o] for o in live), sum(regions[o] for o in live))

    return score


def planted_values(seed, operators=None):
    draws = np.random.default_rng(seed)
    operators = Candidates().operators() if operators is None else operators
    return {o: float(v) for o, v in zip(operators, draws.permutation(len(operators)), strict=True)}


def argmin_per_edge(values):
    """On every edge the operator with the least value."""
    best = {}
    for operator, value in values.items():
        place = operator.cell, operator.edge
        if place not in best or value < values[best[place]]:
            best[place] = operator
    return set(best.values())


def literal_algorithm_1(score, operators):
    """The printed algorithm, with lists: ``operators`` is the order in which the supernet enumerates them."""
    live, rounds = list(operators), 0

    def network(names):
        def on(cell, edge):
            return tuple(o.operation for o in names if o.cell == cell and o.edge == edge)

        return Candidates(**{cell: tuple(on(cell, edge) for edge in EDGES) for cell in CELL_TYPES})

    while any(sum(o[:2] == p[:2] for o in live) > 1 for p in live):
        whole = score(network(live))
        parts = [score(network([o for o in live if o != removed])) for removed in live]
        by_c = sorted(range(len(live)), key=lambda j: -(whole.condition - parts[j].condition))
        by_r = sorted(range(len(live)), key=lambda j: whole.regions - parts[j].regions)
        s = [by_c.index(j) + by_r.index(j) for j in range(len(live))]
        doomed = []
        for cell, edge in itertools.product(CELL_TYPES, EDGES):
            here = [j for j, o in enumerate(live) if (o.cell, o.edge) == (cell, edge)]
            doomed.append(live[min(here, key=lambda j: s[j])])
        live = [o for o in live if o not in doomed]
        rounds += 1
    return set(live), rounds


def relabelled(operator, operations, edges, cells):
    """The operator under permutations of names, of edges and of cell types."""
    return Operator(cells[operator.cell], edges[operator.edge], operations[operator.operation])


def count_distinct_by_pairs(patterns):
    """Number of distinct rows by comparing each with all that came before."""
    seen = []
    for row in patterns:
        if not any(torch.equal(row, other) for other in seen):
            seen.append(row)
    return len(seen)


def intervals_of_shallow_relu(weight, bias, low, high):
    """Linear regions of x -> relu(w x + b) inside [low, high], by sorting the break points −b/w."""
    breaks = sorted({-b / w for w, b in zip(weight, bias, strict=True) if w != 0 and low < -b / w < high})
    return len(breaks) + 1


def score_chunk(state, scorer, settings, size=None):
    """The state after the first missing chunk of scores, in the next round if it was the last."""
    chunk = Round.of(state, settings).chunks(size)[0]
    now = Round.of(record_scores(state, scorer(state.candidates, chunk)), settings)
    return now.state if now.pending() else prune(now)


THREE = SearchState(Candidates(*(((OPERATIONS[:3],) * 9,) * 2)))
"""A search of which only the first three operations of every edge are left."""


@network_by_network
def noisy_scorer(candidates, round_index, repeat):
    """A score that depends on its arguments alone and looks random."""
    text = json.dumps([candidates.to_json(), round_index, repeat])
    draws = np.random.default_rng(list(text.encode()))
    return Score(float(np.exp(draws.normal())), float(draws.integers(50)))


def noisy_gradient_scorer(signal, noise, seed=0):
    """Scores by gradient: log C of a candidate is less the signal of what was taken out, with fresh noise a repeat."""

    @repeat_by_repeat
    def scorer(candidates, round_index, repeat):
        found = {None: Score(1.0, 1.0)}
        for o in candidates.operators():
            draw = numpy_generator(seed, f"noise {o}", round_index, repeat).standard_normal()
            found[o] = Score(math.exp(-signal.get(o.operation, 0.0) - noise * draw), 1.0)
        return found

    return scorer
