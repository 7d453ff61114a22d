import json

import numpy as np
import pytest

from mamltheory.nas.algorithms.algorithm1 import prune, record_scores, run_search
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import state_from_json, state_to_json
from tests.reference.nas_toy import THREE, noisy_scorer, score_chunk


@pytest.fixture(scope="module")
def uninterrupted():
    return run_search(noisy_scorer, SearchSettings(repeats=2), THREE)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_a_search_resumed_from_json_after_every_chunk_equals_the_uninterrupted_one(uninterrupted, size):
    search_settings, state = SearchSettings(repeats=2), THREE
    while not Round.of(state, search_settings).is_finished:
        state = score_chunk(state, noisy_scorer, search_settings, size)
        state = state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False)))
    assert state == uninterrupted


def test_the_order_in_which_scores_arrive_does_not_matter(uninterrupted):
    search_settings, state = SearchSettings(repeats=2), THREE
    while not (now := Round.of(state, search_settings)).is_finished:
        jobs = now.pending()
        for i in np.random.default_rng(state.round_index).permutation(len(jobs)):
            state = record_scores(state, noisy_scorer(state.candidates, [jobs[i]]))
        state = prune(Round.of(state, search_settings))
    assert state == uninterrupted


@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)]
)
def test_the_size_of_chunks_is_irrelevant_and_a_repeat_is_always_cut_at_the_same_places(uninterrupted, size):
    search_settings, state = SearchSettings(repeats=2), THREE
    while not (now := Round.of(state, search_settings)).is_finished:
        before = now.chunks(size)
        assert max(map(len, before)) <= size
        for chunk in before[::2]:
            state = record_scores(state, noisy_scorer(state.candidates, chunk))
        assert Round.of(state, search_settings).chunks(size) == before[1::2]
        for chunk in before[1::2]:
            state = record_scores(state, noisy_scorer(state.candidates, chunk))
        state = prune(Round.of(state, search_settings))
    assert state == uninterrupted
