"""Every product of the library runs in full float32 wherever TF32 is allowed, and what was allowed is restored."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mamltheory as mt
from mamltheory.accelerator import float32_products
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network, predict
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    adapted_accuracies,
    meta_train_step,
    start_meta_training,
)
from mamltheory.fewshot.prototypes import split_features
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.nas.genotype import Candidates, published_genotypes
from mamltheory.nas.network import derived_network, supernet
from mamltheory.nas.scoring import condition_number as scores
from mamltheory.nas.scoring import operator_gradient as gradient
from mamltheory.nas.scoring.linear_regions import activation_patterns, region_counts
from mamltheory.nas.scoring.pool import Batch, PoolSettings, PoolTasks, pooled_scores, trained_scores
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from tests.fewshot.small import SmallNet, noise_data
from tests.nas.cases import SMALL, WAYS, draw_tasks, tasks

FULL, INNER = {("cuda", name): "ieee" for name in ("matmul", "conv", "rnn")}, mt.InnerLoop(0.1, 1)
FEW = Candidates(*((("conv_3x3", "skip_connect"),) * 9,) * 2)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward", "dot", "mv")


def precision():
    """Both interfaces of torch; the older one raises an error where they disagree."""
    newer = {
        (backend, name): torch._C._get_fp32_precision_getter(backend, name)
        for backend in ("generic", "cuda", "mkldnn")
        for name in (["all"] if backend == "generic" else ["all", "matmul", "conv", "rnn"])
    }
    older = []
    for read in (
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            older.append(read())
        except RuntimeError as error:
            older.append(str(error)[:60])
    return newer, tuple(older)


def is_full():
    newer, older = precision()
    return FULL.items() <= newer.items() and older == (False, False, "highest")


class Products(TorchDispatchMode):
    """Notes, at every product of float32 numbers, whether it runs in full precision."""

    def __init__(self):
        super().__init__()
        self.full = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        first = next(iter(result), None) if isinstance(result, tuple | list) else result
        if (
            function.overloadpacket.__name__ in PRODUCTS
            and first is not None
            and first.dtype == torch.float32
        ):
            self.full.append(is_full())
        return result


@pytest.fixture(autouse=True)
def _restored():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def allow_all():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")


def mixed():
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def inherited():
    torch.backends.cudnn.allow_tf32 = False  # operations have no precision of their own
    torch.backends.fp32_precision = "tf32"


def inherited_and_own():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.fp32_precision = torch.backends.fp32_precision = "tf32"


def lowest_on_cpus():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_tf32 = False


SETTINGS = [lambda: None, allow_all, mixed, inherited, inherited_and_own, lowest_on_cpus]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("tf32", [False, True])
def test_a_block_holds_for_both_interfaces_and_restores_what_it_found(setting, tf32):
    setting()
    before = precision()
    with float32_products(tf32):
        newer, older = precision()
        value = "tf32" if tf32 else "ieee"
        assert {newer["cuda", name] for name in ("matmul", "conv", "rnn")} == {value}
        assert {newer["mkldnn", name] for name in ("matmul", "conv", "rnn")} == {"ieee"}
        assert older == (tf32, tf32, "high" if tf32 else "highest")
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=tf32):
            pass  # networks may do so in their forward pass
    assert precision() == before


@pytest.mark.parametrize("setting", SETTINGS)
def test_operations_that_inherit_a_precision_still_do_so_afterwards(setting):
    def responses():
        found = []
        for part in (torch.backends, torch.backends.cudnn):
            own = part.fp32_precision
            for value in ("ieee", "tf32"):
                part.fp32_precision = value
                found.append(precision()[0])
            part.fp32_precision = own
        return found

    setting()
    with float32_products():
        pass
    found = responses()
    _reset_to_default()
    setting()
    assert responses() == found


def _reset_to_default():
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_nested_blocks_and_errors_restore_the_block_around_them():
    allow_all()
    before = precision()
    with float32_products(True):
        around = precision()
        with float32_products(), float32_products(True):
            assert is_full(), "full precision was asked for by an open block"
        assert precision() == around
        with pytest.raises(ZeroDivisionError), float32_products():
            raise ZeroDivisionError
        assert precision() == around
    assert precision() == before


def test_blocks_of_several_threads_end_in_any_order():
    before, first_open, second_open, first_closed = precision(), *(threading.Event() for _ in range(3))
    seen = []

    def first():
        with float32_products():
            first_open.set()
            second_open.wait(30)
        first_closed.set()

    def second():
        first_open.wait(30)
        with float32_products(True):
            second_open.set()
            seen.append(is_full())
            with float32_products():
                first_closed.wait(30)
                seen.append(is_full())
            seen.append(precision()[1])

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [True, True, (True, True, "high")]
    assert precision() == before


DATA = noise_data(16)
EVALUATION = EvaluationConfig(ways=3, queries=2, tasks=2, copies=1, head="nearest-centroid")
META = MetaTrainConfig(ways=3, shots=1, queries=2, tasks=2)
NET = mt.FullyConnected(input_dim=3, width=4, depth=2, activation="tanh")


def module():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(100, WAYS))


def wide_tasks():
    x = torch.ones(2, 3)
    return [mt.Task(x, x[:, :1], x.flip(0) / 2, x[:, :1])]


def with_network(function):
    """The function on a user's module, and on a network of Eq. (16), both in float32."""
    params = {name: value.float() for name, value in NET.initialise(mt.generator(0, "precision")).items()}
    function(module(), None, tasks(0, 1))
    function(NET.model, params, wide_tasks())


