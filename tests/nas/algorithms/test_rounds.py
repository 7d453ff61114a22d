"""What a round needs and knows, from scores that are planted one by one."""

import math

import numpy as np
import pytest

from mamltheory.nas.algorithms.algorithm1 import prune, record_scores, run_search, step
from mamltheory.nas.algorithms.ranking import ranks
from mamltheory.nas.algorithms.rounds import Round, competitors, rounds_ahead, shrunken_differences
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import Decision, SearchState
from mamltheory.nas.algorithms.stopping import Certainty
from mamltheory.nas.genotype import CELL_TYPES, Candidates
from mamltheory.nas.scoring.score import Job, Score
from mamltheory.nas.space import PAPER, Space
from mamltheory.rng import numpy_generator
from tests.reference.nas_toy import THREE, noisy_scorer

ALONE = SearchSettings(criteria=("condition",), repeats=9, stopping=True, least_repeats=3)
PAIR = Space({name: PAPER.operations[name] for name in ("skip_connect", "conv_3x3")}, nodes=1)
START = SearchState(Candidates.of(PAIR))
OPERATORS = START.candidates.operators()


def scored(repeats, settings=ALONE, change=lambda _, score: score):
    """The start with noisy scores of some repeats."""
    state = START
    for repeat in repeats:
        for job in Round.of(START, settings).jobs(repeat):
            random = numpy_generator(0, f"{job.removed} {job.pair}", repeat)
            score = Score(float(np.exp(random.standard_normal())), float(random.integers(5)))
            state = record_scores(state, {job: change(job, score)})
    return state


def test_a_repeat_counts_as_complete_with_its_last_score():
    full = scored(range(2))
    jobs = Round.of(START, ALONE).jobs(2)
    assert jobs == tuple(Job(0, 2, removed) for removed in (None, *OPERATORS))
    for known, complete in ((jobs[:1], 2), (jobs[:-1], 2), (jobs, 3)):
        state = record_scores(full, dict.fromkeys(known, Score(1.0, 1.0)))
        assert Round.of(state, ALONE).complete == complete
    more = scored(range(4), SearchSettings(repeats=3, criteria=("condition",)))
    assert Round.of(more, SearchSettings(repeats=2, criteria=("condition",))).complete == 2


def test_a_round_asks_for_its_fewest_repeats_and_for_those_ahead_up_to_the_most():
    now = Round.of(START, ALONE)
    assert now.needed == (3, None)
    assert [chunk[0].repeat for chunk in now.chunks()] == [0, 1, 2]
    assert [chunk[0].repeat for chunk in now.chunks(ahead=2)] == [0, 1, 2, 3, 4]
    assert {job.repeat for job in now.pending(100)} == set(range(9))
    assert now.pending() == tuple(job for repeat in range(3) for job in now.jobs(repeat))
    assert [len(chunk) for chunk in now.chunks(4)] == [4, 4, 1] * 3
    fixed = Round.of(START, SearchSettings(criteria=("condition",), repeats=2))
    assert fixed.needed == (2, "fixed")
    assert {job.repeat for job in fixed.pending(5)} == {0, 1}
    assert Round.of(START, SearchSettings(criteria=(), repeats=2)).pending() == ()


def test_a_round_goes_on_repeat_by_repeat_until_a_rule_stops_it(monkeypatch):
    asked = []

    def certainty(compared, random, shrinkage):
        asked.append((compared.scores.shape[1], random.integers(10**9), shrinkage))
        return Certainty(0.9 if compared.scores.shape[1] >= 5 else 0.1, 0.5, ())

    monkeypatch.setattr("mamltheory.nas.algorithms.rounds.certainty", certainty)
    assert Round.of(scored(range(4)), ALONE).needed == (5, None)
    expected = [numpy_generator(0, "stopping", 0, count).integers(10**9) for count in (3, 4)]
    assert asked == [(3, expected[0], False), (4, expected[1], False)]
    assert Round.of(scored(range(6)), ALONE).needed == (5, "agreement")
    few = SearchSettings(criteria=("condition",), repeats=2, stopping=True)
    assert Round.of(scored(range(2)), few).needed == (2, "budget")
    assert Round.of(START, few).needed == (2, None)


def test_repeats_that_were_not_needed_leave_no_failure():
    settings = SearchSettings(criteria=("condition",), repeats=2)

    def fails(job, score):
        return Score(math.inf, 1.0) if job.removed == OPERATORS[0] and job.repeat else score

    state = scored(range(3), SearchSettings(criteria=("condition",), repeats=3), fails)
    assert prune(Round.of(state, settings)).reports[0].failures == {"unknown": 1}
    kept = {job: score for job, score in state.scores.items() if job.repeat != 1}
    state = record_scores(START, kept | {Job(0, 1, o): Score(1.0, 1.0) for o in (None, *OPERATORS)})
    assert prune(Round.of(state, settings)).reports[0].failures == {}


