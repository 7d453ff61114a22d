import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mamltheory.errors import ShapeError, UnsupportedModelError
from mamltheory.nas.genotype import Candidates, Edge, Operator, random_genotype
from mamltheory.nas.scoring import linear_regions as regions
from mamltheory.nas.scoring.linear_regions import (
    activation_patterns,
    densify,
    distinct_patterns,
    random_patches,
    region_count,
    region_counts,
    thin_network,
)
from mamltheory.nas.space import PAPER, Space
from mamltheory.rng import generator
from tests.reference.nas_regions import (
    count_by_products,
    exact_intervals,
    released_way,
    unshared_patterns,
)
from tests.reference.nas_toy import count_distinct_by_pairs, intervals_of_shallow_relu


def patches(count=200, seed=0):
    smooth = nn.functional.interpolate(
        torch.rand(10, 3, 5, 5, generator=generator(seed, "images")), size=20, mode="bilinear"
    )
    return random_patches(smooth, count, generator(seed, "patches"))


@given(rows=st.integers(1, 40), bits=st.integers(1, 20), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_packed_rows_are_counted_as_by_comparing_all_pairs(rows, bits, seed):
    few = torch.rand(rows, bits, generator=generator(seed, "bits")) > 0.8
    assert distinct_patterns(few) == count_distinct_by_pairs(few)


@pytest.mark.paper("Eq. (15)")
@given(width=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_on_a_fine_grid_the_count_is_the_exact_number_of_intervals_of_a_shallow_network(width, seed):
    stream = generator(seed, "toy")
    weight = torch.randn(width, generator=stream, dtype=torch.float64)
    bias = torch.randn(width, generator=stream, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(1, width, dtype=torch.float64), nn.ReLU())
    with torch.no_grad():
        network[0].weight.copy_(weight[:, None])
        network[0].bias.copy_(bias)
    breaks = (-bias / weight).sort().values
    inside = breaks[(breaks > -3) & (breaks < 3)]
    ends = torch.cat([torch.tensor([-3.0]).double(), inside, torch.tensor([3.0]).double()])
    between = (ends[1:] + ends[:-1]) / 2
    grid = torch.cat([between, torch.linspace(-3, 3, 500, dtype=torch.float64)])[:, None]
    exact = intervals_of_shallow_relu(weight.tolist(), bias.tolist(), -3.0, 3.0)
    assert distinct_patterns(activation_patterns(network, grid)) == exact
    assert not any(module._forward_hooks for module in network.modules())


@given(widths=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_in_one_dimension_a_dense_sample_finds_exactly_the_regions_that_the_kinks_bound(widths, seed):
    stream = generator(seed, "deep toy")
    sizes = [1, *widths]
    linear = [nn.Linear(a, b, dtype=torch.float64) for a, b in zip(sizes, widths, strict=False)]
    with torch.no_grad():
        for layer in linear:
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    pieces = exact_intervals([(each.weight.tolist(), each.bias.tolist()) for each in linear], -3, 3)
    network = nn.Sequential(*(module for each in linear for module in (each, nn.ReLU())))
    exact = len({pattern for _, _, pattern in pieces})
    middles = torch.tensor([float(a + b) / 2 for a, b, _ in pieces], dtype=torch.float64)
    sample = torch.cat([middles, torch.linspace(-3, 3, 3000, dtype=torch.float64)])[:, None]
    assert distinct_patterns(activation_patterns(network, sample)) == exact
    kinks = {float(a) for a, _, _ in pieces[1:]}
    assert exact <= len(kinks) + 1
    assert distinct_patterns(activation_patterns(network, sample[:1])) == 1


def test_an_interval_that_is_known_by_hand_is_cut_where_it_should_be():
    pieces = exact_intervals([([[1.0], [-1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [-0.5])], -1, 1)
    assert [(float(a), float(b)) for a, b, _ in pieces] == [(-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1)]
    assert len({pattern for _, _, pattern in pieces}) == 4


@given(seed=st.integers(0, 1000))
@settings(max_examples=3, deadline=None)
def test_the_released_way_of_counting_gives_the_same_number(seed):
    operators = Candidates().operators()
    candidates = Candidates().without(operators[seed % len(operators)])
    x, network = patches(150, seed), thin_network(Candidates(), seed)
    bits = unshared_patterns(network, candidates, x)
    assert bits.shape[1] > 1000
    assert (
        region_count(candidates, x, seed) == count_by_products(bits) == released_way(network, candidates, x)
    )


def test_all_candidates_together_have_the_counts_that_they_have_one_by_one():
    operators = Candidates().operators()
    finished = random_genotype(generator(2, "g")).candidates()
    candidates = [*(Candidates().without(o) for o in operators[::9]), Candidates(), finished]
    x = patches(120)
    expected = []
    for each in candidates:
        network = thin_network(each, 5)
        densify(network)
        expected.append(distinct_patterns(activation_patterns(network, x, network.feature_map)))
    assert region_counts(candidates, x, 5) == expected
    assert region_counts(candidates[::-1], x, 5) == expected[::-1]
    assert len(set(expected)) > 1


@given(seed=st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_matrices_in_place_of_convolutions_switch_the_same_relus(seed):
    candidates = random_genotype(generator(seed, "g"), "all").candidates()
    if seed % 2:
        candidates = Candidates()
    x = patches(60).double()
    slow, fast = (thin_network(candidates, seed).double() for _ in range(2))
    densify(fast)
    assert not any(
        isinstance(m, nn.Conv2d) for name, m in fast.named_modules() if ".layer." not in f".{name}."
    )
    torch.testing.assert_close(fast.feature_map(x), slow.feature_map(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(*(activation_patterns(n, x, n.feature_map) for n in (fast, slow)))


def test_the_fast_count_is_the_number_of_distinct_patterns_of_the_plain_network():
    x, candidates = patches(), Candidates()
    network = thin_network(candidates, 4)
    slow = count_distinct_by_pairs(activation_patterns(network, x, network.feature_map))
    assert region_count(candidates, x, 4) == slow
    assert 1 < slow <= len(x)


def test_a_thin_network_has_the_relus_of_two_cells_each_computed_once():
    """Normal cell: 2 inputs, 4 sources, second ReLU of 9 separable convolutions, all 1 × 3 × 3; and so on."""
    network = thin_network(Candidates(), 0)
    bits = activation_patterns(network, patches(5), network.feature_map).shape[1]
    normal = (2 + 4 + 9) * 9
    reduce = 9 + 27 + (2 * 18 + 6 * 8) + (2 * 8 + 3 * 8)
    assert bits == normal + reduce + 6 * 4


def test_removing_the_separable_convolutions_removes_relus():
    doomed = [Operator("normal", Edge(i, j), "sep_conv_3x3") for i, j in ((0, 0), (1, 1), (2, 3))]
    whole, part = (thin_network(c, 0) for c in (Candidates(), Candidates().without(*doomed)))
    widths = [activation_patterns(n, patches(4), n.feature_map).shape[1] for n in (whole, part)]
    assert widths[0] - widths[1] == 27


def test_the_count_is_reproducible_and_bounded_by_the_number_of_patches():
    x = patches(80)
    assert region_count(Candidates(), x, 0) == region_count(Candidates(), x, 0) <= 80
    repeated = x[:7].repeat(10, 1, 1, 1)
    assert region_count(Candidates(), repeated, 0) <= 7


def test_patches_are_crops_of_one_channel():
    images = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).reshape(2, 3, 6, 5)
    crops = random_patches(images, 1000, generator(0, "patches"))
    every = {
        tuple(images[n, c, i : i + 3, j : j + 3].flatten().tolist())
        for n in range(2)
        for c in range(3)
        for i in range(4)
        for j in range(3)
    }
    drawn = {tuple(crop.flatten().tolist()) for crop in crops}
    assert crops.shape == (1000, 1, 3, 3)
    assert drawn == every  # of 72 places one is missed with a probability of 1e-4


def test_an_image_of_the_size_of_a_patch_is_its_only_patch():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.equal(random_patches(image, 4, generator(0, "patches")), image.expand(4, 1, 3, 3))


def test_what_has_no_regions_is_refused():
    with pytest.raises(ShapeError, match="does not fit"):
        random_patches(torch.zeros(1, 3, 2, 8), 4, generator(0, "p"))
    with pytest.raises(UnsupportedModelError, match="no linear regions"):
        activation_patterns(nn.Linear(2, 2), torch.zeros(1, 2))


def test_weights_that_an_interruption_left_half_drawn_are_drawn_again(monkeypatch):
    before, drawn, usual = region_counts([Candidates()], patches(), 5), [], regions.draw_weights

    def interrupted(name, *how):
        drawn.append(name)
        if len(drawn) > 20:
            raise KeyboardInterrupt
        usual(name, *how)

    with monkeypatch.context() as patched:
        patched.setattr(regions, "draw_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            region_counts([Candidates()], patches(), 6)
    assert region_counts([Candidates()], patches(), 5) == before
    fresh = dict(thin_network(Candidates(), 5).named_parameters())
    kept = regions._thin(PAPER)
    assert all(torch.equal(layer.weight, fresh[f"{name}.weight"]) for name, layer in kept.layers)


def test_counts_do_not_depend_on_which_weights_were_drawn_before():
    candidates = [Candidates(), Candidates().without(Candidates().operators()[4])]
    counts = {seed: region_counts(candidates, patches(), seed) for seed in (5, 6, 0)}
    assert len(set(map(tuple, counts.values()))) > 1
    for seed in (6, 0, 5):
        assert region_counts(candidates, patches(), seed) == counts[seed]
        plain = [thin_network(each, seed) for each in candidates]
        alone = [distinct_patterns(activation_patterns(net, patches(), net.feature_map)) for net in plain]
        assert alone == counts[seed]


def test_consecutive_convolutions_become_one_matrix_and_others_one_each():
    """Two of a sequence with nothing between them, one after the ReLU, and two that a module names."""
    chain = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.Conv2d(2, 2, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(2, 1, 1, bias=False),
    )
    pair = nn.ModuleDict({"a": nn.Conv2d(1, 1, 1, bias=False), "b": nn.Conv2d(1, 1, 1, bias=False)})
    x = torch.randn(3, 1, 3, 3, generator=generator(0, "x"))
    expected = chain(x)
    densify(nn.ModuleList([chain, pair]))
    assert [type(child).__name__ for child in chain] == ["_Dense", "Identity", "ReLU", "_Dense"]
    assert [type(child).__name__ for child in pair.values()] == ["_Dense", "_Dense"]
    torch.testing.assert_close(chain(x), expected)


def test_patches_and_matrices_are_where_their_images_are():
    images = torch.zeros(2, 3, 5, 4, device="meta")
    assert random_patches(images, 7, generator(0, "patches")).is_meta
    layer = torch.nn.Conv2d(3, 2, 3).to("meta", torch.float64)
    network = torch.nn.Sequential(layer)
    densify(network)
    found = network(images.double())
    assert (found.is_meta, found.dtype, found.shape) == (True, torch.float64, (2, 2, 3, 2))
    assert regions._thin.__wrapped__(Space(nodes=1)).seed == 0, (
        "a thin network begins with the weights of seed 0"
    )
