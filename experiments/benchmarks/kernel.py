"""The empirical NTK Θ̂ of modules: ours, and the packages for it or for per-sample gradients.

Floor, for a layer that maps J numbers to o at P positions (P = 1 for a linear layer): a forward pass, a backward pass
for each output, and then the contraction of the layer's factors (linear) or the per-sample gradients and their
products (convolution); symmetric Gram matrices cost half:

    2 n P J o  +  2 k n P J o (not for the first layer)  +  n² J + (k n)² o          linear
                                                         +  2 k n P J o + (k n)² J o  convolution
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mamltheory import empirical_ntk, generator

from .problems import (
    Case,
    Group,
    Method,
    Sizes,
    fully_connected_network,
    points,
    sequential,
    weight_shapes,
)

OURS, WIDE, FUNC, OPACUS = "ours", "ours, float64 sums", "torch.func", "opacus"
NNGEOMETRY, TANGENTS = "nngeometry", "neural-tangents"
STRIDES = (1, 2, 1, 2, 1)
"""Strides of the 3 × 3 convolutions of the convolutional network."""


@dataclass(frozen=True)
class KernelProblem:
    """A network and samples."""

    module: nn.Sequential
    x: Tensor

    @property
    def outputs(self) -> int:
        """Number of outputs k."""
        return len(self.module(self.x[:1])[0])


def build_kernel_problem(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> KernelProblem:
    """Network and samples of these ``sizes`` in ``dtype`` on ``device``; the draws depend on ``seed`` alone."""
    random = generator(seed, "benchmark kernel")
    if "channels" in sizes:
        module = convolutional_network(sizes, random)
        x = torch.randn(
            sizes["samples"], 3, sizes["image"], sizes["image"], generator=random, dtype=torch.float64
        )
    else:
        net = fully_connected_network(sizes)
        module = sequential(net, net.initialise(random))
        x = points(random, sizes["samples"], sizes["dimension"])
    return KernelProblem(module.to(device=device, dtype=dtype), x.to(device=device, dtype=dtype))


def convolutional_network(sizes: Sizes, random: torch.Generator) -> nn.Sequential:
    """Five convolutions 3 × 3 with bias and relu, then the mean over space and a linear layer."""
    layers: list[nn.Module] = []
    for i, stride in enumerate(STRIDES):
        inputs = 3 if i == 0 else sizes["channels"]
        layers += [nn.Conv2d(inputs, sizes["channels"], 3, stride, 1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes["channels"], sizes["outputs"])]
    module = nn.Sequential(*layers).double()
    with torch.no_grad():
        for value in module.parameters():
            fan_in = value[0].numel()
            noise = torch.randn(value.shape, generator=random, dtype=value.dtype)
            value.copy_(noise * ((2 / fan_in) ** 0.5 if value.dim() > 1 else 0.1))
    return module


def kernel_flop(sizes: Sizes) -> float:
    """FLOP of layer-wise contraction; the formula is the module's."""
    n, rows = sizes["samples"], sizes["samples"] * sizes["outputs"]
    total, first = 0, True
    for inputs, outputs, places in layer_shapes(sizes):
        product = places * inputs * outputs
        total += 2 * n * product + (0 if first else 2 * rows * product)
        linear = places == 1
        total += n**2 * inputs + rows**2 * outputs if linear else 2 * rows * product
        total += 0 if linear else rows**2 * inputs * outputs
        first = False
    return float(total)


