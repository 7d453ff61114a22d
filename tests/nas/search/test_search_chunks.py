import json

import numpy as np
import pytest

from mamltheory.nas.search.algorithm1 import (
    SearchSettings,
    evaluate,
    is_finished,
    pending,
    prune,
    record,
    run_search,
    step,
)
from mamltheory.nas.search.rounds import chunks
from mamltheory.nas.search.state import state_from_json, state_to_json
from tests.reference.nas_toy import THREE, noisy_scorer


@pytest.fixture(scope="module")
def uninterrupted():
    return run_search(noisy_scorer, SearchSettings(repeats=2), THREE)


@pytest.mark.parametrize("limit", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_a_search_resumed_from_json_after_every_chunk_equals_the_uninterrupted_one(uninterrupted, limit):
    search_settings, state = SearchSettings(repeats=2), THREE
    while not is_finished(state, search_settings):
        state = step(state, noisy_scorer, search_settings, limit)
        state = state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False)))
    assert state == uninterrupted


def test_the_order_in_which_scores_arrive_does_not_matter(uninterrupted):
    search_settings, state = SearchSettings(repeats=2), THREE
    while not is_finished(state, search_settings):
        jobs = list(pending(state, search_settings))
        for i in np.random.default_rng(state.round_index).permutation(len(jobs)):
            found = evaluate([jobs[i]], state.candidates, noisy_scorer, search_settings)
            state = record(state, found)
        state = prune(state, search_settings)
    assert state == uninterrupted


def batched(scorer, sizes):
    """The same scorer for many networks at once, which notes how many."""

    def score(candidates, round_index, repeat):
        return scorer(candidates, round_index, repeat)

    def batch(networks, round_index, repeat):
        sizes.append(len(networks))
        return [scorer(each, round_index, repeat) for each in networks]

    score.batch = batch
    return score


@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)]
)
def test_the_size_of_chunks_is_irrelevant_and_a_repeat_is_always_cut_at_the_same_places(uninterrupted, size):
    search_settings, state, sizes = SearchSettings(repeats=2), THREE, []
    scorer = batched(noisy_scorer, sizes)
    while not is_finished(state, search_settings):
        before = chunks(state, search_settings, size)
        for chunk in before[::2]:
            state = record(state, evaluate(chunk, state.candidates, scorer, search_settings))
        assert chunks(state, search_settings, size) == before[1::2]
        for chunk in before[1::2]:
            state = record(state, evaluate(chunk, state.candidates, scorer, search_settings))
        state = prune(state, search_settings)
    assert state == uninterrupted
    assert max(sizes) <= size
