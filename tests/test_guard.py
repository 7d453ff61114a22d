"""Every public function refuses what has no answer by a line that says why, and leaves what it was given as it was."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.errors import MamlTheoryError, ShapeError, UnsupportedModelError, ValueRangeError
from tests.own_networks import MIXING, RIGHT, STRAIGHT_THROUGH, TOKENS, VECTORS, N, Own, draw, made, tasks_of
from tests.paper.cases import relative
from tests.reference import meta_autograd
from tests.strategies import as_users_run_it

INNER = mt.InnerLoop(0.05, 1)


def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))


ENTRIES = {
    "empirical_ntk": lambda net, params, x, _: mt.empirical_ntk(net, x, params=params),
    "empirical_last_layer_ntk": lambda net, params, x, _: mt.empirical_last_layer_ntk(net, x, params=params),
    "meta_ntk": lambda net, params, _, tasks: mt.meta_ntk(net, tasks, params=params),
    "empirical_meta_ntk": lambda net, params, _, tasks: mt.empirical_meta_ntk(
        net, tasks, INNER, params=params
    ),
    "adapt": lambda net, params, _, tasks: mt.adapt(net, params, tasks[0], INNER),
    "meta_output": lambda net, params, _, tasks: mt.meta_output(net, params, tasks[0], INNER),
    "meta_outputs": lambda net, params, _, tasks: mt.meta_outputs(net, params, tasks, INNER),
    "meta_loss": lambda net, params, _, tasks: mt.meta_loss(net, params, tasks, INNER),
    "meta_gradient": lambda net, params, _, tasks: mt.meta_gradient(net, params, tasks, INNER),
    "train": lambda net, params, _, tasks: mt.train(net, params, tasks, INNER, 0.01, 1, kernel_steps=(1,)),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "name", ["cumulative-sum", "neighbours", "batch-norm-by-hand", "dropout-by-function", "straight-through"]
)
def test_every_entry_refuses_networks_that_mix_samples(entry, name):
    make, x = {**MIXING, "straight-through": STRAIGHT_THROUGH}[name]
    module = made(make)
    model, params = mt.from_module(module)
    for network, values in (
        (module, None),
        (model, params),
        (mt.Model(model.function, head=frozenset({"b.bias"})), params),
    ):
        with pytest.raises(UnsupportedModelError, match=r"mixes|not those in its batch"):
            ENTRIES[entry](network, values, x, tasks_of(x))


class Counting(nn.Module):
    """A layer with a state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.tanh(x)


class Clipped(nn.Linear):
    """A layer that clips its weights in place."""

    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


WRITING = {
    "instance-norm": RIGHT["instance-norm"],
    "spectral-norm": RIGHT["spectral-norm"],
    "spectral-norm-by-hooks": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 5)),
        VECTORS,
    ),
    "embedding-of-bounded-rows": (
        lambda: nn.Sequential(nn.Embedding(7, 4, max_norm=1.0), nn.Flatten(), nn.Linear(12, 5)),
        TOKENS,
    ),
    "counter": (lambda: nn.Sequential(nn.Linear(4, 6), Counting(), nn.Linear(6, 5)), VECTORS),
    "clipped": (lambda: nn.Sequential(Clipped(4, 6), nn.Tanh(), nn.Linear(6, 5)), VECTORS),
    "twice": (
        lambda: (lambda layer: nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 5)))(nn.Linear(4, 4)),
        VECTORS,
    ),
    "nothing": (plain, VECTORS),
}


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("entry", ENTRIES)
def test_no_call_changes_the_network(entry, name):
    make, x = WRITING[name]
    module = made(make)
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    with contextlib.suppress(UnsupportedModelError):  # inner loops over weights that the network rewrites
        ENTRIES[entry](module, None, x, tasks_of(x))
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    now = dict(module.named_parameters()) | dict(module.named_buffers())
    assert all(now[key] is value for key, value in held.items())
    assert all(value.grad is None for value in module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part._forward_hooks for part in module.modules() if name != "spectral-norm-by-hooks")


