"""Search spaces of one's own: their operations are checked, scored as the plain kernel scores them, and reach all."""

import pickle

import pytest
import torch
from torch import nn

from experiments.examples.own_score import score
from experiments.examples.own_space import space
from mamltheory import Task, condition_number, meta_ntk
from mamltheory.errors import CheckpointError, ConfigurationError, GenotypeError, UnsupportedModelError
from mamltheory.fewshot import TrainConfig, load, train
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas import Genotype, NetworkSettings, OwnScore, Rung, Space, random_genotype, search
from mamltheory.nas.algorithms.state import SearchState, state_from_json, state_to_json
from mamltheory.nas.genotype import Candidates, Cell
from mamltheory.nas.network import supernet
from mamltheory.nas.operations import normalisation
from mamltheory.nas.scoring.condition_number import candidate_conditions, score_kernels
from mamltheory.nas.scoring.linear_regions import (
    activation_patterns,
    distinct_patterns,
    random_patches,
    region_counts,
    thin_network,
)
from mamltheory.nas.scoring.operator_gradient import check_known_operations, operator_gradients
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.nas.sizes import genotype_parameters, reachable_sizes
from mamltheory.nas.space import PAPER, check_operations
from mamltheory.rng import generator
from tests.strategies import as_users_run_it

SIZE = NetworkSettings(channels=4, cells=3, classes=3, stem_stride=2)


class Residual(nn.Module):
    """An operation that is no sequence, with a bias, a weight without a layer, and a layer of an unusual class."""

    def __init__(self, channels, stride, norm):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)
        self.mixing = nn.ConvTranspose2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))
        self.norm, self.stride = normalisation(norm, channels), stride

    def forward(self, x):
        return self.mixing(x[..., :: self.stride, :: self.stride]) + self.norm(self.scale * self.conv(x))


def residual(channels, stride, norm):
    return Residual(channels, stride, norm)


def doubly_normed(channels, stride, norm):
    """It begins with a norm, as pooling does after its leading step."""
    layer = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(normalisation(norm, channels), layer, normalisation(norm, channels))


def twice(channels, stride, norm):
    layer = nn.Conv2d(channels, channels, 1, bias=False)
    half = nn.AvgPool2d(1, stride)
    return nn.Sequential(half, layer, nn.ReLU(), layer, normalisation(norm, channels))


SEQUENCES = Space({**space.operations, "doubly_normed": doubly_normed}, nodes=2)
ANY = Space({"skip_connect": PAPER.operations["skip_connect"], "residual": residual, "twice": twice}, nodes=1)


@pytest.fixture(scope="module")
def data():
    return glyph_data(16, 5, 5, 5, samples_per_class=16)


def tasks(dtype=torch.float64):
    random = generator(0, "tasks")
    x = torch.randn(4, 3, 3, 9, 9, generator=random, dtype=dtype)
    return [Task(x[i], torch.eye(3, dtype=dtype), x[i + 1], torch.eye(3, dtype=dtype)) for i in (0, 2)]


