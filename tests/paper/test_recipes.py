"""The paper's recipe: what it says of search, training and evaluation, read off the objects that do the work.

A preset holds a number; here it is followed into the network, the optimiser, the schedule, the kernel and the
classifier that are made of it. No image is needed.
"""

from itertools import pairwise

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from experiments.genotypes import network_size
from experiments.search.search import rules_of, scorer_of
from experiments.search.settings import SEARCH
from experiments.training import evaluate
from experiments.training.settings import EVALUATE, TRAIN
from experiments.training.train import new_network, train_config
from mamltheory import Converged, GradientFlow, generator
from mamltheory.errors import ConfigurationError, UnsupportedModelError
from mamltheory.fewshot.evaluate import EvaluationConfig
from mamltheory.fewshot.heads import make_head
from mamltheory.fewshot.train import start_training
from mamltheory.fewshot.training_state import inputs_of
from mamltheory.linalg import time_operator
from mamltheory.nas.genotype import EDGES, Candidates, published_genotypes, random_genotype
from mamltheory.nas.network import NetworkSettings, derived_network, layout, parameter_count, supernet
from mamltheory.nas.operations import OPERATIONS
from mamltheory.networks import from_module
from tests.fewshot.small import noise_data
from tests.strategies import with_spectrum

PAPER = ("mini-5", "mini-8", "tiered-5", "tiered-8")
DATA = noise_data()
CELL = random_genotype(generator(0, "cell"))


