import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import FullyConnected, InnerLoop, centred, empirical_ntk, generator
from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.factored.fast_weights import stack_tasks
from mamltheory.factored.meta_jacobian import meta_rows
from mamltheory.factored.meta_ntk import factored_meta_ntk, tile_bytes
from mamltheory.factored.rows import DenseRows, FactoredRows
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from tests.reference.meta_rows import meta_gram, meta_jacobian_matrix
from tests.strategies import as_users_run_it, networks, task, tasks

WIDE = FullyConnected(4, 40, 2, 2, "erf")


def error(got, expected):
    """Largest difference relative to the largest entry."""
    return float((got - expected).abs().max() / expected.abs().max())


def start(net, seed=0, dtype=torch.float64):
    return net.initialise(generator(seed, "init"), dtype)


def several(net, count=4, dtype=torch.float64):
    """Tasks of two different sizes, not grouped by size."""
    return tuple(task(0, i, 1 + i % 2, 3 - i % 2, net.input_dim, net.output_dim, dtype) for i in range(count))


@st.composite
def loops(draw, net):
    top = 0.3 if net.parameterisation == "standard" else 0.03
    return InnerLoop(
        draw(st.floats(0, top)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from(["maml", "anil"])),
        draw(st.booleans()),
    )


@st.composite
def any_network(draw):
    """A small network as elsewhere, or one wide enough that factors are smaller than rows."""
    net = draw(networks())
    return FullyConnected(**{**vars(net), "width": draw(st.sampled_from([net.width, 30, 60]))})


@pytest.mark.paper("Eq. (4)", "Eq. (24)")
@settings(max_examples=60)
@given(st.data(), any_network(), st.booleans())
def test_the_factored_metantk_is_the_gram_matrix_of_the_whole_jacobian(data, net, is_centred):
    params, inner = start(net), data.draw(loops(net))
    some = data.draw(tasks(net.input_dim, net.output_dim))
    other = data.draw(st.none() | tasks(net.input_dim, net.output_dim))
    origin = start(net, seed=1) if is_centred else None
    model = centred(net.model, origin) if is_centred else net.model
    got = factored_meta_ntk(net, params, some, inner, other, origin=origin)
    assert error(got, meta_gram(model, params, some, inner, other)) < 1e-12


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize(("tau", "depth"), [(1, 1), (1, 2), (5, 2), (3, 3)])
def test_the_factored_kernel_is_that_of_hessian_vector_products(tau, depth, algorithm):
    net = FullyConnected(6, 80, depth, 3, "tanh")
    params, some, inner = start(net), several(net), InnerLoop(0.4, tau, algorithm)
    whole = empirical_meta_ntk(net.model, some, inner, params=params, method="generic")
    assert error(factored_meta_ntk(net, params, some, inner) / net.model.scale, whole) < 1e-12