def layer_shapes(sizes: Sizes) -> list[tuple[int, int, int]]:
    """(J, o, P) of every layer."""
    if "channels" not in sizes:
        return [(inputs, outputs, 1) for inputs, outputs in weight_shapes(sizes)]
    shapes, side, inputs = [], sizes["image"], 3
    for stride in STRIDES:
        side = -(-side // stride)
        shapes.append((9 * inputs, sizes["channels"], side**2))
        inputs = sizes["channels"]
    return [*shapes, (inputs, sizes["outputs"], 1)]


def kernel_parameters(sizes: Sizes) -> int:
    """Number of weights and biases."""
    return sum(inputs * outputs + outputs for inputs, outputs, _ in layer_shapes(sizes))


def our_kernel(problem: KernelProblem) -> Callable[[], Tensor]:
    """The package's empirical NTK of any module, in the network's dtype throughout as the peers'."""
    return lambda: empirical_ntk(problem.module, problem.x, dtype=problem.x.dtype)


def our_kernel_in_float64(problem: KernelProblem) -> Callable[[], Tensor]:
    """The package's empirical NTK as it is by default: the gradients' products are accumulated in float64."""
    return lambda: empirical_ntk(problem.module, problem.x)


def kernel_by_torch_func(problem: KernelProblem) -> Callable[[], Tensor]:
    """The tutorial of ``torch.func``: ``vmap(jacrev)`` of both arguments and one contraction a parameter."""
    module = problem.module
    params = {name: value.detach() for name, value in module.named_parameters()}

    def single(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, theta, (x[None],))[0]

    def jacobian(x: Tensor) -> list[Tensor]:
        parts = torch.func.vmap(torch.func.jacrev(single), (None, 0))(params, x)
        return [part.flatten(2) for part in parts.values()]

    def call() -> Tensor:
        left, right = jacobian(problem.x), jacobian(problem.x)
        blocks = [torch.einsum("Naf,Mbf->NaMb", a, b) for a, b in zip(left, right, strict=True)]
        return functools.reduce(torch.add, blocks).flatten(2).flatten(0, 1)

    return call


def kernel_by_backward_passes(problem: KernelProblem) -> Callable[[], Tensor]:
    """One backward pass for each output of each sample, and the rows' products."""
    params = tuple(problem.module.parameters())

    def call() -> Tensor:
        rows = []
        for sample in problem.x:
            for output in problem.module(sample[None])[0]:
                grads = torch.autograd.grad(output, params, retain_graph=True)
                rows.append(torch.cat([grad.reshape(-1) for grad in grads]))
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T

    return call


def kernel_by_opacus(problem: KernelProblem) -> Callable[[], Tensor]:
    """opacus: per-sample gradients of every output by ``GradSampleModule``, and their products."""
    from opacus import GradSampleModule

    module = GradSampleModule(problem.module, loss_reduction="sum")

    def call() -> Tensor:
        rows = []
        for c in range(problem.outputs):
            module.zero_grad()
            module(problem.x)[:, c].sum().backward()
            rows.append(torch.cat([value.grad_sample.flatten(1) for value in module.parameters()], dim=1))
        module.zero_grad()
        jacobian = torch.stack(rows, dim=1).flatten(0, 1)
        return jacobian @ jacobian.T

    return call


def kernel_by_nngeometry(problem: KernelProblem) -> Callable[[], Tensor]:
    """nngeometry: ``GramMatrix`` of the dense representation, its rows brought into our order."""
    from nngeometry import GramMatrix
    from nngeometry.object.fspace import FMatDense
    from torch.utils.data import DataLoader, TensorDataset

    samples = len(problem.x)
    data = TensorDataset(problem.x, torch.zeros(samples, dtype=torch.long))

    def call() -> Tensor:
        loader = DataLoader(data, batch_size=samples)
        kernel = GramMatrix(problem.module, loader, representation=FMatDense)
        return kernel.to_torch().permute(1, 0, 3, 2).flatten(2).flatten(0, 1)

    return call


def export_problem(problem: KernelProblem) -> dict[str, Any]:
    """Weights and samples as arrays, for a peer in another Python."""
    arrays = {
        f"p{i:02d}": value.detach().cpu().numpy() for i, value in enumerate(problem.module.parameters())
    }
    return arrays | {"x": problem.x.cpu().numpy()}


METHODS = (
    Method(OURS, our_kernel, ours=True),
    Method(WIDE, our_kernel_in_float64, ours=True),
    Method(FUNC, kernel_by_torch_func),
    Method(OPACUS, kernel_by_opacus, "opacus"),
    Method(NNGEOMETRY, kernel_by_nngeometry, "nngeometry"),
    Method(TANGENTS, interpreter="neural-tangents"),
)
REFERENCE = Method("autograd rows in float64", kernel_by_backward_passes)
FC: Sizes = {"width": 2048, "depth": 3, "outputs": 5, "activation": "relu", "dimension": 64, "samples": 50}
CONV: Sizes = {"channels": 48, "image": 32, "outputs": 5, "samples": 25}
GROUP = Group(
    "NTK",
    build_kernel_problem,
    METHODS,
    REFERENCE,
    quick={"width": 12, "samples": 3, "outputs": 2},
    floor=kernel_flop,
    parameters=kernel_parameters,
    export=export_problem,
    scaling={"width": (1024, 2048, 4096), "samples": (25, 50, 100), "outputs": (2, 5, 10)},
    scaling_base=FC,
)
CONVOLUTIONAL = Group(
    "NTK of a conv net",
    build_kernel_problem,
    METHODS,
    REFERENCE,
    quick={"channels": 4, "image": 8, "samples": 3, "outputs": 2},
    floor=kernel_flop,
    parameters=kernel_parameters,
    export=export_problem,
)
STRUCTURED = (OURS, WIDE, NNGEOMETRY, TANGENTS)
ALL = tuple(method.name for method in METHODS)


def kernel_case(width: int, methods: tuple[str, ...], **others: Any) -> Case:
    """The kernel of a fully connected network, L = 3: n = 50, k = 5."""
    title = f"NTK, fully connected, l = {width}"
    return Case(f"ntk-fc-l{width}", title, GROUP, {**FC, "width": width}, methods, **others)


CASES = (
    kernel_case(256, ALL),
    kernel_case(512, ALL),
    kernel_case(1024, STRUCTURED, check={"samples": 10}),
    kernel_case(2048, STRUCTURED, check={"samples": 4}, tuned=True),
    kernel_case(4096, STRUCTURED, check={"samples": 2}),
    Case("ntk-conv32s", "NTK, five convolutions, 32 × 32", CONVOLUTIONAL, CONV, ALL, tuned=True),
)
