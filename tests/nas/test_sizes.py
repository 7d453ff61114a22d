"""Sizes are those of the networks themselves, and random cells can be had at a given size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import EDGES, Candidates, published_genotypes, random_genotype
from mamltheory.nas.network import NetworkSettings, derived_network, parameter_count
from mamltheory.nas.sizes import genotype_parameters, operator_parameters, random_genotype_like
from mamltheory.rng import generator

SMALL = NetworkSettings(channels=4, cells=3, classes=5)


@given(seed=st.integers(0, 1000), inputs=st.sampled_from(["all", "two"]), cells=st.integers(3, 5))
@settings(max_examples=5, deadline=None)
def test_the_size_of_a_genotype_is_that_of_its_network(seed, inputs, cells):
    genotype = random_genotype(generator(seed, "genotype"), inputs)
    size = NetworkSettings(channels=6, cells=cells, classes=7)
    assert genotype_parameters(genotype, size) == parameter_count(derived_network(genotype, size, 0))


def test_published_cells_have_their_published_sizes():
    for cell in published_genotypes():
        size = NetworkSettings(cells=cell.cells, classes=cell.classes)
        assert genotype_parameters(cell.genotype, size) == cell.parameters


@pytest.mark.parametrize("inputs", ["all", "two"])
def test_a_random_cell_of_equal_size_is_another_cell_of_the_same_form_near_it(inputs):
    genotype = random_genotype(generator(0, "genotype"), inputs)
    target = genotype_parameters(genotype, SMALL)
    found = [random_genotype_like(genotype, 40, 0.1, generator(0, "like", i), SMALL) for i in range(2)]
    for each in found:
        assert each != genotype
        assert [len(n) for n in each.reduce.nodes] == [len(n) for n in genotype.reduce.nodes]
        assert abs(genotype_parameters(each, SMALL) - target) <= 0.1 * target
    assert len({str(each) for each in found}) == 2
    assert found[0] == random_genotype_like(genotype, 40, 0.1, generator(0, "like", 0), SMALL)


def test_of_more_draws_the_nearest_is_at_least_as_near():
    genotype = random_genotype(generator(1, "genotype"))
    target = genotype_parameters(genotype, SMALL)
    gaps = [
        abs(
            genotype_parameters(random_genotype_like(genotype, n, 9.0, generator(0, "like"), SMALL), SMALL)
            - target
        )
        for n in (1, 4, 30)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < gaps[0]


def test_a_size_that_no_draw_comes_near_is_refused_with_the_nearest():
    largest = published_genotypes()[9].genotype
    with pytest.raises(ConfigurationError, match=r"none of 3 .* the nearest is .* away; draw more"):
        random_genotype_like(largest, 3, 0.0001, generator(0, "like"), SMALL)
    for draws, tolerance in ((0, 0.1), (1, -1.0), (1, float("nan"))):
        with pytest.raises(ConfigurationError, match="expected at least"):
            random_genotype_like(largest, draws, tolerance, generator(0, "like"), SMALL)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_cell_has_more_parameters_than_that_of_long_kernels_alone(seed):
    edges = tuple([("conv_1x5_5x1",)] * len(EDGES))
    largest = genotype_parameters(Candidates(edges, edges).genotype(), SMALL)
    assert genotype_parameters(random_genotype(generator(seed, "genotype"), "all"), SMALL) <= largest
    for operator in Candidates().operators():
        long = operator._replace(operation="conv_1x5_5x1")
        assert operator_parameters(operator) <= operator_parameters(long)