@pytest.mark.parametrize("entry", ["meta_gradient", "adapt", "train", "empirical_meta_ntk"])
@pytest.mark.parametrize("name", ["embedding-of-bounded-rows", "clipped"])
def test_inner_loops_over_weights_that_the_network_rewrites_are_refused(entry, name):
    make, x = WRITING[name]
    with pytest.raises(UnsupportedModelError, match="writes to parameters"):
        ENTRIES[entry](made(make), None, x, tasks_of(x))


def test_a_module_is_taken_wherever_a_model_is():
    module, tasks = made(plain), tasks_of(VECTORS)
    model, params = mt.from_module(module)
    for name, entry in ENTRIES.items():
        got, expected = entry(module, None, VECTORS, tasks), entry(model, params, VECTORS, tasks)
        if isinstance(got, torch.Tensor):
            assert relative(got, expected) < 1e-12, name
    trained = mt.train(module, None, tasks, INNER, 0.01, 2)
    assert all(torch.equal(value, params[key]) for key, value in module.named_parameters())
    assert any(not torch.equal(trained.params[key], params[key]) for key in params)


def test_frozen_parameters_are_neither_adapted_nor_differentiated_by():
    module, tasks = made(plain), tasks_of(VECTORS)
    module[0].requires_grad_(False)
    inner = mt.InnerLoop(0.05, 2)
    moved = mt.adapt(module, None, tasks[0], inner)
    own = dict(module.named_parameters())
    assert {key for key in own if not torch.equal(moved[key], own[key])} == {"2.weight", "2.bias"}
    gradient, _ = mt.meta_gradient(module, None, tasks, inner)
    expected = meta_autograd.meta_gradient(module, tasks, 0.05, 2)
    assert set(gradient) == set(expected) == {"2.weight", "2.bias"}
    assert all(relative(gradient[key], value) < 1e-12 for key, value in expected.items())
    kernel = meta_autograd.meta_ntk(module, tasks, 0.05, 2)
    assert relative(mt.empirical_meta_ntk(module, tasks, inner), kernel) < 1e-12
    record = mt.train(module, None, tasks, inner, 0.01, 2, kernel_steps=(2,))
    assert torch.equal(record.params["0.weight"], own["0.weight"])
    assert not torch.equal(record.params["2.weight"], own["2.weight"])
    whole = mt.empirical_ntk(module, VECTORS, select=lambda _: True)
    assert relative(whole, mt.empirical_ntk(made(plain), VECTORS)) < 1e-14
    module.requires_grad_(False)
    for entry in ENTRIES.values():
        with pytest.raises(MamlTheoryError, match=r"requires_grad_|no parameter|frozen"):
            entry(module, None, VECTORS, tasks)


def test_a_loss_that_diverges_is_said_before_it_is_infinite():
    module, tasks = made(plain), tasks_of(VECTORS)
    with pytest.raises(ValueRangeError, match=r"meta-loss is .* at step \d+.*learning rates are too large"):
        mt.train(module, None, tasks, INNER, 50.0, 20)
    with pytest.raises(ValueRangeError, match="at step 0"):
        mt.train(module, None, tasks, mt.InnerLoop(1e6, 2), 0.01, 3)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain().double())


def in_inference_mode(call):
    with torch.inference_mode():
        return call()


def renamed(prefix):
    return {f"{prefix}{key}": value.detach() for key, value in made(plain).named_parameters()}


