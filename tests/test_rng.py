import subprocess
import sys

import numpy as np
import pytest
import torch

from mamltheory import generator
from mamltheory.errors import ValueRangeError
from mamltheory.rng import derived_seed, numpy_generator


def draw(*key):
    return torch.randn(4, generator=generator(*key))


def test_streams_do_not_depend_on_the_order_in_which_they_are_opened():
    keys = [(0, "init", 3), (0, "tasks"), (1, "init", 3), (0, "init", 4)]
    forwards = [draw(*key) for key in keys]
    backwards = [draw(*key) for key in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_the_global_state_is_neither_read_nor_written():
    before = torch.get_rng_state()
    first = draw(0, "init")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(draw(0, "init"), first)


def test_every_part_of_the_key_makes_another_stream():
    keys = [
        (s, p, *i)
        for s in (-1, 0, 1, 10)
        for p in ("a", "b", "a1")
        for i in ((), (0,), (1,), (1, 0), (0, 1), (10,))
    ]
    seeds = {derived_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_purpose_that_could_be_mistaken_for_another_with_indices_is_refused():
    with pytest.raises(ValueRangeError, match="free of '/'"):
        derived_seed(0, "a/1", 2)  # the key of purpose "a" with indices 1, 2
    assert derived_seed(0, "a/1") != derived_seed(0, "a", 1)


def test_streams_are_uncorrelated():
    """Largest correlation of 780 pairs of 1000 draws: about 3.2/√1000 = 0.10 by chance."""
    draws = np.stack([numpy_generator(0, "stream", i).standard_normal(1000) for i in range(40)])
    correlations = np.corrcoef(draws) - np.eye(40)
    assert np.abs(correlations).max() < 0.15


def test_seeds_are_the_same_in_another_process():
    """Unlike hash(), which Python salts in every process."""
    code = "from mamltheory.rng import derived_seed; print(derived_seed(7, 'init', 3))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(told.stdout) == derived_seed(7, "init", 3)