def pool_arguments():
    rows = torch.arange(2 * WAYS)
    batch = Batch(*rows.view(1, 2, WAYS).unbind(1))
    single = PoolTasks([batch], rows[WAYS:].view(1, WAYS, 1), rows[:WAYS].view(1, WAYS, 1))
    pool = torch.cat([tasks()[0].query_x, tasks()[0].support_x])
    return pool, single, PoolSettings()


def network():
    return supernet(FEW, SMALL, 0)


def score_by_gradient():
    scorer = CellScorer(SMALL, 0, draw_tasks)
    assert gradient.GradientScorer(scorer).scores(FEW, 0, 0)


def derived():
    return derived_network(published_genotypes()[0].genotype, SMALL, 0)


SCORE = ScoreSettings("maml", "sum")
ENTRIES = {
    "adapt": lambda: with_network(lambda m, p, t: mt.adapt(m, p, t[0], INNER)),
    "meta_output": lambda: with_network(lambda m, p, t: mt.meta_output(m, p, t[0], INNER)),
    "meta_loss": lambda: with_network(lambda m, p, t: mt.meta_loss(m, p, t, INNER)),
    "meta_gradient": lambda: with_network(lambda m, p, t: mt.meta_gradient(m, p, t, INNER)),
    "train": lambda: with_network(lambda m, p, t: mt.train(m, p, t, INNER, 0.01, 1)),
    "empirical_ntk": lambda: with_network(lambda m, p, t: mt.empirical_ntk(m, t[0].query_x, params=p)),
    "generic": lambda: mt.empirical_ntk(module(), tasks()[0].query_x, method="generic"),
    "last layer": lambda: with_network(
        lambda m, p, t: mt.empirical_last_layer_ntk(m, t[0].query_x, params=p)
    ),
    "empirical_meta_ntk": lambda: with_network(lambda m, p, t: mt.empirical_meta_ntk(m, t, INNER, params=p)),
    "meta_ntk": lambda: with_network(
        lambda m, p, t: mt.meta_ntk(m, t, algorithm="anil", dynamics=mt.Converged(1e-3), params=p)
    ),
    "condition_score": lambda: scores.condition_score(network(), tasks(), SCORE),
    "network_kernels": lambda: scores.network_kernels(network(), tasks()[0].query_x),
    "candidate_conditions": lambda: scores.candidate_conditions(network(), [FEW], tasks(), SCORE),
    "score_kernels": lambda: list(scores.score_kernels(network(), [FEW], tasks(), SCORE)),
    "own_conditions": lambda: scores.own_conditions(
        network(), [FEW], [tasks()], [network().classifier], SCORE
    ),
    "gradient": score_by_gradient,
    "pooled_scores": lambda: pooled_scores(network(), *pool_arguments()),
    "trained_scores": lambda: trained_scores(derived(), *pool_arguments(), 0),
    "region_counts": lambda: region_counts([FEW], tasks()[0].query_x[:, :1, :3, :3], 0),
    "activation_patterns": lambda: activation_patterns(network(), tasks()[0].query_x),
    "evaluate": lambda: evaluate_network(SmallNet(), DATA.test, DATA.mean, DATA.std, EVALUATION, 0),
    "predict": lambda: predict(
        SmallNet(), DATA.test.images[:6], np.arange(6), DATA.test.images[:4], DATA.mean, DATA.std, copies=1
    ),
    "prototypes": lambda: split_features(SmallNet(), DATA.test, DATA.mean, DATA.std),
    "meta-train": lambda: meta_train_step(start_meta_training(conv4(3, 16, 0, channels=4), DATA, META)),
    "accuracies": lambda: adapted_accuracies(
        start_meta_training(conv4(3, 16, 0, channels=4), DATA, META), DATA.test, 1, 2, 0
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_product_of_the_library_runs_in_full_precision(entry):
    allow_all()
    before = precision()
    with Products() as products:
        ENTRIES[entry]()
    assert products.full, "the call multiplies"
    assert all(products.full)
    assert precision() == before


@pytest.mark.parametrize(("name", "full"), [("fp32", True), ("bf16", False)])
def test_the_precision_of_a_training_alone_decides_for_its_steps(name, full):
    config = TrainConfig(precision=name, batch_size=40, epochs=1, milestones=())
    for setting in (allow_all, inherited):
        setting()
        before, seen = precision(), []
        network = SmallNet()
        state = start_training(network, DATA, dataclasses.replace(config, drop_path=0.0))
        network.body[0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(precision()[1][:2]))
        train_epoch(state)
        assert seen == [(not full, not full)] * 3
        assert precision() == before
