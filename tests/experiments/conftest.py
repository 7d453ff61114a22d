"""A search and a training of tiny networks on few images, shared by the tests of a module."""

import pytest

from experiments import genotypes
from experiments.search import search
from experiments.training import train
from tests.experiments.tiny import GENOTYPE, begun, few_glyphs, train_settings


@pytest.fixture(scope="module")
def few_images():
    """Glyphs of a few classes in the place of the usual ones, for 16 pixels."""
    with few_glyphs(8) as data:
        yield data


@pytest.fixture(scope="module")
def searched(tmp_path_factory, few_images):  # noqa: ARG001
    """Settings of a search that has finished in its folder."""
    settings = begun(tmp_path_factory.mktemp("searched") / "search")
    assert search.search_and_draw(settings) == 0
    return settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_images):  # noqa: ARG001
    """Settings of a training that has finished in its folder."""
    folder = tmp_path_factory.mktemp("trained")
    genotypes.write_genotype(folder / "cell.json", GENOTYPE)
    settings = train_settings(folder / "train", genotype=folder / "cell.json")
    assert train.train_and_draw(settings) == 0
    return settings