def test_without_inner_steps_it_is_the_ntk_of_the_queries():
    params, some = start(WIDE), several(WIDE)
    ntk = empirical_ntk(WIDE.model, torch.cat([one.query_x for one in some]), params=params)
    for inner in (InnerLoop(0.4, 0), InnerLoop(0.0, 3), InnerLoop(0.0, 2, "anil")):
        assert error(factored_meta_ntk(WIDE, params, some, inner) / WIDE.model.scale, ntk) < 1e-12


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("tau", [1, 5])
def test_float32_rows_are_contracted_in_float64(activation, tau):
    """Rounding enters the rows alone: the kernel is positive semi-definite to float64's rounding."""
    net = FullyConnected(4, 100, 2, 2, activation)
    params, some, inner = start(net), several(net, 8), InnerLoop(0.3, tau)
    narrow = factored_meta_ntk(
        net, {n: v.float() for n, v in params.items()}, [one.to(torch.float32) for one in some], inner
    )
    assert narrow.dtype == torch.float64
    assert error(narrow, factored_meta_ntk(net, params, some, inner)) < 3e-6
    assert float(torch.linalg.eigvalsh(narrow)[0]) > -1e-13 * float(narrow.trace())
    assert torch.equal(narrow, narrow.T)


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_tiles_change_nothing_beyond_rounding(algorithm, rectangular):
    params, some, inner = start(WIDE), several(WIDE, 9), InnerLoop(0.4, 2, algorithm)
    other = some[2:6] if rectangular else None
    whole = factored_meta_ntk(WIDE, params, some, inner, other)
    need = max(tile_bytes(WIDE, stack, inner, True) for stack in stack_tasks(some))
    for memory in (need, need // 2, need // 3):
        tiled = factored_meta_ntk(WIDE, params, some, inner, other, memory=memory)
        assert error(tiled, whole) < 1e-14
        assert rectangular or torch.equal(tiled, tiled.T)


def test_the_order_of_the_tasks_permutes_the_blocks():
    params, some, inner = start(WIDE), several(WIDE, 3), InnerLoop(0.4, 2)
    whole, turned = (factored_meta_ntk(WIDE, params, part, inner) for part in (some, some[::-1]))
    place = torch.tensor([6, 7, 2, 3, 4, 5, 0, 1])
    assert error(turned[place][:, place], whole) < 1e-14


def test_rows_are_held_as_factors_exactly_where_that_is_smaller():
    rows = meta_rows(WIDE, start(WIDE), stack_tasks(several(WIDE))[0], InnerLoop(0.4, 2))
    assert [type(layer) for layer in rows] == [FactoredRows, FactoredRows, DenseRows]
    narrow = FullyConnected(4, 3, 2, 1)
    rows = meta_rows(narrow, start(narrow), stack_tasks(several(narrow))[0], InnerLoop(0.4, 5))
    assert [type(layer) for layer in rows][1:] == [DenseRows, DenseRows]


def test_the_rows_multiplied_out_are_the_jacobian():
    net = FullyConnected(4, 30, 2, 2, "erf", parameterisation="ntk")
    params, one, inner = start(net), task(n=2, m=3, k=2), InnerLoop(0.03, 2)
    expected = meta_jacobian_matrix(net.model, params, [one], inner)
    products = []
    for layer, fan_in in zip(meta_rows(net, params, stack_tasks([one])[0], inner), net.sizes, strict=False):
        eye = torch.eye(fan_in, dtype=torch.float64)[None]
        bias = layer.times(torch.zeros_like(eye[:, :1]))  # β times the row of the bias
        products.append((layer.times(eye) - bias)[0].permute(1, 2, 0).flatten(1))
        products.append(bias[0, 0] / net.sigma_b)
    assert error(torch.cat(products, 1), expected) < 1e-13


def replaced(params, **changes):
    return {**params, **changes}


REFUSED = {
    "budget": ({"memory": 1000}, ConfigurationError, "raise memory"),
    "no-budget": ({"memory": 0}, ValueRangeError, "at least 1"),
    "missing": ({"params": {"weight1": torch.zeros(40, 4).double()}}, ShapeError, "expected"),
    "shape": ({"params": replaced(start(WIDE), bias1=torch.zeros(3).double())}, ShapeError, "bias1"),
    "dtype": ({"params": start(WIDE, dtype=torch.float32)}, ShapeError, "float32"),
    "inputs": ({"tasks": (task(d=3, k=2),)}, ShapeError, "expected 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    changes, kind, message = REFUSED[case]
    arguments = {"params": start(WIDE), "tasks": several(WIDE), "inner": InnerLoop(0.4, 2), **changes}
    with as_users_run_it(), pytest.raises(kind, match=message):
        factored_meta_ntk(WIDE, **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_on_cuda_is_that_of_the_cpu(dtype):
    params, some, inner = start(WIDE, dtype=dtype), several(WIDE, dtype=dtype), InnerLoop(0.4, 2)
    there = factored_meta_ntk(
        WIDE, {n: v.cuda() for n, v in params.items()}, [t.to("cuda") for t in some], inner
    )
    assert there.device.type == "cuda"
    here = factored_meta_ntk(WIDE, params, some, inner)
    assert error(there.cpu(), here) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("count", "alone", "among_several"), [(2, 256160, 310112), (400, 70775040, 81565440)]
)
def test_the_bytes_of_a_tile_are_those_of_its_rows_and_of_the_larger_of_pass_and_contraction(
    count, alone, among_several
):
    """Layers of 4 × 40, 40 × 40 and 40 × 2, and tasks of three queries and two support samples, so six rows.

    A row holds 120, 360 and 82 numbers. The passes hold 12 (2 · 166 + 4 · 80) + (6 + 3 + 20) 166 = 12,638 numbers for
    each task, the contraction 12 · 360 for each task, 3 · 7 · 6 · 80, and the square of all rows.
    """
    (stack,) = stack_tasks([task(0, 0, 3, 2, 4, 2)] * count)
    inner, rows, square = InnerLoop(0.4, 2), 8 * 6 * count * (120 + 360 + 82), (6 * count) ** 2
    later = max(8 * count * 12638, 8 * (12 * 360 * count + 3 * 7 * 6 * 80 + square))
    assert tile_bytes(WIDE, stack, inner, False) == rows + later == alone
    assert tile_bytes(WIDE, stack, inner, True) == 2 * rows + later == among_several


def test_the_bytes_of_one_task_are_enough():
    params, some, inner = start(WIDE), [task(0, i, k=2) for i in range(3)], InnerLoop(0.4, 2)
    least = tile_bytes(WIDE, stack_tasks(some[:1])[0], inner, True)
    tiled = factored_meta_ntk(WIDE, params, some, inner, memory=least)
    assert error(tiled, factored_meta_ntk(WIDE, params, some, inner)) < 1e-14
    with pytest.raises(ConfigurationError, match=f"need {least} bytes"):
        factored_meta_ntk(WIDE, params, some, inner, memory=least - 1)
