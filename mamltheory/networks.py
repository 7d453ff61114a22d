"""Wide fully connected networks of Eq. (16), and networks as pure functions: f, centred, linearised.

    h^1 = W^1 x + b^1,   h^{i+1} = W^{i+1} σ(h^i) + b^{i+1},   f(x) = h^{L+1}

Standard parameterisation: W^i ~ N(0, σ_w²/fan_in), b^i ~ N(0, σ_b²). Eq. (16) prints the fan-out as the index of
the variance; f_0 would then grow with the width, so that the fan-in must be meant.
NTK parameterisation: the same function at initialisation, with W^i = σ_w/√fan_in · ω^i, b^i = σ_b β^i, and ω, β
standard normal.
A residual network has h^{i+1} = h^i + W^{i+1} σ(h^i) + b^{i+1} between hidden layers; layer normalisation without
parameters takes the place of h^i inside σ.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from mamltheory.activations import FACTORED, Activation, activation_function, check_activation
from mamltheory.dynamics import is_number
from mamltheory.errors import (
    ConfigurationError,
    NetworkError,
    ShapeError,
    UnsupportedModelError,
    ValueRangeError,
)
from mamltheory.modules import call_module, check_module, guarded_forward, unwrapped
from mamltheory.tasks import Parameters

NORM_EPSILON = 1e-5
"""What layer normalisation adds to the variance, as in torch."""


@dataclass(frozen=True)
class Model:
    """A network as a pure function of its parameters.

    Args:
        function: (parameters, x) -> f_θ(x), of shape n × k.
        scale: l, by which every kernel and the learning rates λ0, η0 are divided: the width in standard
            parameterisation, 1 in NTK parameterisation and for a network without a width.
        head: names of the parameters of the last linear layer, which ANIL's inner loop adapts; empty for a network
            without one, None to find them in the module when samples are given.
        network: the fully connected network that this is, if it is one without residuals and normalisation and with
            erf, tanh or ReLU; MAML then needs no per-task weights.
        origin: the parameters θ0 of a centred network f_θ − f_{θ0}.
        module: the torch module that ``function`` calls, if it calls one.
        frozen: names of the parameters that stay constant.

    Example:
        >>> import torch
        >>> from mamltheory import Model
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> line({"w": torch.full((1, 1), 2.0)}, torch.ones(1, 1))
        tensor([[2.]])
    """

    function: Callable[[Parameters, Tensor], Tensor]
    scale: float = 1.0
    head: frozenset[str] | None = frozenset()
    network: "FullyConnected | None" = None
    origin: Parameters | None = field(default=None, repr=False, compare=False)
    module: nn.Module | None = field(default=None, repr=False, compare=False)
    frozen: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        if self.network is not None:
            what = repr(self.network)
        elif self.module is not None:
            what = type(self.module).__name__
        else:
            what = getattr(self.function, "__qualname__", type(self.function).__name__)
        parts = (what, "centred" * (self.origin is not None), f"scale {self.scale:g}" * (self.scale != 1))
        frozen = f"{len(self.frozen)} frozen" * bool(self.frozen)
        return f"Model({', '.join(filter(None, (*parts, frozen)))})"

    def __call__(self, params: Parameters, x: Tensor) -> Tensor:
        """f_θ(x)."""
        return self.function(params, x)

    def moving(self, params: Parameters) -> Parameters:
        """The parameters that are not frozen."""
        return {name: value for name, value in params.items() if name not in self.frozen}


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected network of Eq. (16).

    Args:
        input_dim: d.
        width: l, of every hidden layer.
        depth: L, the number of hidden layers.
        output_dim: k.
        activation: the name of σ ("erf", "tanh", "relu", "gelu", "silu", "softplus", "sin"), or any smooth pointwise
            function of a tensor.
        sigma_w: σ_w.
        sigma_b: σ_b.
        parameterisation: "standard" or "ntk", as at the head of this module.
        residual: add the preactivations of a hidden layer to those of the next.
        layer_norm: normalise the preactivations of hidden layers before σ, without parameters.

    Raises:
        ValueRangeError: a size below 1, a negative variance, or an unknown name.

    Example:
        >>> from mamltheory import FullyConnected, generator
        >>> net = FullyConnected(input_dim=3, width=8, depth=2)
        >>> params = net.initialise(generator(0, "init"))
        >>> {name: tuple(value.shape) for name, value in params.items() if name.startswith("weight")}
        {'weight1': (8, 3), 'weight2': (8, 8), 'weight3': (1, 8)}
    """

    input_dim: int
    width: int
    depth: int
    output_dim: int = 1
    activation: str | Activation = "erf"
    sigma_w: float = 1.5
    sigma_b: float = 0.1
    parameterisation: Literal["standard", "ntk"] = "standard"
    residual: bool = False
    layer_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("input_dim", "width", "depth", "output_dim"):
            size = getattr(self, name)
            if not (isinstance(size, Integral) and 1 <= int(size) < 2**31):
                raise ValueRangeError(f"{name} is {size!r}: expected a whole number of at least 1")
        if not (
            is_number(self.sigma_w) and is_number(self.sigma_b) and self.sigma_w > 0 and self.sigma_b >= 0
        ):
            raise ValueRangeError(
                f"sigma_w is {self.sigma_w}, sigma_b is {self.sigma_b}: "
                "expected finite sigma_w > 0 and sigma_b >= 0"
            )
        check_activation(self.activation)
        if not isinstance(self.parameterisation, str) or self.parameterisation not in ("standard", "ntk"):
            raise ValueRangeError(
                f"parameterisation is {self.parameterisation!r}: expected 'standard' or 'ntk'"
            )
        for name in ("residual", "layer_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueRangeError(f"{name} is {getattr(self, name)!r}: expected True or False")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Layer sizes d, l, …, l, k."""
        return (self.input_dim, *[self.width] * self.depth, self.output_dim)

    @property
    def model(self) -> Model:
        """The network as a pure function, with scale l (standard) or 1 (NTK parameterisation)."""
        head = f"{self.depth + 1}"
        scale = float(self.width) if self.parameterisation == "standard" else 1.0
        plain = self.activation in FACTORED and not (self.residual or self.layer_norm)
        return Model(
            self._forward, scale, frozenset({f"weight{head}", f"bias{head}"}), self if plain else None
        )

    def check(self, params: Parameters, x: Tensor) -> None:
        """A ShapeError for parameters or samples that are not this network's, or not of one dtype and device."""
        expected: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes), start=1):
            expected |= {f"weight{i}": (fan_out, fan_in), f"bias{i}": (fan_out,)}
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
        h = x
        for i, fan_in in enumerate(self.sizes[:-1], start=1):
            weight, bias = params[f"weight{i}"], params[f"bias{i}"]
            if self.parameterisation == "ntk":
                weight, bias = self.sigma_w / fan_in**0.5 * weight, self.sigma_b * bias
            step = nn.functional.linear(x, weight, bias)
            h = h + step if self.residual and 1 < i <= self.depth else step
            if i <= self.depth:
                x = nn.functional.layer_norm(h, (self.width,), eps=NORM_EPSILON) if self.layer_norm else h
                x = activation_function(self.activation)(x)
        return h

    def initialise(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Parameters:
        """Gaussian parameters θ_0 of Eq. (16), W^i of shape fan_out × fan_in, on the CPU."""
        params: Parameters = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes), start=1):
            standard = self.parameterisation == "standard"
            weight = torch.randn(fan_out, fan_in, generator=generator, dtype=dtype)
            bias = torch.randn(fan_out, generator=generator, dtype=dtype)
            params[f"weight{i}"] = weight * (self.sigma_w / fan_in**0.5) if standard else weight
            params[f"bias{i}"] = bias * self.sigma_b if standard else bias
        return params


