"""The ranks of torchrun: the search is the same, whoever computes its scores."""

import pytest

from experiments.search import search
from mamltheory.runtime.checkpoint import load_state
from tests.experiments.tiny import nearly_done, search_settings
from tests.runtime.ranks import run_ranks

FLAGS = "--ways 2 --tasks 1 --device cpu --no-regions --outputs sum --channels 4 --cells 3 --stem-stride 4"


def found_by(ranks, folder, protocol, repeats):
    """State and genotype of a search from :func:`nearly_done` on, computed by this many ranks."""
    search.write_state(search_settings(folder), search.SavedSearch(nearly_done()))
    flags = [*FLAGS.split(), "--image-size", "16", "--repeats", str(repeats), "--protocol", protocol]
    ends = run_ranks(ranks, ["-m", "experiments", "search", "--out", str(folder), *flags], timeout=500)
    assert [code for code, _, _ in ends] == [0] * ranks, ends
    assert all(not out for _, out, _ in ends[1:])
    return load_state(folder / "state", print).state["search"], (folder / "genotype.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "repeats"), [("paper", 2), ("stable", 4)])
def test_the_search_is_the_same_in_one_process_and_in_two_ranks_of_torchrun(tmp_path, protocol, repeats):
    one, two = (found_by(ranks, tmp_path / str(ranks), protocol, repeats) for ranks in (1, 2))
    assert one == two
