"""A search by halving of tiny networks on few images, which ends after a second."""

import dataclasses

import pytest

from experiments.search import search
from experiments.search.search import search_cells
from mamltheory.runtime.checkpoint import load_state
from tests.experiments.tiny import few_glyphs, search_settings

BAND = "5000:8000"


@pytest.fixture(scope="module")
def enough_images():
    """Glyphs of six classes a split with 16 images each, as the tasks of halving need."""
    with few_glyphs(16) as data:
        yield data


def halving_settings(folder, **others):
    usual = {
        "method": "halving",
        "parameters": BAND,
        "rungs": (4, 2),
        "rung_epochs": (1, 3),
        "rank_by": ("accuracy", "loss"),
        "search_milestones": (2,),
        "search_batch_size": 32,
        "validation_tasks": 20,
        "confirm": 2,
        "anyway": True,
    }
    return search_settings(folder, **usual | others)


@pytest.fixture(scope="module")
def halved(tmp_path_factory, enough_images):  # noqa: ARG001
    """Settings of a search that has finished in its folder."""
    settings = halving_settings(tmp_path_factory.mktemp("halved") / "search")
    assert search.search_and_draw(settings) == 0
    return settings


def results(settings):
    """What two searches of one seed have in common to the last bit."""
    tensors = load_state(settings.out / "train" / "state", print).tensors
    names = ("genotype.json", "search.json")
    return [(settings.out / name).read_bytes() for name in names], {
        name: value.numpy().tobytes() for name, value in tensors.items()
    }


def searched_again(settings, **others):
    again = dataclasses.replace(settings, **others)
    search_cells(again)
    return results(again)


def backwards(jobs):
    """In the place of ``spread_over``: what is asked for last comes first."""
    del jobs
    return _Backwards()


class _Backwards:
    def __enter__(self):
        return lambda function, items: ((item, function(item)) for item in reversed([*items]))

    def __exit__(self, *_):
        return None