def centred(model: Model, params0: Parameters) -> Model:
    """f_θ − f_{θ0}: the same kernels, and an output that is exactly zero at initialisation.

    This is the honest form of Assumption 5 (f_0 ≃ 0). Small σ_w and σ_b cannot give it: the output would vanish
    together with the kernel.

    Args:
        model: f.
        params0: θ0.

    Returns:
        The centred network.

    Example:
        >>> import torch
        >>> from mamltheory import FullyConnected, centred, generator
        >>> net = FullyConnected(input_dim=2, width=8, depth=1)
        >>> params = net.initialise(generator(0, "init"))
        >>> bool((centred(net.model, params)(params, torch.ones(3, 2).double()) == 0).all())
        True
    """
    _check_start(model, params0)

    def function(params: Parameters, x: Tensor) -> Tensor:
        return model(params, x) - model(params0, x)

    return replace(model, function=function, origin=params0)


def _check_start(model: Model, params0: Parameters) -> None:
    """Raises ConfigurationError for what is no Model, or no parameters."""
    if not isinstance(model, Model):
        raise ConfigurationError(
            f"the network is a {type(model).__name__}: expected a Model; take one from a torch.nn.Module by "
            "model, params = from_module(module), from a FullyConnected by its .model"
        )
    if not isinstance(params0, Mapping) or not all(isinstance(value, Tensor) for value in params0.values()):
        raise ConfigurationError(
            f"params0 is a {type(params0).__name__}: expected a dict from names to tensors"
        )


