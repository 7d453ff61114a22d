"""Products by oneDNN are those of ``@`` up to rounding, for all shapes, strides and transforms, and never elsewhere."""

import operator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

from mamltheory import products
from mamltheory.errors import ConfigurationError
from mamltheory.products import affine, fix_product_route, matmul, product_route

LIMITS = ("LEAST_WORK", "LEAST_CONVOLVED", "LEAST_INNER", "LEAST_LINEAR", "LEAST_CONVOLUTION")
LAYOUTS = ("plain", "transposed", "every second column", "every second row", "offset", "expanded", "reversed")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
close = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _as_before():
    """The route that the process had."""
    before = products._chosen
    yield
    products._chosen = before


@pytest.fixture
def everywhere(monkeypatch):
    """oneDNN for products of every size."""
    for name in LIMITS:
        monkeypatch.setattr(products, name, 1)


def drawn(shape, layout="plain", seed=0):
    """A normal matrix of this shape that lies in memory as the layout says."""
    rows, columns = shape
    random = torch.Generator().manual_seed(seed)
    if layout == "transposed":
        return torch.randn(columns, rows, generator=random).T
    if layout == "expanded":
        return torch.randn(1, columns, generator=random).expand(rows, columns)
    step = 2 if layout.startswith("every second") else 1
    whole = torch.randn(rows * step + 1, columns * step + 1, generator=random)
    match layout:
        case "every second column":
            return whole[:rows, : 2 * columns : 2]
        case "every second row":
            return whole[: 2 * rows : 2, :columns].contiguous()[:, :columns]
        case "offset":
            return whole.flatten()[1 : 1 + rows * columns].view(rows, columns)
        case "reversed":
            return whole[:rows, :columns].flip(0)
        case _:
            return whole[:rows, :columns].contiguous()


sides = st.integers(1, 70)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sides, sides, sides, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
def test_every_shape_and_stride_has_the_product_of_the_plain_operator(m, j, n, left, right):
    fix_product_route("onednn")
    a, b = drawn((m, j), left), drawn((j, n), right, 1)
    assert_close(matmul(a, b), a @ b, **close)
    assert matmul(a, b).is_contiguous()
    weight, bias = b.T, drawn((1, n), "plain", 2)[0]
    expected = torch.addmm(bias, a, weight.T, beta=0.5, alpha=2.0)
    assert_close(affine(a, weight, bias, beta=0.5, alpha=2.0), expected, **close)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
)
def test_other_dtypes_have_the_bits_of_the_plain_operator(dtype):
    fix_product_route("onednn")
    a, b = ((10 * drawn(shape)).to(dtype) for shape in ((9, 7), (7, 5)))
    assert torch.equal(matmul(a, b), a @ b)
    assert torch.equal(matmul(a, b.T.contiguous().T), a @ b)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((5, 2, 3), (5, 3, 4))])
def test_vectors_and_batches_have_the_bits_of_the_plain_operator(shapes):
    fix_product_route("onednn")
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    assert torch.equal(matmul(a, b), a @ b)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
def test_leading_axes_are_rows():
    fix_product_route("onednn")
    a, b = drawn((24, 9)).view(2, 3, 4, 9), drawn((9, 5))
    assert matmul(a, b).shape == (2, 3, 4, 5)
    assert_close(matmul(a, b), a @ b, **close)


@pytest.mark.usefixtures("everywhere")
def test_shapes_that_do_not_fit_are_refused_as_by_the_plain_operator():
    fix_product_route("onednn")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        matmul(torch.ones(3, 4), torch.ones(5, 3))


ORIENTATIONS = pytest.mark.parametrize("layout", ["plain", "transposed"])


def losses(layout):
    """The same function of two matrices through both products, and where to take it."""
    a, b = 0.3 * drawn((12, 9)), 0.3 * drawn((9, 8), layout, 1)
    both = [
        lambda a, b, product=product: product(a, b).tanh().square().sum()
        for product in (matmul, operator.matmul)
    ]
    return *both, (a, b)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
@ORIENTATIONS
def test_first_and_second_derivatives_by_autograd(layout):
    fix_product_route("onednn")
    ours, plain, _ = losses(layout)
    results = []
    for loss in (ours, plain):
        leaves = [x.detach().requires_grad_() for x in losses(layout)[2]]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        results.append([*first, *second])
    assert_close(*results, **close)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
@ORIENTATIONS
def test_a_product_may_be_changed_in_place(layout):
    fix_product_route("onednn")
    gradients = []
    for product in (matmul, operator.matmul):
        a, b = (x.requires_grad_() for x in losses(layout)[2])
        changed = product(a, b).unflatten(0, (3, 4)).mul_(2.0)
        gradients.append(torch.autograd.grad(changed.square().sum(), (a, b)))
    assert_close(*gradients, **close)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