def norms(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


# --- Search ---


@pytest.mark.paper("Sec. 6.1: search space", "Sec. 6.1: search schedule")
def test_seven_operations_on_eighteen_edges_take_486_scores_and_leave_one_on_each():
    incoming = [sum(edge.node == node for edge in EDGES) for node in range(3)]
    assert incoming == [2, 3, 4]
    edges = 2 * sum(incoming)
    live = [edges * operations for operations in range(len(OPERATIONS), 1, -1)]
    assert (edges, len(live), sum(live)) == (18, 6, 486)
    assert live[0] == len(Candidates().operators()) == 126


@pytest.mark.paper("fn. 6", "Sec. 6.1: network")
@pytest.mark.parametrize(("cells", "layers", "places"), [(5, 6, [2, 4]), (8, 9, [3, 6])])
def test_with_the_output_layer_counted_reductions_lie_at_one_and_two_thirds_of_the_depth(
    cells, layers, places
):
    assert layers == cells + 1
    assert [i for i, kind in enumerate(layout(cells), 1) if kind == "reduce"] == places
    assert places == [layers // 3, 2 * layers // 3]
    assert layers % 3 == 0


@pytest.mark.paper("Sec. 6.1: network", "fn. 7")
@pytest.mark.parametrize("cells", [5, 8])
def test_reduction_cells_halve_the_resolution_and_double_the_channels_and_normal_cells_keep_both(cells):
    network = derived_network(CELL, NetworkSettings(channels=4, cells=cells, classes=3), 0).eval()
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    network(torch.zeros(1, 3, 16, 16))
    channels, side = 3 * 4, 16  # a cell's output is the concatenation of its three nodes
    for kind, shape in zip(layout(cells), shapes, strict=True):
        channels, side = (2 * channels, side // 2) if kind == "reduce" else (channels, side)
        assert shape == (channels, side, side)
    assert shapes[-1] == (4 * 12, 4, 4)


@pytest.mark.paper("Sec. 6.1: network", "fn. 8")
@pytest.mark.parametrize("name", PAPER)
def test_the_search_scores_networks_of_the_size_that_is_trained(name):
    search, train = SEARCH[name], TRAIN[name]
    scored = scorer_of(search, "cpu").network.for_search(search.ways)
    trained = network_size(train, 64)
    assert (scored.channels, scored.cells, scored.stem_stride) == (48, int(name[-1]), 1)
    assert (scored.channels, scored.cells, scored.stem_stride) == (
        trained.channels,
        trained.cells,
        trained.stem_stride,
    )


@pytest.mark.paper("Sec. 6.1: kernels of the search", "App. E: inner time", "App. E: ridge")
@pytest.mark.parametrize(
    ("name", "kernel", "dynamics"),
    [
        ("mini-5", "maml", Converged(1e-3)),
        ("mini-8", "anil", GradientFlow(1.0)),
        ("tiered-5", "maml", Converged(1e-3)),
        ("tiered-8", "anil", Converged(1e-3)),
    ],
)
def test_the_kernel_of_the_search_is_the_papers(name, kernel, dynamics):
    settings = SEARCH[name]
    scorer = scorer_of(settings, "cpu")
    assert (scorer.settings.kernel, scorer.settings.dynamics) == (kernel, dynamics)
    assert scorer.settings.measure == "condition"
    assert set(rules_of(settings).criteria) == {"condition", "regions"}


@pytest.mark.paper("App. E: ridge")
def test_at_finite_time_the_papers_ridge_changes_nothing_and_at_infinite_time_it_does(measured):
    """|T'(s)| ≤ (λτ)²/2 at λτ = 1, so that a ridge of 1e-5 cannot change T by more than 5e-6 of its size 1."""
    kernel = with_spectrum(torch.tensor([1e-6, 1e-4, 1e-2, 1.0], dtype=torch.float64), 0)
    lifted = kernel + 1e-5 * torch.eye(4).double()
    change = time_operator(lifted, GradientFlow(1.0)) - time_operator(kernel, GradientFlow(1.0))
    measured("change of T by the ridge 1e-5 at λτ = 1", torch.linalg.matrix_norm(change, 2), below=5.1e-6)
    assert torch.linalg.matrix_norm(change, 2) > 4e-6
    endless = [float(torch.linalg.matrix_norm(time_operator(kernel, Converged(r)), 2)) for r in (0.0, 1e-3)]
    assert endless == pytest.approx([1e6, 1e3], rel=1e-2)


@pytest.mark.paper("App. E: normalisation")
def test_the_search_takes_group_norm_of_16_groups_and_training_takes_batch_norm():
    settings = NetworkSettings(channels=32, cells=3, classes=5)
    scored, trained = supernet(Candidates(), settings, 0), derived_network(CELL, settings, 0)
    groups = norms(scored, torch.nn.GroupNorm)
    assert {norm.num_groups for norm in groups} == {16}
    assert not norms(scored, torch.nn.BatchNorm2d)
    assert norms(trained, torch.nn.BatchNorm2d)
    assert not norms(trained, torch.nn.GroupNorm)
    from_module(scored)
    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        from_module(trained.train())  # why the search cannot take them: no kernel of single samples exists


# --- Training ---


@pytest.mark.paper("Sec. 6.1: training by RFS", "Sec. 6.1: optimisation", "App. E: batch size")
@pytest.mark.parametrize("name", PAPER)
def test_training_is_sgd_on_all_training_classes_with_the_papers_schedule(name):
    settings = TRAIN[name]
    config = train_config(settings, DATA)
    mini = name.startswith("mini")
    epochs, rate, falls = (100, 0.02, [61, 81]) if mini else (60, 0.01, [31, 41, 51])
    rates = [config.learning_rate_in(epoch) for epoch in range(1, epochs + 1)]
    assert (config.epochs, rates[0]) == (epochs, rate)
    steps = [e for e in range(2, epochs + 1) if rates[e - 1] != rates[e - 2]]
    assert steps == falls
    assert all(rates[e - 1] == pytest.approx(rates[e - 2] / 10) for e in steps)
    assert config.batch_size == {"mini-8": 40, "tiered-8": 56}.get(name, 64)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 6))
    optimizer = start_training(network, DATA, config).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
    assert SEARCH[name].data == settings.data


@pytest.mark.paper("Sec. 6.1: training by RFS")
def test_the_trained_network_has_one_output_for_each_training_class():
    settings = TRAIN["glyph-smoke"]
    network = new_network(settings, CELL, inputs_of(DATA).classes)
    assert network.classifier.out_features == len(DATA.train.class_names) == 6
    with pytest.raises(ConfigurationError, match="logits"):
        start_training(new_network(settings, CELL, 5), DATA, train_config(settings, DATA))


@pytest.mark.paper("Sec. 6.1: MetaNAS retrained")
def test_the_cells_of_metanas_make_networks_of_the_sizes_of_table_1_in_the_same_stack():
    printed = {"mini-5": 2.01, "mini-8": 3.53, "tiered-5": 2.17, "tiered-8": 3.70}
    found = {}
    for cell in published_genotypes():
        if cell.setting.startswith("metanas "):
            settings = NetworkSettings(channels=48, cells=cell.cells, classes=cell.classes)
            network = derived_network(cell.genotype, settings, 0)
            found[cell.setting.removeprefix("metanas ")] = parameter_count(network) / 1e6
    assert found == pytest.approx(printed, abs=0.0051)


@pytest.mark.paper("App. E: dropout")
@pytest.mark.parametrize("name", PAPER)
def test_dropout_rises_in_every_epoch_to_the_papers_rate(name):
    config = train_config(TRAIN[name], DATA)
    ramp = [config.drop_path_in(epoch) for epoch in range(1, config.epochs + 1)]
    assert all(a < b for a, b in pairwise(ramp))
    assert ramp[0] < 0.01
    assert ramp[-1] == pytest.approx(0.2 if name.startswith("mini") else 0.1)


@pytest.mark.paper("App. E: augmentation")
def test_training_and_the_supports_of_evaluation_share_crop_jitter_and_flip():
    transform = train_config(TRAIN["mini-5"], DATA).augmentation()
    assert transform.jitter > 0
    assert transform.flip
    assert transform.padding is None  # the rule, 8 pixels of 84
    assert EvaluationConfig().augmentation() == transform


# --- Evaluation ---

HEADS = {
    "mini-5": (("svc", 0.2), ("logistic", 0.6)),
    "mini-8": (("svc", 0.35), ("logistic", 0.4)),
    "tiered-5": (("svc", 0.75), ("logistic", 0.8)),
    "tiered-8": (("logistic", 0.95), ("logistic", 0.5)),
}


@pytest.mark.paper("App. E: penalty", "App. E: evaluation", "Sec. 6.1: evaluation")
@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("shots", [1, 5])
def test_the_output_layer_is_the_papers_classifier_with_its_penalty(name, shots):
    settings = EVALUATE[f"{name}-{shots}-shot"]
    kind, c = HEADS[name][shots == 5]
    assert (settings.shots, settings.ways, settings.augment) == (shots, 5, 5)
    head = make_head(settings.head, settings.C)
    assert isinstance(head, {"svc": SVC, "logistic": LogisticRegression}[kind])
    assert c == head.C
    assert kind == "logistic" or head.kernel == "linear"


@pytest.mark.paper("App. E: penalty")
def test_c_is_the_inverse_of_the_l2_penalty(measured):
    """At the minimum of ‖w‖²/2 + C Σ cross-entropy the penalty's gradient w balances C times that of the loss."""
    g = generator(0, "features")
    x = torch.nn.functional.normalize(torch.randn(12, 4, generator=g, dtype=torch.float64), dim=1)
    y = torch.arange(12) % 3
    head = make_head("logistic", 0.6).set_params(tol=1e-10).fit(x.numpy(), y.numpy())
    weight = torch.tensor(head.coef_, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(x @ weight.T + torch.tensor(head.intercept_), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    error = (weight.detach() + 0.6 * gradient).norm() / weight.detach().norm()
    measured("imbalance of penalty and loss", error, below=1e-4)


@pytest.mark.paper("Sec. 6.2: test tasks", "Sec. 6.1: model selection")
def test_every_experiment_of_the_paper_is_evaluated_after_training_on_1000_tasks_of_unseen_classes():
    for name, settings in EVALUATE.items():
        if not name.startswith("glyph"):
            assert (settings.tasks, settings.split) == (1000, "test")
            assert settings.checkpoint == TRAIN[name.rsplit("-", 2)[0]].out


@pytest.mark.paper("Sec. 6.2: test tasks")
def test_three_seeds_are_three_runs_on_tasks_of_their_own():
    settings = EVALUATE["glyph-smoke"]
    small = {"tasks": 4, "ways": 3, "shots": 1, "queries": 2, "augment": 0}
    network = new_network(TRAIN["glyph-smoke"], CELL, 6)
    runs = [
        evaluate.evaluate_on_tasks(network, DATA, type(settings)(**small, seed=seed)) for seed in range(3)
    ]
    assert len({run.tasks_digest for run in runs}) == 3
    assert len({run.accuracies.tobytes() for run in runs}) == 3
