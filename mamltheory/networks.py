"""Wide fully connected networks of Eq. (16), and the models that the theory speaks of: f, centred, linearised.

    h^1 = W^1 x + b^1,   h^{i+1} = W^{i+1} σ(h^i) + b^{i+1},   f(x) = h^{L+1}

Standard parameterisation: W^i ~ N(0, σ_w²/fan_in), b^i ~ N(0, σ_b²). Eq. (16) prints the fan-out as the index of
the variance; with that reading f_0 grows with the width, so that the fan-in must be meant.
NTK parameterisation: the same function at initialisation, with W^i = σ_w/√fan_in · ω^i, b^i = σ_b β^i, and ω, β
standard normal.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from mamltheory.errors import (
    ConfigurationError,
    NetworkError,
    ShapeError,
    UnsupportedModelError,
    ValueRangeError,
)
from mamltheory.modules import call_module, check_module, guarded_forward, unwrapped
from mamltheory.tasks import Parameters

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


@dataclass(frozen=True)
class Model:
    """A network as a pure function of its parameters, with what the theory needs to know about it.

    function: (parameters, x) -> f_θ(x), of shape n × k.
    scale: every kernel carries 1/scale, and the learning rates λ0, η0 are divided by it where they are applied;
        the width l in standard parameterisation, 1 in NTK parameterisation and for networks of one's own.
    head: names of the parameters of the last linear layer, all that ANIL's inner loop adapts; empty for a network
        without one, None where the module at hand shows it on its first samples.
    network: the fully connected network that this is, if it is one; then MAML can do without per-task weights.
    origin: the parameters θ0 of a centred network f_θ − f_{θ0}.
    module: the torch module that ``function`` calls, if it calls one.
    frozen: names of the parameters that stay constant.
    """

    function: Callable[[Parameters, Tensor], Tensor]
    scale: float = 1.0
    head: frozenset[str] | None = frozenset()
    network: "FullyConnected | None" = None
    origin: Parameters | None = field(default=None, repr=False, compare=False)
    module: nn.Module | None = field(default=None, repr=False, compare=False)
    frozen: frozenset[str] = frozenset()

    def __call__(self, params: Parameters, x: Tensor) -> Tensor:
        """f_θ(x)."""
        return self.function(params, x)

    def moving(self, params: Parameters) -> Parameters:
        """The parameters that are not frozen."""
        return {name: value for name, value in params.items() if name not in self.frozen}


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected network of Eq. (16): L = ``depth`` hidden layers of equal ``width`` l.

    Raises ValueRangeError for a size below 1, a negative variance, or an unknown name.
    """

    input_dim: int
    width: int
    depth: int
    output_dim: int = 1
    activation: Literal["erf", "tanh", "relu"] = "erf"
    sigma_w: float = 1.5
    sigma_b: float = 0.1
    parameterisation: Literal["standard", "ntk"] = "standard"

    def __post_init__(self) -> None:
        for name in ("input_dim", "width", "depth", "output_dim"):
            if getattr(self, name) < 1:
                raise ValueRangeError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not (0 < self.sigma_w < math.inf and 0 <= self.sigma_b < math.inf):
            raise ValueRangeError(
                f"sigma_w is {self.sigma_w}, sigma_b is {self.sigma_b}: "
                "expected finite sigma_w > 0 and sigma_b >= 0"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueRangeError(f"activation is {self.activation!r}: expected one of {sorted(ACTIVATIONS)}")
        if self.parameterisation not in ("standard", "ntk"):
            raise ValueRangeError(
                f"parameterisation is {self.parameterisation!r}: expected 'standard' or 'ntk'"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Layer sizes d, l, …, l, k."""
        return (self.input_dim, *[self.width] * self.depth, self.output_dim)

    @property
    def model(self) -> Model:
        """The network as a pure function, with scale l (standard) or 1 (NTK parameterisation)."""
        head = f"{self.depth + 1}"
        scale = float(self.width) if self.parameterisation == "standard" else 1.0
        return Model(self._forward, scale, frozenset({f"weight{head}", f"bias{head}"}), self)

    def check(self, params: Parameters, x: Tensor) -> None:
        """Raises ShapeError for parameters or samples that are not this network's, or not of one dtype and device."""
        layers = list(enumerate(pairwise(self.sizes), start=1))
        expected = {f"weight{i}": (fan_out, fan_in) for i, (fan_in, fan_out) in layers}
        expected |= {f"bias{i}": (fan_out,) for i, (_, fan_out) in layers}
        if set(params) != set(expected):
            raise ShapeError(f"the parameters are {sorted(params)}, expected {sorted(expected)}")
        for name, shape in expected.items():
            if tuple(params[name].shape) != shape:
                raise ShapeError(
                    f"parameter {name!r} has shape {tuple(params[name].shape)}, expected {shape}"
                )
            if params[name].dtype != x.dtype or params[name].device != x.device:
                raise ShapeError(
                    f"parameter {name!r} is {params[name].dtype} on {params[name].device}, the samples are "
                    f"{x.dtype} on {x.device}: convert them with .to, tasks with Task.to"
                )
        if x.shape[-1] != self.input_dim:
            raise ShapeError(f"got samples of {x.shape[-1]} numbers, expected {self.input_dim}")

    def _forward(self, params: Parameters, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.input_dim:
            raise ShapeError(f"x has shape {tuple(x.shape)}, expected samples × {self.input_dim}")
        for i, fan_in in enumerate(self.sizes[:-1], start=1):
            weight, bias = params[f"weight{i}"], params[f"bias{i}"]
            if self.parameterisation == "ntk":
                weight, bias = self.sigma_w / fan_in**0.5 * weight, self.sigma_b * bias
            x = nn.functional.linear(x, weight, bias)
            if i <= self.depth:
                x = ACTIVATIONS[self.activation](x)
        return x

    def initialise(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Parameters:
        """Gaussian parameters θ_0 of Eq. (16), W^i of shape fan_out × fan_in, on the CPU."""
        params: Parameters = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True), start=1):
            standard = self.parameterisation == "standard"
            weight = torch.randn(fan_out, fan_in, generator=generator, dtype=dtype)
            bias = torch.randn(fan_out, generator=generator, dtype=dtype)
            params[f"weight{i}"] = weight * (self.sigma_w / fan_in**0.5) if standard else weight
            params[f"bias{i}"] = bias * self.sigma_b if standard else bias
        return params


def centred(model: Model, params0: Parameters) -> Model:
    """f_θ − f_{θ0}: the same kernels, and an output that is exactly zero at initialisation.

    The honest form of Assumption 5 (f_0 ≃ 0), which small σ_w and σ_b cannot give: the output would vanish
    together with the kernel.
    """

    def function(params: Parameters, x: Tensor) -> Tensor:
        return model(params, x) - model(params0, x)

    return replace(model, function=function, origin=params0)


def linearised(model: Model, params0: Parameters) -> Model:
    """f_{θ0}(x) + ∇f_{θ0}(x)(θ − θ0): the network whose kernels never change, at any width."""

    def function(params: Parameters, x: Tensor) -> Tensor:
        tangent = {name: params[name] - params0[name] for name in params0}
        output, change = jvp(lambda p: model(p, x), (params0,), (tangent,))
        return output + change

    return replace(model, function=function, network=None)


def from_module(
    module: nn.Module, scale: float = 1.0, head: Collection[str] | None = None
) -> tuple[Model, Parameters]:
    """A torch module as a pure function, with its parameters; the function writes to neither.

    Parameters with ``requires_grad=False`` stay constant: no inner or outer loop moves them, and no kernel
    differentiates by them unless ``select=`` names them.

    Args:
        module: the network; one wrapped in DataParallel or torch.compile is taken out of it.
        scale: l, by which every kernel is divided; 1 for networks without a width of their own.
        head: names of the parameters that ANIL adapts; None finds the last linear layer, see
            :func:`mamltheory.head.find_head`.

    Raises:
        UnsupportedModelError: batch statistics, with which the output of one sample depends on the others and no
            kernel k(x, x') exists; active dropout, whose output is not a function of θ and x; and what else
            :func:`mamltheory.modules.check_module` names.
        ConfigurationError: ``head`` names parameters that do not exist.
    """
    module = unwrapped(module)
    check_module(module)
    params = {name: value.detach() for name, value in module.named_parameters()}
    frozen = frozenset(name for name, value in module.named_parameters() if not value.requires_grad)
    own_head = None if head is None else named_head(head, params)
    return Model(partial(call_module, module), scale, own_head, module=module, frozen=frozen), params


def named_head(head: Collection[str], params: Parameters) -> frozenset[str]:
    """The names that a user gives for the head; raises ConfigurationError unless they are parameters' names."""
    if isinstance(head, str) or not isinstance(head, Collection) or not head or not set(head) <= set(params):
        raise ConfigurationError(f"head is {head!r}: expected names of parameters, of {sorted(params)}")
    return frozenset(head)


def check_finite(params: Parameters) -> Parameters:
    """The parameters themselves; raises ValueRangeError naming the first that has a NaN or infinite entry."""
    for name, value in params.items():
        # a NaN or infinite entry shows in the sum, which needs no memory; a sum may also overflow by itself
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            raise ValueRangeError(
                f"parameter {name!r} has NaN or infinite entries: re-initialise or reload the network"
            )
    return params


def in_transform(values: Parameters) -> bool:
    """Whether the values belong to a transform of torch.func, such as grad or jvp."""
    try:
        for value in values.values():
            value.detach().requires_grad_(value.is_floating_point())
    except RuntimeError:
        return True
    return False


def not_differentiable(names: Collection[str], error: Exception) -> NetworkError:
    """The error for a network that torch.autograd cannot differentiate, once or twice."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return NetworkError(
        f"the network cannot be differentiated with respect to {sorted(names)} ({reason}): write that part with "
        "operations that torch.autograd differentiates as often as is needed, or keep those parameters out of it by "
        "select= or requires_grad_(False)"
    )


def output_of(model: Model, params: Parameters, x: Tensor) -> Float[Tensor, "n k"]:
    """f_θ(x) as n × k.

    Raises NetworkError when the network itself fails, ShapeError when it returns anything but rows of outputs.
    """
    name = "the network" if model.module is None else type(model.module).__name__
    return checked_output(guarded_forward(name, model.function, params, x.clone()), x)  # it may write to them


def checked_output(output: object, x: Tensor) -> Float[Tensor, "n k"]:
    """The output of a network on samples; raises ShapeError unless it is a real tensor n × k."""
    if not isinstance(output, Tensor):
        raise ShapeError(
            f"the network maps {len(x)} samples to a {type(output).__name__}: expected a tensor of {len(x)} × outputs; "
            "wrap it in a module that returns that tensor alone"
        )
    if output.dim() != 2 or len(output) != len(x) or output.shape[1] == 0:
        raise ShapeError(
            f"the network maps {len(x)} samples to shape {tuple(output.shape)}: expected {len(x)} × outputs, "
            "at least one"
        )
    if not output.is_floating_point():
        raise UnsupportedModelError(
            f"the network's outputs are {output.dtype}: expected real floating-point numbers; "
            "take the real and imaginary parts as outputs of their own"
        )
    return output