@pytest.mark.parametrize("own", [SEQUENCES, ANY], ids=["sequences", "any"])
def test_supernets_of_own_operations_are_scored_as_the_kernel_of_the_network_alone_is(own):
    whole, size = Candidates.of(own), NetworkSettings(channels=2, cells=3, classes=3, stem_stride=2)
    candidates = [whole.without(whole.operators()[place]) for place in (2, -2)]
    network, few, settings = supernet(whole, size, 3).double(), tasks()[:1], ScoreSettings(outputs="sum")
    kernels = list(score_kernels(network, candidates, few, settings))
    for each, kernel in zip(candidates, kernels, strict=True):
        alone = supernet(each, size, 3).double()
        chosen = [name for name, value in alone.named_parameters() if value.dim() > 1]
        how = {"dynamics": settings.dynamics, "select": chosen, "outputs": "sum", "method": "generic"}
        expected = meta_ntk(alone, few, **how)
        assert torch.allclose(kernel, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    (found, _), *_ = candidate_conditions(network, candidates, few, settings)
    assert found == pytest.approx(float(condition_number(kernels[0])), rel=1e-4)


@pytest.mark.slow
def test_the_gradient_of_a_score_knows_sequences_and_refuses_other_operations():
    for own in (SEQUENCES, ANY):
        network, whole = supernet(Candidates.of(own), SIZE, 3), Candidates.of(own)
        if own is ANY:
            with pytest.raises(UnsupportedModelError, match="leave-one-out"):
                operator_gradients(network, whole, tasks(torch.float32), ScoreSettings())
            continue
        few, settings = tasks(torch.float32)[:1], ScoreSettings(outputs="sum")
        found = operator_gradients(network, whole, few, settings)
        ((exact, _),) = candidate_conditions(network, [whole], few, settings)
        assert found.value == pytest.approx(torch.tensor(exact).log().item(), rel=0.02)
        assert set(found.gradients) == set(whole.operators())


def test_the_gradient_says_which_operations_it_knows():
    check_known_operations(supernet(Candidates.of(SEQUENCES), SIZE, 3))
    network = supernet(Candidates.of(ANY), SIZE, 3)
    with pytest.raises(UnsupportedModelError, match=r"knows operations that are nn\.Sequential"):
        operator_gradients(network, Candidates.of(ANY), tasks(torch.float32), ScoreSettings())


@pytest.mark.parametrize("own", [SEQUENCES, ANY], ids=["sequences", "any"])
def test_linear_regions_of_own_operations_are_counted_as_in_the_network_alone(own):
    whole = Candidates.of(own)
    candidates = [whole, whole.without(whole.operators()[2])]
    patches = random_patches(torch.randn(5, 3, 8, 8, generator=generator(0, "x")), 150, generator(0, "p"))
    for seed in (1, 2):
        alone = [thin_network(each, seed) for each in candidates]
        expected = [distinct_patterns(activation_patterns(one, patches, one.feature_map)) for one in alone]
        assert region_counts(candidates, patches, seed) == expected


def test_weights_of_own_operations_follow_from_the_seed_alone():
    def weights(seed):
        return supernet(Candidates.of(ANY), SIZE, seed).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    layers = [name for name in first if name.endswith(("conv.weight", "mixing.weight"))]
    assert len(layers) == 3 * 2 * 2
    assert not any(torch.equal(first[name], other[name]) for name in layers)


def test_algorithm_1_leaves_an_operation_an_edge_of_an_own_space_and_the_cell_trains(data, tmp_path):
    own = Space(space.operations, 1, normal=("skip_connect", "conv_7x7"), reduce=("conv_7x7",))
    size = NetworkSettings(channels=4, cells=3, stem_stride=4)
    found = search(data, space=own, size=size, ways=2, tasks=1, repeats=1)
    assert found.genotype.space == own
    assert len(found.trace) == 2 * 2
    assert {name for _, _, name in found.genotype.edges()["reduce"]} == {"conv_7x7"}
    assert found.genotype._repr_html_().count("<rect") == 2 * 3
    config = TrainConfig(epochs=1, batch_size=8, milestones=(), flip=False)
    trained = train(data, found.genotype, config, size=size)
    file = trained.save(tmp_path)
    again = load(file, space=own)
    assert again.genotype == found.genotype
    assert torch.equal(again.features(torch.ones(1, 3, 16, 16)), trained.features(torch.ones(1, 3, 16, 16)))
    with pytest.raises(CheckpointError, match="give the space that the cell is of"):
        load(file)


@pytest.mark.slow
def test_halving_draws_its_cells_from_an_own_space(data):
    size = NetworkSettings(channels=2, cells=3, stem_stride=4)
    reach = reachable_sizes(NetworkSettings(2, 3, 5, 4), space=space)
    limits = (reach.least, reach.most)
    found = search(data, "halving", space=space, size=size, parameters=limits, rungs=(Rung(2, 1),))
    assert found.genotype.space == space
    assert found.network.genotype == found.genotype


def test_an_own_score_is_maximised_or_minimised(data):
    size = NetworkSettings(channels=2, cells=3, stem_stride=4)

    def parameters(network, few):
        assert len(few) == 2
        return sum(each.numel() for each in network.parameters())

    own = Space(space.operations, nodes=1, reduce=("conv_7x7", "bottleneck"))
    settings = {"space": own, "size": size, "ways": 2, "tasks": 2, "repeats": 1}
    most = search(data, score=OwnScore(parameters, largest_is_best=True), **settings)
    least = search(data, score=parameters, **settings)
    sizes = [genotype_parameters(each.genotype, size.for_search(2)) for each in (most, least)]
    reach = reachable_sizes(size.for_search(2), "all", own)
    assert sizes == [reach.most, reach.least]
    assert most.scores == (float(reach.most),) * 4


def test_the_example_of_a_score_is_the_norm_of_the_gradient():
    network, few = supernet(Candidates.of(space), SIZE, 0), tasks(torch.float32)
    found = score.value(network, few)
    images = torch.cat([x for task in few for x in (task.query_x, task.support_x)])
    labels = torch.cat([y for task in few for y in (task.query_y, task.support_y)]).argmax(1)
    nn.functional.cross_entropy(network(images), labels).backward()
    squares = sum(float(each.grad.double().square().sum()) for each in network.parameters())
    assert found == pytest.approx(squares**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: float("nan"), "returns nan: expected a finite number"),
        (lambda *_: -float("inf"), "returns -inf: expected a finite number, or inf"),
        (lambda *_: torch.zeros(2, 3), r"returns a Tensor of shape \(2, 3\): expected one number"),
        (lambda *_: "high", "returns a str: expected one number"),
        (lambda *_: None, "returns a NoneType"),
        (lambda *_: True, "returns a bool"),
        (lambda network, _: network.nothing, "the score <lambda> fails: AttributeError"),
        (lambda: 1.0, "the score <lambda> fails: TypeError"),
    ],
)
def test_a_score_that_is_no_number_is_refused_at_its_first_call(data, function, message):
    with pytest.raises(ConfigurationError, match=message):
        search(data, score=function, size=NetworkSettings(2, 3, 5, 4), ways=2, tasks=1)


