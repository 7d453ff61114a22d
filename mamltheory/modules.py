"""The networks of users as torch modules: which are refused, and how one is called without changing it."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from mamltheory.accelerator import float32_products, out_of_memory
from mamltheory.errors import ConfigurationError, MamlTheoryError, NetworkError, UnsupportedModelError

SAMPLEWISE = (
    *(nn.Sequential, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.LeakyReLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
"""Modules whose kernels have tested formulas, that write nothing, and that do not mix samples of the right shape."""

Output = TypeVar("Output")


class Interruption(Exception):
    """Raised by a hook to end a forward pass, and caught by whoever started the pass."""


_CHECKPOINTED = (
    "the network checkpoints activations (torch.utils.checkpoint, or another use of saved-tensor hooks), which hides "
    "parameters from a gradient or evaluates them again: turn it off, it saves memory alone and changes no number"
)


def unknown_parts(module: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """The largest parts of a network that are neither SAMPLEWISE nor made of such layers; hooks make a part unknown."""
    known = type(module) in SAMPLEWISE or (type(module) is nn.Flatten and module.start_dim > 0)
    if not known or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return {name: module}
    found: dict[str, nn.Module] = {}
    for child, part in module.named_children():
        found |= unknown_parts(part, f"{name}.{child}" if name else child)
    return found


def is_samplewise(module: nn.Module) -> bool:
    """Whether the network is made of SAMPLEWISE modules alone."""
    return not unknown_parts(module)


def is_dense(module: nn.Module) -> bool:
    """Whether the known layers take samples of any number of axes: then none can take the batch for another axis."""
    shaped = nn.Conv1d | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
    pooling = nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d
    return not any(isinstance(part, shaped | pooling) for part in module.modules())


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile; its parameters lose the prefix."""
    while True:
        inner = module._modules["_orig_mod"] if type(module).__name__ == "OptimizedModule" else None
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def check_module(module: nn.Module) -> None:
    """Refuses networks that have no kernel of single samples, or that torch cannot differentiate.

    Args:
        module: the network.

    Raises:
        UnsupportedModelError: batch statistics, active dropout, TorchScript, sparse gradients, lazy or absent
            weights; the message names the part.
    """
    for name, part in module.named_modules():
        kind = f"module {name!r} is a {type(part).__name__}"
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedModelError(f"{kind} of TorchScript: pass the nn.Module that it was made from")
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
            part.training or not part.track_running_stats
        ):
            raise UnsupportedModelError(
                f"{kind} that uses batch statistics: call .eval() on the network or use GroupNorm"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise UnsupportedModelError(f"{kind} that is active: call .eval() on the network")
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise UnsupportedModelError(f"{kind} with sparse gradients: make it with sparse=False")
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.scale_grad_by_freq:
            raise UnsupportedModelError(
                f"{kind} whose gradients count the tokens of the batch: make it with scale_grad_by_freq=False"
            )
    for name, value in module.named_parameters():
        if isinstance(value, nn.parameter.UninitializedParameter):
            raise UnsupportedModelError(f"parameter {name!r} has no shape yet: run the network once first")
        if value.is_meta:
            raise UnsupportedModelError(f"parameter {name!r} is on the meta device: give it values first")


def call_module(module: nn.Module, values: Mapping[str, Tensor], *args: object) -> Any:
    """module(*args) with these values of its parameters, and without any effect on the module.

    The forward pass writes to copies of buffers and of weights, and attributes that it stores are restored: a product
    of weights that a network caches belongs to the weights of this call. Every module is visited once: torch's own
    tying of weights would leave a module that stands in two places with the values of this call.

    Args:
        module: the network.
        values: its parameters by name.
        args: the inputs.

    Returns:
        The output of the network, whatever it is.

    Raises:
        ConfigurationError: the call is inside ``torch.nn.utils.parametrize.cached()``.
    """
    if getattr(parametrize, "_cache_enabled", 0):
        raise ConfigurationError(
            "parametrize.cached() keeps weights from one call to the next, and kernels and inner loops call the "
            "network with other weights: leave it"
        )
    clipped = rescaled_weights(module)
    first: dict[int, str] = {}
    copies: dict[int, Tensor] = {}
    held: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        for key, value in part._parameters.items():
            full = f"{name}.{key}" if name else key
            own = None if value is None else values.get(first.setdefault(id(value), full))
            if own is not None:
                held[full] = own.clone() if full in clipped else own
        for key, value in part._buffers.items():
            if value is not None:
                held[f"{name}.{key}" if name else key] = copies.setdefault(id(value), value.clone())
    with attributes_kept(module):
        return functional_call(module, held, args, tie_weights=False)


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Restores the Python attributes of a module and of its parts, and the entries of dicts, lists and sets there."""
    before = [(part, _attributes(part)) for part in module.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if type(value) in (dict, list, set)
    ]
    try:
        yield
    finally:
        for part, attributes in before:
            for name in _attributes(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
        for value, entries in contents:
            value.clear()
            value.extend(entries) if isinstance(value, list) else value.update(entries)


def _attributes(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _TORCH_ATTRIBUTES}


def holds_graph(module: nn.Module) -> bool:
    """Whether an attribute of the module or of a part is a tensor that autograd computed from something else."""
    held = [value for part in module.modules() for value in _attributes(part).values()]
    held += [entry for value in held if type(value) is dict for entry in value.values()]
    held += [entry for value in held if type(value) in (list, tuple) for entry in value]
    return any(isinstance(value, Tensor) and value.grad_fn is not None for value in held)


def rescaled_weights(module: nn.Module) -> frozenset[str]:
    """Names of the weights of embeddings with ``max_norm``, which rescale in place the rows that they look up."""
    return frozenset(
        f"{name}.weight".removeprefix(".")
        for name, part in module.named_modules()
        if getattr(part, "max_norm", None) is not None
    )


@contextlib.contextmanager
def plain_numerics() -> Iterator[None]:
    """Settings under which numbers have full precision and derivatives of all orders exist.

    Autocast, TF32 and compiled code are off. Attention is computed by plain products, because its fused kernels have no
    second derivative. A network that draws at random leaves torch's generator as it was.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: under ``torch.inference_mode``, which records no gradients.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigurationError("kernels and meta-gradients need gradients: leave torch.inference_mode()")
    with contextlib.ExitStack() as stack:
        stack.enter_context(float32_products())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if "torch._dynamo" in sys.modules:  # something may be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def guarded_forward(name: str, forward: Callable[..., Output], *args: object) -> Output:
    """``forward(*args)``; an error inside becomes a NetworkError that names the network and keeps the message."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTED), warnings.catch_warnings():
            warnings.filterwarnings("error", "None of the inputs have requires_grad")
            return forward(*args)
    except (MamlTheoryError, Interruption):
        raise
    except UserWarning as warning:
        if "requires_grad" not in str(warning):
            raise
        raise UnsupportedModelError(_CHECKPOINTED) from warning
    except Exception as error:
        if _CHECKPOINTED in str(error):
            raise UnsupportedModelError(_CHECKPOINTED) from error
        if out_of_memory(error):
            raise
        lines = str(error).splitlines() or [""]
        raise NetworkError(
            f"{name} fails on these samples ({type(error).__name__}: {lines[0]}): check their shape and type, "
            "and that the network runs on them on its own"
        ) from error


def probe_weights(index: Tensor, like: Tensor) -> Tensor:
    """One fixed number of either sign per index, so that the weighted sum of gradients depends on each of them."""
    return index.to(like.device).double().cos().add(0.5).to(like.dtype)


def refuse_checkpointing(output: Tensor) -> None:
    """Raises UnsupportedModelError when a reentrant activation checkpoint lies on the way to this output."""
    seen: set[object] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise UnsupportedModelError(_CHECKPOINTED)
        waiting.extend(following for following, _ in node.next_functions)