def linearised(model: Model, params0: Parameters) -> Model:
    """f_{θ0}(x) + ∇f_{θ0}(x)(θ − θ0): the network whose kernels never change, at any width.

    Args:
        model: f.
        params0: θ0.

    Returns:
        The linearised network.

    Example:
        >>> import torch
        >>> from mamltheory import Model, linearised
        >>> square = Model(lambda params, x: x * params["w"] ** 2)
        >>> tangent = linearised(square, {"w": torch.tensor(1.0)})
        >>> tangent({"w": torch.tensor(3.0)}, torch.ones(1, 1))  # 1 + 2 (3 − 1)
        tensor([[5.]])
    """
    _check_start(model, params0)

    def function(params: Parameters, x: Tensor) -> Tensor:
        tangent = {name: params[name] - params0[name] for name in params0}
        output, change = jvp(lambda p: model(p, x), (params0,), (tangent,))[:2]
        return output + change

    return replace(model, function=function, network=None)


def from_module(
    module: nn.Module, scale: float = 1.0, head: Collection[str] | None = None
) -> tuple[Model, Parameters]:
    """A torch module as a pure function, with its parameters; the function writes to neither.

    Parameters with ``requires_grad=False`` stay constant: no inner or outer loop moves them, and no kernel
    differentiates by them unless ``select=`` names them.

    An UnsupportedModelError refuses networks that have no kernel k(x, x'): with batch statistics the output of one
    sample depends on the others, and with active dropout it is not a function of θ and x. The list is that of
    :func:`mamltheory.modules.check_module`.

    Args:
        module: the network; one wrapped in DataParallel or torch.compile is unwrapped.
        scale: l, by which every kernel is divided; 1 for networks without a width.
        head: names of the parameters that ANIL adapts; None to find the last linear layer, see
            :func:`mamltheory.head.find_head`.

    Returns:
        The model and its parameters.

    Raises:
        ConfigurationError: what is given is no module, or has no parameters of these names.

    Example:
        >>> import torch
        >>> from mamltheory import from_module
        >>> model, params = from_module(torch.nn.Linear(3, 1))
        >>> sorted(params), tuple(model(params, torch.ones(2, 3)).shape)
        (['bias', 'weight'], (2, 1))
    """
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"the module is a {type(module).__name__}: expected a torch.nn.Module; a FullyConnected has its .model"
        )
    module = unwrapped(module)
    check_module(module)
    held = dict(module.named_parameters())
    params = {name: value.detach() for name, value in held.items()}
    frozen = frozenset(name for name, value in held.items() if not value.requires_grad)
    named = None if head is None else named_head(head, params)
    return Model(partial(call_module, module), scale, named, module=module, frozen=frozen), params


def named_head(head: Collection[str], params: Parameters) -> frozenset[str]:
    """The names that a user gives for the head; a ConfigurationError says that they are not parameters' names."""
    if isinstance(head, str) or not isinstance(head, Collection) or not head or not set(head) <= set(params):
        raise ConfigurationError(f"head is {head!r}: expected names of parameters, of {sorted(params)}")
    return frozenset(head)


def check_finite(params: Parameters) -> Parameters:
    """The same parameters; a ValueRangeError names the first with a NaN or infinite entry."""
    for name, value in params.items():
        # a NaN or infinite entry shows in the sum, which needs no memory; a sum of finite entries may overflow
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
        "operations that torch.autograd differentiates as often as needed, or exclude those parameters by "
        "select= or requires_grad_(False)"
    )


def output_of(model: Model, params: Parameters, x: Tensor) -> Float[Tensor, "n k"]:
    """f_θ(x) as n × k; a NetworkError says that the network fails, other errors are :func:`checked_output`'s."""
    # the network may write to its input
    return checked_output(guarded_forward(title_of(model), model.function, params, x.clone()), x)


def title_of(model: Model) -> str:
    """The network's name in messages."""
    return "the network" if model.module is None else type(model.module).__name__


def checked_output(output: object, x: Tensor) -> Float[Tensor, "n k"]:
    """The output of a network on samples; a ShapeError or UnsupportedModelError unless it is a real tensor n × k."""
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
            "take the real and imaginary parts as separate outputs"
        )
    return output