def test_scores_and_spaces_of_the_wrong_kind_are_refused(data):
    for settings, message in (
        ({"score": 3}, "expected a function"),
        ({"score": OwnScore}, "expected a function"),
        ({"score": score, "method": "random"}, "the place of the criteria of metantk-nas"),
        ({"space": "paper"}, "space is a str: expected a Space"),
        ({"space": None}, "space is a NoneType"),
    ):
        with as_users_run_it(), pytest.raises(ConfigurationError, match=message):
            search(data, **settings)
    with as_users_run_it(), pytest.raises(ConfigurationError, match="True or False"):
        OwnScore(score.function, "yes")
    scorer = CellScorer(SIZE, 0, own=score)
    with pytest.raises(ConfigurationError, match="common random numbers"):
        IndependentDraws(scorer)(Candidates(), [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": {}}, "expected a dictionary"),
        ({"operations": {"conv": 3}}, "'conv' is 3: expected a function"),
        ({"operations": {"conv": nn.ReLU}}, "expected a function"),
        ({"operations": {"conv-5": residual}}, "cannot name an operation"),
        ({"operations": {"pop": residual}}, "cannot name an operation"),
        ({"operations": {3: residual}}, "cannot name an operation"),
        ({"nodes": 0}, "nodes is 0"),
        ({"nodes": 9}, "nodes is 9"),
        ({"reduce": ("conv_9x9",)}, "reduce is"),
        ({"normal": ["conv_3x3"]}, "expected a tuple"),
        ({"normal": ("conv_3x3", "conv_3x3")}, "different operations"),
    ],
)
def test_impossible_spaces_are_refused(arguments, message):
    with as_users_run_it(), pytest.raises(ConfigurationError, match=message):
        Space(**arguments)


def test_a_space_has_up_to_26_operations_and_8_nodes():
    most = {f"conv_{i}": residual for i in range(26)}
    assert Space(most, nodes=8).choices("normal") == tuple(most)
    assert len(Space(most, nodes=8).edges) == sum(range(2, 10))
    with pytest.raises(ConfigurationError, match="of 1 to 26 functions"):
        Space(most | {"another": residual})
    assert Space({"a" * 40: residual}).own_operations() == ("a" * 40,)
    with pytest.raises(ConfigurationError, match="cannot name an operation"):
        Space({"a" * 41: residual})


