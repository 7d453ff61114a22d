import pytest
import torch
from torch import nn
from torch.func import jacrev

from mamltheory import FullyConnected, InnerLoop, centred, empirical_meta_ntk, generator, linearised
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.factored.meta_ntk import factored_meta_ntk
from mamltheory.inner_loop import query_output
from mamltheory.kernels import empirical_meta
from mamltheory.kernels.empirical_meta import meta_jacobian
from tests.reference.meta_rows import meta_gram
from tests.strategies import as_users_run_it, task

NET = FullyConnected(4, 30, 2, 2, "erf")
PARAMS, ORIGIN = (NET.initialise(generator(seed, "init")) for seed in (0, 1))
TASKS = (task(0, 0, k=2), task(0, 1, n=1, m=2, k=2))
OTHERS = (task(0, 2, k=2), task(0, 3, n=1, m=2, k=2))
INNER = InnerLoop(0.3, 2)


def error(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("model", "structured"),
    [(NET.model, True), (centred(NET.model, ORIGIN), True), (linearised(NET.model, ORIGIN), False)],
    ids=["plain", "centred", "linearised"],
)
@pytest.mark.parametrize("other", [None, TASKS[1:], OTHERS], ids=["same", "fewer", "as-many"])
def test_every_method_gives_the_kernel_of_the_model_that_was_asked_for(model, structured, other):
    expected = meta_gram(model, PARAMS, TASKS, INNER, other) / model.scale
    for method in ["auto", "generic", *(["factored"] if structured else [])]:
        got = empirical_meta_ntk(model, TASKS, INNER, other, params=PARAMS, method=method)
        assert error(got, expected) < 1e-12


def test_networks_of_equation_16_take_the_factored_rows_by_themselves():
    for model, origin in ((NET.model, None), (centred(NET.model, ORIGIN), ORIGIN)):
        factored = factored_meta_ntk(NET, PARAMS, TASKS, INNER, origin=origin) / model.scale
        assert torch.equal(empirical_meta_ntk(model, TASKS, INNER, params=PARAMS), factored)


def test_shifting_the_support_labels_by_the_first_outputs_is_what_centring_does():
    """f − f_0 fits Y' as f fits Y' + f_0(X'), and without the shift the kernel is another one."""
    centre = empirical_meta_ntk(centred(NET.model, ORIGIN), TASKS, INNER, params=PARAMS)
    plain = empirical_meta_ntk(NET.model, TASKS, INNER, params=PARAMS)
    assert error(plain, centre) > 1e-3


REFUSED = {
    "method": (NET.model, {"method": "hooks"}, ValueRangeError, "'factored'"),
    "no-layers": (
        nn.Linear(4, 2).double(),
        {"method": "factored", "params": None},
        UnsupportedModelError,
        "FullyConnected",
    ),
    "memory": (NET.model, {"memory": 100}, ConfigurationError, "raise memory"),
    "nan": (NET.model, {"params": {**PARAMS, "bias1": PARAMS["bias1"] / 0}}, ValueRangeError, "bias1"),
    "other": (NET.model, {"other": [task(k=1)]}, ShapeError, "differs"),
    "float32": (
        NET.model,
        {"params": NET.initialise(generator(0, "init"), torch.float32)},
        ShapeError,
        "float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_metantk_is_refused(case):
    model, changes, kind, message = REFUSED[case]
    with as_users_run_it(), pytest.raises(kind, match=message):
        empirical_meta_ntk(model, TASKS, INNER, **{"params": PARAMS, **changes})


LOOPS = {
    "maml": InnerLoop(0.3, 2),
    "anil": InnerLoop(0.3, 2, "anil"),
    "boil": InnerLoop(0.3, 2, select=lambda name: name not in NET.model.head),
    "meta-sgd": InnerLoop((0.3, 0.2), 2, factors={"bias1": 3.0}),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_rows_through_hessian_vector_products_are_those_of_autograd_without_any_fallback(name, chunk):
    rows = meta_jacobian(NET.model, PARAMS, TASKS[0], LOOPS[name], chunk)
    expected = jacrev(lambda params: query_output(NET.model, params, TASKS[0], LOOPS[name]))(PARAMS)
    assert rows.keys() == expected.keys()
    assert max(error(rows[key], expected[key]) for key in rows) < 1e-12


def test_no_more_rows_than_a_chunk_are_differentiated_together(monkeypatch):
    chunks, plain = [], empirical_meta.jacobian
    monkeypatch.setattr(
        empirical_meta, "jacobian", lambda *a, **b: chunks.append(b.get("chunk")) or plain(*a, **b)
    )
    meta_jacobian(NET.model, PARAMS, TASKS[0], INNER, 2)
    assert chunks == [2]