@ORIENTATIONS
def test_transforms_of_functions_pass_through(layout):
    fix_product_route("onednn")
    ours, plain, at = losses(layout)
    stacks = tuple(torch.stack([x, 2 * x, -x]) for x in at)
    for of in (
        lambda f: jvp(f, at, at),
        lambda f: jvp(lambda a: f(a, at[1]), at[:1], at[:1]),
        lambda f: vjp(f, *at)[1](torch.ones(())),
        lambda f: jvp(grad(f, (0, 1)), at, at)[1],
        lambda f: hessian(f, 1)(*at),
        lambda f: jacrev(jacrev(f), 1)(*at),
        lambda f: vmap(f)(*stacks),
        lambda f: vmap(f, (0, None))(stacks[0], at[1]),
        lambda f: vmap(f, (None, 2))(at[0], stacks[1].permute(1, 2, 0)),
        lambda f: vmap(grad(f, (0, 1)), (0, None))(stacks[0], at[1]),
        lambda f: grad(lambda a, b: vmap(f, (None, 0))(a, b).sum())(at[0], stacks[1]),
        lambda f: vmap(vmap(f, (0, None)), (None, 0))(*stacks),
    ):
        assert_close(of(ours), of(plain), **close)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
def test_a_module_is_called_with_other_parameters():
    fix_product_route("onednn")

    class Layer(torch.nn.Linear):
        def forward(self, x):
            return affine(x, self.weight, self.bias)

    layer, x = Layer(9, 8), drawn((12, 9))
    params = {"weight": drawn((8, 9), seed=1), "bias": torch.ones(8)}
    assert_close(
        functional_call(layer, params, (x,)), torch.nn.functional.linear(x, *params.values()), **close
    )


@pytest.mark.usefixtures("everywhere")
def test_other_kinds_of_tensors_and_autocast_keep_the_plain_operator():
    fix_product_route("onednn")
    a, b = drawn((12, 9)), drawn((9, 8))
    assert matmul(a.to("meta"), b.to("meta")).shape == (12, 8)
    assert torch.equal(matmul(a.to_sparse(), b), a.to_sparse() @ b)
    negative = torch.complex(a, a).conj().imag
    assert negative.is_neg()
    assert torch.equal(matmul(negative, b), negative @ b)
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul(a, b).dtype == torch.bfloat16


def test_small_products_have_the_bits_of_the_plain_operator():
    fix_product_route("onednn")
    a, b = drawn((50, 512)), drawn((512, 512))
    assert torch.equal(matmul(a, b), a @ b)
    assert torch.equal(matmul(a, b.T), a @ b.T)


@needs_onednn
def test_large_products_take_onednn_unless_the_route_is_fixed():
    a, b = drawn((64, 1024)), drawn((1024, 1024), "transposed", 1)
    for route in ("native", "large"):
        fix_product_route(route)
        assert torch.equal(matmul(a, b), a @ b)
    fix_product_route("onednn")
    assert type(matmul(a.requires_grad_(), b).grad_fn).__name__ == "_OneDnnProductBackward"
    assert_close(matmul(a, b), a @ b, rtol=1e-4, atol=1e-3)


@needs_onednn
def test_the_large_route_begins_at_2048_columns():
    fix_product_route("large")
    a, b = drawn((64, 256)).requires_grad_(), drawn((256, 2048), "transposed", 1)
    names = [type(matmul(a, b[:, :columns]).grad_fn).__name__ for columns in (2047, 2048)]
    assert names == ["MmBackward0", "_OneDnnProductBackward"]


def processor(monkeypatch, vendor, capability, onednn=True):
    monkeypatch.setattr(products, "_processor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)


@pytest.mark.parametrize(
    ("vendor", "capability", "onednn", "route"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t: 2", "AVX512", True, "large"),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t: 97", "AVX512", True, "large"),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26", "AVX512", False, "native"),
        ("vendor_id\t: AuthenticAMD", "AVX2", True, "native"),
        ("vendor_id\t: GenuineIntel", "AVX512", True, "native"),
        ("", "DEFAULT", True, "native"),
    ],
)
def test_the_processor_chooses(monkeypatch, vendor, capability, onednn, route):
    processor(monkeypatch, vendor, capability, onednn)
    fix_product_route("auto")
    assert product_route() == route


def test_the_environment_fixes_the_route_once(monkeypatch):
    processor(monkeypatch, "vendor_id\t: AuthenticAMD\ncpu family\t: 26", "AVX512")
    products._chosen = None
    monkeypatch.setenv("MAMLTHEORY_PRODUCTS", "native")
    assert product_route() == "native"
    monkeypatch.setenv("MAMLTHEORY_PRODUCTS", "onednn")
    assert product_route() == "native"


def test_another_word_is_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match="expected auto, native, large or onednn"):
        fix_product_route("mkl")
    products._chosen = None
    monkeypatch.setenv("MAMLTHEORY_PRODUCTS", "fast")
    with pytest.raises(ConfigurationError, match="set MAMLTHEORY_PRODUCTS"):
        product_route()