def test_spaces_are_equal_by_their_operations_nodes_and_names():
    assert repr(Space(nodes=2)) == "Space(nodes=2, normal=(), reduce=(), name='')"
    assert Space(name="module:space") == Space() != Space(nodes=2)
    assert Space().nodes == 3


def test_operations_are_checked_on_three_images_of_even_and_odd_size_and_on_each_alone():
    built, seen = [], []

    def recorded(channels, stride, norm):
        built.append((channels, stride, norm))
        pool = nn.AvgPool2d(1, stride)
        pool.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        return pool

    check_operations(Space({"recorded": recorded}))
    assert built == [(8, 1, "group"), (8, 2, "group")]
    assert seen == [shape for side in (8, 7) for shape in [(3, 8, side, side), *[(1, 8, side, side)] * 3]] * 2


def test_weights_that_no_method_draws_again_are_the_same_whatever_was_drawn_before():
    built = []
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        built.append(ANY.build("residual", 4, 1, "group").scale)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*built)


def _module(forward):
    class Operation(nn.Module):
        def forward(self, x):
            return forward(x)

    return lambda *_: Operation()


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda *_: 3, "returns a int with 8 channels"),
        (lambda c, _: nn.Conv2d(c, c, 1), "fails: TypeError"),
        (lambda c, stride, _: nn.Conv2d(c, c, 3, stride), r"makes \(3, 8, 6, 6\) of \(3, 8, 8, 8\)"),
        (lambda c, *_: nn.Conv2d(c, c, 1), "stride 2 makes"),
        (lambda c, stride, _: nn.Conv2d(c, 2 * c, 1, stride), "makes"),
        (lambda _, stride, __: nn.AvgPool2d(stride), r"makes \(3, 8, 3, 3\) of \(3, 8, 7, 7\)"),
        (_module(lambda x: x @ x[:1, :, :2]), "fails: RuntimeError"),
        (_module(lambda x: x.relu_()), "changes its input"),
        (_module(lambda x: x.sum()), r"makes \(\)"),
        (_module(lambda x: [x]), "makes list"),
        (_module(lambda x: x - x.mean(0)), "another output alone than in a batch"),
        (lambda *_: nn.Dropout(), "another output alone than in a batch"),
        (lambda c, *_: nn.BatchNorm2d(c), "another output alone than in a batch"),
    ],
)
def test_operations_that_cannot_stand_in_a_cell_are_refused(operation, message):
    with pytest.raises(ConfigurationError, match=message):
        check_operations(Space({"own": operation}))


def test_genotypes_belong_to_their_space():
    drawn = random_genotype(generator(0, "cell"), "all", space)
    assert drawn != random_genotype(generator(0, "cell"), "all")
    assert Genotype.from_json(drawn.to_json(), space) == drawn
    assert drawn.candidates().genotype() == drawn == pickle.loads(pickle.dumps(drawn))
    named = Space(space.operations, space.nodes, reduce=space.reduce, name="my:space")
    assert named == space
    content = random_genotype(generator(0, "cell"), "all", named).to_json()
    assert content["space"] == "my:space"
    assert Genotype.from_json(content, space) == drawn
    with pytest.raises(GenotypeError, match="of the space 'my:space': give that space as well"):
        Genotype.from_json(content)
    with pytest.raises(GenotypeError, match=r"a cell has 3 nodes, got 2.* give the space"):
        Genotype.from_json(drawn.to_json())
    with pytest.raises(GenotypeError, match="unknown operation 'conv_3x3'"):
        Cell(((("conv_3x3", 0), ("conv_7x7", 1)),) * 2, space)
    with pytest.raises(GenotypeError, match="unknown operation 'bottleneck' in the reduce cell"):
        Genotype(drawn.normal, drawn.normal)
    with pytest.raises(GenotypeError, match="different spaces"):
        Genotype(drawn.normal, random_genotype(generator(0, "cell")).reduce)
    with as_users_run_it(), pytest.raises(ConfigurationError, match="expected a Space"):
        Genotype.from_json(drawn.to_json(), "my:space")


def test_a_saved_search_is_read_in_its_own_space():
    state = SearchState(Candidates.of(space))
    assert state_from_json(state_to_json(state), space) == state
    with pytest.raises(CheckpointError, match="not a saved search"):
        state_from_json(state_to_json(state))
