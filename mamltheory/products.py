"""Matrix products by the fastest public route of torch: its own, or oneDNN on CPUs where its own leaves half unused.

torch hands float32 products to MKL. On AMD processors MKL takes its AVX2 kernels, and oneDNN, which torch has too,
takes AVX-512. Two public functions reach it, and they decide by how the right factor B of A B lies in memory:

    columns contiguous (A Wᵀ)     F.linear on A.to_mkldnn(); A and the result are copied once
    rows contiguous    (A W)      a transposed 1 × 1 convolution of one image in channels last, which copies neither

Both are exact float32 products: the results differ from ``@`` by rounding alone. Small products, other dtypes and
other devices keep ``@``, bit for bit; so do batched products.

The route is a function of the processor and of the sizes, never of a measurement: equal runs have equal bits.
The environment variable ``MAMLTHEORY_PRODUCTS`` fixes it:

    native    ``@`` everywhere
    large     oneDNN where the result has 2048 columns or more
    onednn    oneDNN for smaller products too
    auto      the default: "large" on AMD processors with AVX-512, "native" elsewhere. On processors that run AVX-512 at
              its full width (Zen 5) "onednn" promises more; it was not timed there
"""

import os
import platform
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamltheory.errors import ConfigurationError

Route = Literal["native", "large", "onednn"]
VARIABLE = "MAMLTHEORY_PRODUCTS"
LEAST_WORK = 1 << 25
"""Multiplications below which the copies of the linear route cost what its product gains."""
LEAST_CONVOLVED = 1 << 28
"""Multiplications below which the convolution, which rearranges B in every call, gains nothing."""
MOST_REARRANGED = 1 << 22
"""Numbers of B above which the convolution loses more by rearranging it than its product gains."""
LEAST_INNER, LEAST_LINEAR, LEAST_CONVOLUTION = 256, 128, 1024
"""Least columns of A, and least columns of B for the linear route and for the convolution."""
LEAST_LARGE = 2048
"""Least columns of B for either under "large"."""

_chosen: Route | None = None


def product_route() -> Route:
    """The route of large float32 products on the CPU in this process, by which equal runs have equal bits.

    Returns:
        "native", "large" or "onednn". ConfigurationError says that ``MAMLTHEORY_PRODUCTS`` holds another word.
    """
    if _chosen is None:
        fix_product_route(os.environ.get(VARIABLE, "auto"))
    return cast(Route, _chosen)


def fix_product_route(name: str) -> None:
    """Fixes the route in this process, before or after its first product.

    Args:
        name: "native", "large", "onednn", or "auto" to choose by the processor.

    Raises:
        ConfigurationError: another name.
    """
    global _chosen
    if name not in ("auto", *get_args(Route)):
        raise ConfigurationError(
            f"the route of products is {name!r}: expected auto, native, large or onednn; set {VARIABLE}"
        )
    _chosen = _by_processor() if name == "auto" else cast(Route, name)


def _by_processor() -> Route:
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "large" if wide and "AuthenticAMD" in _processor() else "native"


def _processor() -> str:
    """The vendor of the processor, among other words."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product a b, as ``@``: differentiable, to any order, and mapped by ``torch.func``.

    Args:
        a: … × m × j.
        b: j × n for a faster route; other shapes as ``@`` takes them.

    Returns:
        … × m × n.
    """
    if b.dim() != 2 or a.dim() < 2:
        return a @ b
    rows = a if a.dim() == 2 else a.flatten(0, -2)
    if not _is_faster(rows, b):
        return a @ b
    product = cast(Tensor, _OneDnnProduct.apply(rows, b))
    return product if a.dim() == 2 else product.unflatten(0, a.shape[:-1])


def affine(x: Tensor, weight: Tensor, bias: Tensor, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """The map beta · bias + alpha · x weightᵀ, as ``torch.addmm``.

    Args:
        x: m × j.
        weight: n × j.
        bias: n.
        beta: factor of the bias.
        alpha: factor of the product.

    Returns:
        m × n.
    """
    if x.dim() != 2 or not _is_faster(x, weight.T):
        return torch.addmm(bias, x, weight.T, beta=beta, alpha=alpha)
    shift = bias if beta == 1 else beta * bias
    return torch.add(shift, matmul(x, weight.T), alpha=alpha)


def _is_faster(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN takes the product of two matrices, and gains by it."""
    (m, j), n = a.shape, b.shape[1]
    work = m * j * n
    if work < LEAST_WORK or j < LEAST_INNER or n < LEAST_LINEAR or b.shape[0] != j:
        return False
    if not (_is_plain(a) and _is_plain(b)) or torch.compiler.is_compiling():
        return False
    route = product_route()
    if route == "native" or (route == "large" and n < LEAST_LARGE):
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False
    return _has_contiguous_columns(b) or (
        work >= LEAST_CONVOLVED and n >= LEAST_CONVOLUTION and j * n <= MOST_REARRANGED
    )


def _is_plain(x: Tensor) -> bool:
    known = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_neg()
    return known and x.dtype == torch.float32 and x.device.type == "cpu"


def _has_contiguous_columns(b: Tensor) -> bool:
    return b.stride(0) == 1 and b.stride(1) == b.shape[0]


class _OneDnnProduct(torch.autograd.Function):
    """The product of two matrices by oneDNN, with the rules that autograd and ``torch.func`` ask for."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        (m, j), n = a.shape, b.shape[1]
        if _has_contiguous_columns(b):
            return F.linear(a.contiguous().to_mkldnn(), b.T).to_dense()
        image = a.contiguous().view(1, 1, m, j).permute(0, 3, 1, 2)
        # A dilated kernel of one pixel is the same kernel, but torch hands few images to oneDNN only if it is dilated.
        product = F.conv_transpose2d(image, b.contiguous().view(j, n, 1, 1), dilation=2)
        # A view that is made in here may not be changed in place later: the caller gets a tensor that is none.
        return product.permute(0, 2, 3, 1).reshape(m, n).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        """Keeps both factors."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The cotangents of both factors, by products that are differentiable themselves."""
        a, b = ctx.saved_tensors
        by_a, by_b = ctx.needs_input_grad
        return matmul(cotangent, b.T) if by_a else None, matmul(a.T, cotangent) if by_b else None

    @staticmethod
    def jvp(ctx: Any, a_dot: Tensor | None, b_dot: Tensor | None) -> Tensor:
        """The derivative along (a_dot, b_dot)."""
        a, b = ctx.saved_tensors
        parts = [matmul(a_dot, b)] if a_dot is not None else []
        parts += [matmul(a, b_dot)] if b_dot is not None else []
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], a: Tensor, b: Tensor) -> tuple[Tensor, int]:  # noqa: ARG004
        """The batched product, which ``@`` takes."""
        moved = [x if axis is None else x.movedim(axis, 0) for x, axis in zip((a, b), in_dims, strict=True)]
        return moved[0] @ moved[1], 0
