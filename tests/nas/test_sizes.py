"""Sizes are those of the networks themselves, and random cells can be had at a given size."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import (
    EDGES,
    Candidates,
    Cell,
    Edge,
    Genotype,
    Operator,
    published_genotypes,
    random_genotype,
)
from mamltheory.nas.network import NetworkSettings, derived_network, parameter_count
from mamltheory.nas.sizes import (
    Band,
    genotype_parameters,
    operator_parameters,
    random_genotype_like,
    random_genotype_within,
    reachable_sizes,
    usual_band,
)
from mamltheory.nas.space import PAPER, Space
from mamltheory.rng import generator
from tests.reference.nas_sizes import extreme_genotype

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


def test_the_usual_band_is_about_the_median_of_many_random_cells_and_a_function_of_the_seed():
    many = generator(7, "cells")
    sizes = [genotype_parameters(random_genotype(many, "two"), SMALL) for _ in range(200)]
    for seed in range(3):
        band = usual_band(SMALL, seed)
        assert np.quantile(sizes, 0.25) < (band.least + band.most) / 2 < np.quantile(sizes, 0.75)
        assert band.most / band.least == pytest.approx(1.08 / 0.92, rel=1e-3)
        assert band == usual_band(SMALL, seed)
        assert random_genotype_within(band, generator(seed, "within"), SMALL)
    assert usual_band(SMALL, 0) != usual_band(SMALL, 1)


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


@pytest.mark.parametrize(("inputs", "cells"), [("all", 5), ("two", 3)])
def test_the_reachable_sizes_are_those_of_the_smallest_and_the_largest_network(inputs, cells):
    size = NetworkSettings(channels=5, cells=cells, classes=7)
    extremes = [
        extreme_genotype(lambda genotype: genotype_parameters(genotype, size), inputs, best)
        for best in (min, max)
    ]
    counts = [parameter_count(derived_network(genotype, size, 0)) for genotype in extremes]
    assert reachable_sizes(size, inputs) == Band(*counts)


@given(seed=st.integers(0, 1000), inputs=st.sampled_from(["all", "two"]))
@settings(max_examples=10, deadline=None)
def test_every_random_genotype_is_of_a_reachable_size(seed, inputs):
    genotype = random_genotype(generator(seed, "genotype"), inputs)
    assert genotype_parameters(genotype, SMALL) in reachable_sizes(SMALL, inputs)


@given(seed=st.integers(0, 1000), least=st.integers(3500, 8000), inputs=st.sampled_from(["all", "two"]))
@settings(max_examples=6, deadline=None)
def test_a_drawn_genotype_lies_in_the_band_and_is_the_first_that_does(seed, least, inputs):
    """A uniform draw that is rejected outside of the band is uniform within it."""
    band = Band(least, least + 900)
    found = random_genotype_within(band, generator(seed, "within"), SMALL, inputs)
    stream = generator(seed, "within")
    drawn = random_genotype(stream, inputs)
    while not band.least <= genotype_parameters(drawn, SMALL) <= band.most:
        drawn = random_genotype(stream, inputs)
    assert found == drawn


def test_a_generator_gives_one_genotype_after_the_other():
    stream, band = generator(0, "within"), Band(5000, 6000)
    found = [random_genotype_within(band, stream, SMALL) for _ in range(5)]
    assert len(set(found)) == 5
    assert all(genotype_parameters(each, SMALL) in band for each in found)


def test_a_band_without_cells_is_refused_with_the_sizes_that_can_be_reached():
    least, most = reachable_sizes(SMALL).least, reachable_sizes(SMALL).most
    for band in (Band(1, least - 1), Band(most + 1, most + 500)):
        stream = generator(0, "within")
        before = stream.get_state()
        with pytest.raises(
            ConfigurationError, match=rf"with {band} parameters: .* from {least} to {most}; cho"
        ):
            random_genotype_within(band, stream, SMALL)
        assert torch.equal(stream.get_state(), before), "nothing is drawn for a band out of reach"


def test_a_band_that_no_draw_hits_is_refused_with_the_nearest_draw():
    stream = generator(0, "within")
    drawn = [genotype_parameters(random_genotype(stream), SMALL) for _ in range(20)]
    target = max(drawn) + 1
    with pytest.raises(ConfigurationError, match=rf"the nearest of 20 random cells has {max(drawn)}; choose"):
        random_genotype_within(Band(target, target), generator(0, "within"), SMALL, draws=20)
    with pytest.raises(ConfigurationError, match=r"from \d+ to \d+; the nearest of 1 random cells"):
        random_genotype_within(Band(target, target), generator(0, "within"), SMALL, draws=1)


def test_a_band_around_a_genotype_holds_its_size_in_the_middle():
    genotype = random_genotype(generator(0, "genotype"))
    parameters = genotype_parameters(genotype, SMALL)
    band = Band.around(genotype, SMALL)
    assert band == Band(round(0.92 * parameters), round(1.08 * parameters))
    assert Band.around(genotype, SMALL, 0.0) == Band(parameters, parameters)
    assert Band.around(genotype, SMALL, 1.0).least == 1
    assert parameters in band
    assert band.least in band
    assert band.most in band
    assert band.least - 1 not in band
    assert band.most + 1 not in band
    assert str(Band(36_000, 42_000)) == "36000:42000"


@pytest.mark.parametrize("limits", [(0, 5), (-3, 5), (6, 5)])
def test_bands_are_of_positive_numbers_in_order(limits):
    with pytest.raises(
        ConfigurationError, match="expected two positive numbers, the smaller first, as in 36000"
    ):
        Band(*limits)


def test_only_operations_on_the_inputs_of_a_reduction_cell_halve_the_resolution():
    """Of a skip, halving takes two convolutions; elsewhere it has no weights."""
    for cell in ("normal", "reduce"):
        for edge in EDGES:
            weights = operator_parameters(Operator(cell, edge, "skip_connect"))
            assert (weights > 0) == (cell == "reduce" and edge.source < 2)


def test_operations_have_these_weights_at_sixteen_channels():
    norm, pair = 32, 9 * 16 + 16 * 16
    for operator, expected in (
        (Operator("normal", Edge(0, 0), "conv_3x3"), pair + norm),
        (Operator("reduce", Edge(2, 1), "sep_conv_3x3"), 2 * (pair + norm)),
        (Operator("normal", Edge(1, 2), "conv_1x5_5x1"), 10 * 256 + norm),
        (Operator("reduce", Edge(0, 1), "skip_connect"), 256 + norm),
        (Operator("reduce", Edge(1, 2), "skip_connect"), 0),
        (Operator("normal", Edge(0, 0), "max_pool_3x3BN"), norm),
    ):
        assert operator_parameters(operator) == expected


@pytest.mark.parametrize("form", ["all", "two"])
def test_the_nearest_cell_is_the_first_of_the_nearest_draws_and_may_be_as_far_as_the_tolerance(form):
    genotype = random_genotype(generator(3, "genotype"), form)
    target, stream = genotype_parameters(genotype, SMALL), generator(0, "like")
    drawn = [random_genotype(stream, form) for _ in range(12)]
    gaps = [abs(genotype_parameters(each, SMALL) - target) / target for each in drawn]
    nearest = drawn[gaps.index(min(gaps))]
    assert random_genotype_like(genotype, 12, min(gaps), generator(0, "like"), SMALL) == nearest
    with pytest.raises(ConfigurationError, match="none of 12"):
        random_genotype_like(genotype, 12, min(gaps) * (1 - 1e-9), generator(0, "like"), SMALL)
    itself = random_genotype(generator(0, "like"), form)
    found = random_genotype_like(itself, 2, 99.0, generator(0, "like"), SMALL)
    assert found == drawn[1], "the cell itself is none"


def test_the_nearest_draw_to_a_band_above_it_is_named():
    stream = generator(0, "within")
    drawn = [genotype_parameters(random_genotype(stream), SMALL) for _ in range(20)]
    target = sorted(drawn)[0] - 1
    with pytest.raises(ConfigurationError, match=rf"the nearest of 20 random cells has {target + 1}; choose"):
        random_genotype_within(Band(target, target), generator(0, "within"), SMALL, draws=20)
    assert inspect.signature(random_genotype_within).parameters["draws"].default == 20_000


def test_of_the_edges_of_a_node_the_smallest_or_the_largest_two_count():
    """In a reduction a skip has weights on inputs alone, so that edges differ."""
    space = Space({name: PAPER.operations[name] for name in ("skip_connect", "max_pool_3x3BN")}, nodes=2)
    skip, pool = (lambda source, name=name: (name, source) for name in space.operations)
    largest = Genotype(
        Cell(((pool(0), pool(1)),) * 2, space),
        Cell(((skip(0), skip(1)),) * 2, space),
    )
    smallest = Genotype(
        Cell(((skip(0), skip(1)),) * 2, space),
        Cell(((pool(0), pool(1)), (pool(0), skip(2))), space),
    )
    sizes = [parameter_count(derived_network(each, SMALL, 0)) for each in (smallest, largest)]
    assert reachable_sizes(SMALL, "two", space) == Band(*sizes)
