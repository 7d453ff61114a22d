"""The dtype of kernels and of their accumulation: float64 unless float32 is asked for."""

import math

import pytest
import torch
from torch import nn

from mamltheory import (
    Converged,
    FullyConnected,
    InnerLoop,
    centred,
    condition_number,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    linearised,
    meta_ntk,
)
from mamltheory.errors import ValueRangeError
from tests.paper.cases import relative
from tests.strategies import task

NET = FullyConnected(4, 40, 2, 2, "erf")
PARAMS, ORIGIN = (NET.initialise(generator(seed, "init")) for seed in (0, 1))
TASKS = [task(0, i, k=2) for i in range(2)]
INNER = InnerLoop(0.3, 2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "inputs"), dtype=torch.float64)


def module():
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.GroupNorm(2, 6)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)),
    ).double()
    with torch.no_grad():
        for i, value in enumerate(net.parameters()):
            value.copy_(draw(*value.shape, seed=i) / 3)
    return net


def kernel_of(kind):
    """The kernel as a function of its dtype, and of that of the network."""
    x = draw(5, 4) if kind == "pure" else draw(5, 2, 8, 8)
    params = {name: value.float() for name, value in PARAMS.items()}
    tasks, model = [each.to(torch.float32) for each in TASKS], NET.model
    if kind == "rows":
        model = linearised(NET.model, {name: value.float() for name, value in ORIGIN.items()})
    calls = {
        "module": lambda **options: empirical_ntk(module().float(), x.float(), **options),
        "tiles": lambda **options: empirical_ntk(module().float(), x.float(), chunk=2, **options),
        "two sets": lambda **options: empirical_ntk(module().float(), x.float(), x[:2].float(), **options),
        "head": lambda **options: empirical_last_layer_ntk(module().float(), x.float(), **options),
        "pure": lambda **options: empirical_ntk(NET.model, x.float(), params=params, **options),
        "jacobian": lambda **options: empirical_ntk(module().float(), x.float(), method="generic", **options),
        "meta": lambda **options: empirical_meta_ntk(NET.model, tasks, INNER, params=params, **options),
        "rows": lambda **options: empirical_meta_ntk(model, tasks, INNER, params=params, **options),
        "composite": lambda **options: meta_ntk(
            NET.model, tasks, "anil", Converged(0.1), params=params, **options
        ),
    }
    return calls[kind]


KINDS = ["module", "tiles", "two sets", "head", "pure", "jacobian", "meta", "rows", "composite"]


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_float64_unless_float32_is_asked_for_which_costs_its_rounding(kind):
    call = kernel_of(kind)
    wide, narrow = call(), call(dtype=torch.float32)
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    assert torch.equal(call(dtype=torch.float64), wide)
    assert 1e-9 < relative(narrow.double(), wide) < 1e-5  # not rounded from the float64 kernel alone
    assert wide.shape[0] != wide.shape[1] or torch.equal(narrow, narrow.T)


def test_a_float32_kernel_accumulates_in_float32():
    """Rounding the float64 kernel would be nearer to it than half a unit in the last place everywhere."""
    call = kernel_of("module")
    assert not torch.equal(call(dtype=torch.float32), call().float())


def test_the_condition_number_takes_a_float32_kernel_at_float32s_rounding():
    """Two samples that differ by 1e-3 have an eigenvalue of some 1e-7 of the largest: float64 resolves it."""
    net, x = module(), draw(3, 2, 8, 8)
    x[1] = x[0] + 1e-3 * draw(2, 8, 8, seed=1)
    narrow, wide = (empirical_ntk(net, x, outputs="sum", dtype=dtype) for dtype in (torch.float32, None))
    assert math.isinf(condition_number(narrow))
    assert 1e5 < condition_number(wide) < 1e10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_other_dtypes_are_refused(dtype):
    for call in (kernel_of("module"), kernel_of("meta"), kernel_of("composite")):
        with pytest.raises(ValueRangeError, match="dtype"):
            call(dtype=dtype)


def test_a_centred_network_keeps_the_dtype_too():
    kernel = empirical_meta_ntk(centred(NET.model, ORIGIN), TASKS, INNER, params=PARAMS, dtype=torch.float32)
    assert kernel.dtype == torch.float32