NET, TASKS = made(plain), tasks_of(VECTORS)
PARAMS = {key: value.detach() for key, value in NET.named_parameters()}
ONE_COLUMN = [
    mt.Task(
        t.query_x,
        t.query_y.argmax(1, keepdim=True).double(),
        t.support_x,
        t.support_y.argmax(1, keepdim=True).double(),
    )
    for t in TASKS
]
MISTAKES = {  # name -> (a call, what its message says)
    "a single task": (lambda: mt.meta_ntk(NET, TASKS[0]), r"\[task\]"),
    "a single task to train": (lambda: mt.train(NET, None, TASKS[0], INNER, 0.1, 1), r"\[task\]"),
    "arrays": (lambda: mt.empirical_ntk(NET, VECTORS.numpy()), "ndarray"),
    "lists in a task": (lambda: mt.Task(*[[[0.0]]] * 4), "list"),
    "arrays as a kernel": (lambda: mt.condition_number(np.eye(3)), "ndarray"),
    "a string for dynamics": (lambda: mt.meta_ntk(NET, TASKS, dynamics="converged"), r"Converged\(ridge\)"),
    "a string for the time": (lambda: mt.time_operator(torch.eye(2), "flow"), r"GradientFlow\(time\)"),
    "a string for the inner loop": (lambda: mt.adapt(NET, None, TASKS[0], "maml"), r"InnerLoop\("),
    "a string for a rate": (lambda: mt.InnerLoop("0.1"), "lam0 is '0.1'"),
    "endless steps": (lambda: mt.InnerLoop(0.1, float("inf")), "tau is inf"),
    "a string for the outer rate": (lambda: mt.train(NET, None, TASKS, INNER, "a", 1), "rate is 'a'"),
    "half a sample at a time": (lambda: mt.empirical_ntk(NET, VECTORS, chunk=1.5), "chunk is 1.5"),
    "memory in words": (lambda: mt.empirical_ntk(NET, VECTORS, memory="1G"), "memory is '1G'"),
    "a number for names": (lambda: mt.empirical_ntk(NET, VECTORS, select=3), "select is 3"),
    "a number for the head": (lambda: mt.empirical_last_layer_ntk(NET, VECTORS, head=3), "head is 3"),
    "outputs by the batch": (
        lambda: mt.empirical_ntk(Own(lambda s, x: s.a(x) @ s.a(x).T, a=nn.Linear(4, 5)).double(), VECTORS),
        "mixes samples",
    ),
    "no network": (lambda: mt.empirical_ntk(lambda x: x, VECTORS), "expected a torch.nn.Module"),
    "a list of parameters": (
        lambda: mt.empirical_ntk(NET, VECTORS, params=list(NET.parameters())),
        "expected a dict",
    ),
    "names of DataParallel": (
        lambda: mt.empirical_ntk(NET, VECTORS, params=renamed("module.")),
        r"removeprefix\('module\.'\)",
    ),
    "names of torch.compile": (
        lambda: mt.adapt(NET, renamed("_orig_mod."), TASKS[0], INNER),
        r"removeprefix\('_orig_mod\.'\)",
    ),
    "missing names": (
        lambda: mt.empirical_ntk(NET, VECTORS, params={"0.weight": PARAMS["0.weight"]}),
        r"lacks \['0.bias'",
    ),
    "other names": (
        lambda: mt.meta_loss(NET, {**PARAMS, "3.bias": PARAMS["2.bias"]}, TASKS, INNER),
        r"has \['3.bias'\]",
    ),
    "other shapes": (
        lambda: mt.meta_gradient(NET, {**PARAMS, "2.bias": torch.zeros(4).double()}, TASKS, INNER),
        r"'2.bias' has shape \(4,\)",
    ),
    "names to a pure network": (
        lambda: mt.empirical_ntk(mt.Model(lambda p, x: x @ p["w"]), VECTORS, params=PARAMS),
        "KeyError: 'w'",
    ),
    "TorchScript": (lambda: mt.empirical_ntk(scripted(), VECTORS), "TorchScript"),
    "a tuple": (
        lambda: mt.empirical_ntk(Own(lambda s, x: (s.a(x), x), a=nn.Linear(4, 5)).double(), VECTORS),
        "a tuple: expected a tensor",
    ),
    "sparse gradients": (
        lambda: mt.empirical_ntk(
            nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 5)).double(), TOKENS
        ),
        "sparse=False",
    ),
    "gradients by counts": (
        lambda: mt.adapt(
            nn.Sequential(
                nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 5)
            ).double(),
            None,
            tasks_of(TOKENS)[0],
            INNER,
        ),
        "scale_grad_by_freq=False",
    ),
    "inference mode": (
        lambda: in_inference_mode(lambda: mt.empirical_ntk(NET, VECTORS)),
        "leave torch.inference_mode",
    ),
    "samples of inference mode": (
        lambda: mt.empirical_ntk(NET, in_inference_mode(lambda: draw(3, 4))),
        "clone",
    ),
    "complex weights": (
        lambda: mt.empirical_ntk(
            Own(
                lambda s, x: (x * (1 + 0j) @ s.w).abs(),
                w=nn.Parameter(torch.ones(4, 5, dtype=torch.complex128)),
            ),
            VECTORS,
        ),
        "expected real numbers",
    ),
    "complex outputs": (
        lambda: mt.empirical_ntk(Own(lambda s, x: s.a(x) * 1j, a=nn.Linear(4, 5).double()), VECTORS),
        "real",
    ),
    "complex samples": (lambda: mt.empirical_ntk(NET, VECTORS * 1j), "complex128"),
    "booleans": (lambda: mt.empirical_ntk(NET, VECTORS > 0), "bool"),
    "integers for floats": (lambda: mt.empirical_ntk(NET, TOKENS), "int64"),
    "samples of another width": (
        lambda: mt.empirical_ntk(NET, draw(3, 7)),
        r"fails on these samples \(RuntimeError",
    ),
    "tasks of another width": (
        lambda: mt.meta_loss(NET, None, tasks_of(draw(5, 7)), INNER),
        "fails on these samples",
    ),
    "another dtype": (lambda: mt.empirical_ntk(NET, VECTORS.float()), r"\.to\(dtype\)"),
    "another device": (lambda: mt.empirical_ntk(NET, VECTORS.to("meta")), r"meta|device"),
    "absent weights": (
        lambda: mt.empirical_ntk(nn.Linear(4, 5, device="meta"), VECTORS.float()),
        "meta device",
    ),
    "lazy weights": (lambda: mt.empirical_ntk(nn.LazyLinear(5), VECTORS.float()), "run the network once"),
    "outputs that are not numbers": (
        lambda: mt.empirical_ntk(Own(lambda s, x: s.a(x) / 0, a=nn.Linear(4, 5)).double(), VECTORS),
        "outputs have NaN or infinite",
    ),
    "class indices": (lambda: mt.Task(VECTORS, torch.arange(5), VECTORS, torch.arange(5)), "one_hot"),
    "class indices as a column": (lambda: mt.meta_ntk(NET, ONE_COLUMN), "one_hot"),
    "class indices to train by": (lambda: mt.train(NET, None, ONE_COLUMN, INNER, 0.1, 1), "one_hot"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("name", MISTAKES)
def test_foreseeable_mistakes_are_named(name):
    call, message = MISTAKES[name]
    with as_users_run_it(), pytest.raises(MamlTheoryError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_state_dict_with_its_buffers_serves_as_parameters():
    make, x = RIGHT["instance-norm"]
    module = made(make)
    assert torch.equal(mt.empirical_ntk(module, x, params=module.state_dict()), mt.empirical_ntk(module, x))
    other = {**module.state_dict(), "1.running_mean": torch.ones(4).double()}
    with pytest.raises(MamlTheoryError, match="load_state_dict"):
        mt.empirical_ntk(module, x, params=other)


def test_under_autocast_kernels_are_those_without():
    for make, x in (
        (plain, VECTORS),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 5)),
            draw(N, 3, 6, 6),
        ),
    ):
        module, tasks = made(make).float(), [task.to(torch.float32) for task in tasks_of(x)]
        for name, entry in ENTRIES.items():
            expected = entry(module, None, x.float(), tasks)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = entry(module, None, x.float(), tasks)
            if isinstance(expected, torch.Tensor):
                assert torch.equal(got, expected), name


def test_wrapped_networks_are_taken_out_of_their_wrapping():
    module = made(plain)
    assert torch.equal(mt.empirical_ntk(nn.DataParallel(module), VECTORS), mt.empirical_ntk(module, VECTORS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("where", ["whole", "in place", "a part"])
def test_compiled_networks_have_the_kernels_of_the_others(called, where):
    module = made(plain)
    expected = {name: entry(made(plain), None, VECTORS, TASKS) for name, entry in ENTRIES.items()}
    if where == "whole":
        module = torch.compile(module)
    elif where == "in place":
        module.compile()
    else:
        module[1] = torch.compile(module[1])
    if called:
        module(VECTORS)
    for name, entry in ENTRIES.items():
        got = entry(module, None, VECTORS, TASKS)
        if isinstance(got, torch.Tensor):
            assert relative(got, expected[name]) < 1e-12, name


def test_labels_of_another_number_of_outputs_are_refused_everywhere():
    with pytest.raises(ShapeError, match="labels of 1 numbers, expected 5"):
        mt.meta_loss(NET, None, ONE_COLUMN, INNER)