def test_both_criteria_decide_by_sums_of_ranks_within_each_repeat():
    both = SearchSettings(repeats=3, difference="log")
    state = scored(range(3), both)
    now = Round.of(state, both)
    table = [[state.scores[Job(0, k, o)] for o in (None, *OPERATORS)] for k in range(3)]
    c = np.array([[math.log(row[0].condition / each.condition) for each in row[1:]] for row in table])
    r = np.array([[row[0].regions - each.regions for each in row[1:]] for row in table])
    sums = [np.add(ranks((-a).tolist(), "min"), ranks(b.tolist(), "min")) for a, b in zip(c, r, strict=True)]
    np.testing.assert_array_equal(now.draws(3), -np.transpose(sums))
    np.testing.assert_array_equal(now.draws(2), -np.transpose(sums[:2]))
    np.testing.assert_allclose(now.mean_differences("condition"), c.mean(0))
    np.testing.assert_allclose(now.mean_differences("regions"), r.mean(0))
    regions = Round.of(state, SearchSettings(repeats=3, criteria=("regions",)))
    np.testing.assert_array_equal(regions.draws(3), -r.T)


def test_a_repeat_without_a_difference_is_no_draw_and_an_infinite_one_cannot_be_compared():
    settings = SearchSettings(criteria=("condition",), repeats=4)

    def planted(job, score):
        if job.repeat == 1:
            return Score(2.0, 1.0)
        return Score(math.inf, 1.0) if (job.repeat, job.removed) == (2, OPERATORS[3]) else score

    now = Round.of(scored(range(4), settings, planted), settings)
    draws = now.draws(4)
    assert draws.shape == (8, 3)
    assert draws[3, 1] == -math.inf
    compared = now.compared(draws)
    assert compared.operators == tuple(o for o in OPERATORS if o != OPERATORS[3])
    np.testing.assert_array_equal(compared.scores, np.delete(draws, 3, 0))
    assert compared.edges == [now.contest_of[o] for o in compared.operators]
    assert compared.earlier is None
    assert now.compared(draws[:, [0]]) is None
    every_other = np.where(np.arange(8)[:, None] % 2, draws, math.inf)
    assert now.compared(every_other) is None, "one operator is left on each edge"
    assert now.mean_differences("condition")[3] == -math.inf


@pytest.mark.parametrize("inputs", ["all", "two"])
@pytest.mark.parametrize("nodes", [1, 3, 4])
def test_the_rounds_ahead_are_those_that_a_search_takes(inputs, nodes):
    space = Space({name: PAPER.operations[name] for name in list(PAPER.operations)[:3]}, nodes=nodes)
    whole = Candidates.of(space)
    settings = SearchSettings(criteria=(), inputs=inputs)
    for start in (whole, whole.without(*whole.operators()[1:5], whole.operators()[-1])):
        state, taken = SearchState(start), []
        while not Round.of(state, settings).is_finished:
            taken.append((len(state.candidates.operators()), len(competitors(state.candidates, inputs))))
            state = step(state, None, settings)
        assert rounds_ahead(start, inputs) == taken
        assert {report.repeats for report in state.reports} == {0}
        assert all((len(node) == 2) for kind in CELL_TYPES for node in getattr(state.candidates.genotype(), kind).nodes
                   if inputs == "two")  # fmt: skip


def test_with_shrinkage_the_finite_repeats_of_all_rounds_are_kept_to_its_end():
    settings = SearchSettings(criteria=("condition",), repeats=3, shrinkage=True)
    broken = []

    def scorer(candidates, jobs):
        found = noisy_scorer(candidates, jobs)
        for job in jobs:
            if job.round_index == 0 and job.repeat == 1 and job.removed == broken[0]:
                found[job] = Score(math.inf, 1.0)
        return found

    broken.append(THREE.candidates.operators()[4])
    first = step(THREE, scorer, settings)
    assert broken[0] in first.candidates.operators(), "it stays, so its repeat tells nothing of it"
    second = Round.of(first, settings)
    assert set(first.history) == set(second.operators)
    table = noisy_scorer(
        THREE.candidates, [Job(0, k, o) for k in range(3) for o in (None, *second.operators)]
    )
    for operator in second.operators:
        expected = [
            math.log(table[Job(0, k, None)].condition / table[Job(0, k, operator)].condition) for k in (0, 2)
        ]
        assert first.history[operator] == pytest.approx(expected)
    compared = second.compared(np.arange(108.0).reshape(36, 3) ** 2)
    np.testing.assert_array_equal(compared.earlier, [first.history[o] for o in second.operators])
    assert run_search(scorer, settings, first).history == {}


def test_shrinkage_ranks_operators_with_an_infinite_draw_last_or_first():
    settings = SearchSettings(criteria=("condition",), repeats=4, shrinkage=True, common_random_numbers=False)

    def planted(job, score):
        infinite = (
            job.removed == OPERATORS[0] or (job.removed is None and job.pair == OPERATORS[5])
        ) and job.repeat
        return Score(math.inf, 1.0) if infinite else score

    now = Round.of(scored(range(4), settings, planted), settings)
    found = prune(now).reports[0].reliability
    values = shrunken_differences(now, found)
    assert (values[0], values[5]) == (-math.inf, math.inf)
    assert all(map(math.isfinite, values[1:5] + values[6:]))


def test_a_decision_is_not_undecided_unless_it_says_so():
    assert not Decision(0, OPERATORS[0], 0.0, 0.0, 1, True, False).undecided
