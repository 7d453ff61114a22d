"""The block in which there is a device: names, generators and autocast, as a program in Python sees them."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.fake_cuda.tensors import CARD, INNER, Card, CardError, CardTensor, place

LOW = frozenset(
    {
        torch.conv1d,
        torch.conv2d,
        functional.conv2d,
        functional.linear,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.addmm,
    }
    | {
        torch.baddbmm,
        torch.einsum,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
        Tensor.mm,
        Tensor.bmm,
    }
)
"""What autocast on CUDA computes in the low precision."""
FULL = frozenset(
    {
        functional.cross_entropy,
        functional.nll_loss,
        functional.mse_loss,
        functional.softmax,
        functional.log_softmax,
    }
    | {
        functional.group_norm,
        functional.layer_norm,
        functional.normalize,
        torch.softmax,
        torch.log_softmax,
        torch.exp,
    }
    | {
        torch.log,
        torch.sum,
        torch.norm,
        torch.pow,
        Tensor.softmax,
        Tensor.log_softmax,
        Tensor.exp,
        Tensor.log,
    }
    | {Tensor.sum, Tensor.norm, Tensor.pow, Tensor.__pow__}
)
"""What it computes in float32."""


class CardGenerator(torch._C.Generator):
    """A generator that knows its device. Its numbers are those of the CPU."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.named = torch.device(device)
        return self

    @property
    def device(self):
        return CARD if self.named.type == "cuda" else self.named


def _inner(value):
    """The device inside torch for one that the program names."""
    cuda = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return INNER if cuda or (isinstance(value, torch.device) and value.type == "cuda") else value


def _outer(value):
    return CARD if isinstance(value, torch.device) and value.type == INNER.type else value


def _in_precision(dtype):
    def cast(value):
        wide = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if wide and value.device.type == INNER.type else value

    return cast


def _formatted(tensor, specification):
    return format(tensor.item(), specification) if tensor.dim() == 0 else repr(tensor)


def _no_numpy(*_args, **_kwargs):
    raise TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first. "
        f"At {place()}"
    )


SPECIAL = {
    Tensor.device.__get__: lambda tensor: _outer(Tensor.device.__get__(tensor)),
    Tensor.is_cuda.__get__: lambda tensor: Tensor.device.__get__(tensor).type == INNER.type,
    Tensor.cuda: lambda tensor, *_args, **_kwargs: tensor.to(INNER),
    Tensor.pin_memory: lambda tensor, *_args: tensor,
}
"""For all tensors, for those of torch.func hide what they wrap."""
ON_CARD = {
    Tensor.tolist: lambda tensor: tensor.cpu().tolist(),
    Tensor.numpy: _no_numpy,
    Tensor.__array__: _no_numpy,
    Tensor.__format__: _formatted,
}
"""For those of the device."""


class _Names(TorchFunctionMode):
    """Turns "cuda" into the device inside torch and back, and holds generators and autocast to the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {key: _inner(each) for key, each in (kwargs or {}).items()}
        if function in SPECIAL:
            return SPECIAL[function](*args, **kwargs)
        if function in ON_CARD and isinstance(args[0], CardTensor):
            return ON_CARD[function](*args, **kwargs)
        if function is Tensor.to:
            args = tuple(map(_inner, args))
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda") if function in LOW else torch.float32
            if function in LOW or function in FULL:
                args, kwargs = tree_map(_in_precision(dtype), (args, kwargs))
        result = function(*args, **kwargs)
        random = kwargs.get("generator")
        if random is not None and random.device.type != _outer(result.device).type:
            raise CardError(
                f"Expected a '{_outer(result.device).type}' device type for generator but found "
                f"'{random.device.type}' at {place()}"
            )
        return result


def _forget_kept_networks() -> None:
    """Drops the networks that the package keeps for the device: a real one may have the same name."""
    scorers = sys.modules.get("mamltheory.nas.scoring.scorers")
    if scorers is not None:
        scorers._whole_supernet.cache_clear()


@contextmanager
def fake_cuda(free: int = 8 << 30, tf32: bool = False) -> Iterator[Card]:
    """Within the block there is one CUDA device, "cuda:0"; see the package.

    Args:
        free: bytes of memory that torch.cuda.mem_get_info tells.
        tf32: whether products round their operands as TF32 does, where torch's switches allow it.

    Yields:
        The device with its counts.
    """
    card = Card(tf32)
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "a device that is not there",
        "mem_get_info": (free, free),
        "synchronize": None,
        "set_device": None,
        "empty_cache": None,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,  # a build for CUDA asks the driver, which is not there
        "_lazy_init": None,
    }
    kept = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_, _answer=answer, **__: _answer))
        stack.enter_context(mock.patch("torch.Generator", CardGenerator))
        # The backward pass stays in this thread, where the modes are.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, kept[0])
        stack.callback(torch._C._set_only_lift_cpu_tensors, kept[1])
        stack.callback(_forget_kept_networks)
        torch.__future__.set_swap_module_params_on_conversion(
            True
        )  # parameters stay the objects that they are
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # torch.tensor(..., device="cuda") is an upload that the mode sees
        stack.enter_context(card)
        stack.enter_context(_Names())
        yield card
