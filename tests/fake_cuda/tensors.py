"""Tensors of the device, and the mode that computes on them."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_cuda import rules

CARD = torch.device("cuda", 0)
"""What the tensors say to Python."""
INNER = torch.device("lazy", 0)
"""What they say inside torch: a build for CPUs knows this name, and has no kernels for it that could get in between."""
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PACKAGES = (f"{ROOT}/mamltheory/", f"{ROOT}/experiments/")
HERE = frozenset(str(Path(__file__).with_name(name)) for name in ("tensors.py", "device.py"))


class CardError(RuntimeError):
    """What a real device would have refused, too."""


class CardTensor(Tensor):
    """A tensor that says it is on the device, and holds one of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        self = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=INNER,
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise CardError(f"{function} on a tensor of the fake device outside of its block, at {place()}")

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()

    def __repr__(self, *, tensor_contents=None):
        return f"CardTensor({self.held!r})"


def place() -> str:
    """The innermost line of the package that is at work, or else that outside torch, as "file:line"."""
    frame, outside = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGES):
            return f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        if outside is None and "/torch/" not in name and name not in HERE:
            outside = f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return outside or "?"


def _tensors(values) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation, which nests lists once."""
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from (inner for inner in each if isinstance(inner, Tensor))


def _held(value, tf32: bool):
    """An argument with what tensors of the device hold, rounded if need be, in their place."""
    if isinstance(value, list | tuple):
        return [_held(each, tf32) for each in value]
    value = value.held if isinstance(value, CardTensor) else value
    return rules.rounded_to_tf32(value) if tf32 and isinstance(value, Tensor) else value


def _wrapped(result, ours):
    """A result on the device; what was written in place keeps its wrapper."""
    if isinstance(result, list | tuple):
        return type(result)([_wrapped(each, ours) for each in result])
    if not isinstance(result, Tensor):
        return result
    for each in ours:
        if each.held is result:
            return each
    return CardTensor(result)


class Card(TorchDispatchMode):
    """Computes on what tensors of the device hold; refuses what CUDA refuses; counts what the host does.

    Attributes:
        launches: how often each operation ran on the device, by its name; views and allocations are not counted.
        waits: how often the host waited for the device, by (operation, place); see ``place``.
        uploads: how often data came from the CPU, by (operation, place).
        blocking: the uploads among them for which the host waits, without ``non_blocking``.
    """

    def __init__(self, tf32: bool) -> None:
        super().__init__()
        self.tf32 = tf32
        self.launches, self.waits, self.uploads, self.blocking = (Counter() for _ in range(4))

    def clear(self) -> None:
        """Counts from 0 again."""
        for counts in (self.launches, self.waits, self.uploads, self.blocking):
            counts.clear()

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here, and the wrapper that keeps dynamo out takes time

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        ours = [each for each in tensors if isinstance(each, CardTensor)]
        wanted = kwargs.get("device")
        made_here = wanted is not None and torch.device(wanted).type == INNER.type
        if not ours and not made_here:
            return function(*args, **kwargs)
        traits = rules.traits(function)
        self._check(function, traits, args, tensors, ours)
        self._note(traits, args, kwargs, made_here)
        tf32 = self.tf32 and self._in_tf32(traits.name)
        inner_args = [_held(each, tf32) for each in args]
        inner_kwargs = {name: _held(each, tf32) for name, each in kwargs.items()}
        if made_here:
            inner_kwargs["device"] = CPU
        if inner_kwargs.get("pin_memory"):
            inner_kwargs["pin_memory"] = False
        result = function(*inner_args, **inner_kwargs)
        if traits.name == "_to_copy" and wanted is not None and not made_here:
            return result
        if traits.name == "copy_" and not isinstance(tensors[0], CardTensor):
            return tensors[0]
        if traits.reshapes:
            with no_dispatch():
                tensors[0].data = CardTensor(tensors[0].held)  # the wrapper has its new shape, too
        return _wrapped(result, ours)

    def _check(self, function, traits, args, tensors, ours) -> None:
        if 0 < len(ours) < len(tensors):
            foreign = [each for each in tensors if not isinstance(each, CardTensor)]
            if not rules.takes(traits, args, foreign, isinstance(tensors[0], CardTensor)):
                raise CardError(
                    f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: "
                    f"{traits.name} with {[tuple(each.shape) for each in foreign]} on the CPU, at {place()}"
                )
        if torch.are_deterministic_algorithms_enabled() and rules.has_no_deterministic_form(
            traits.name, tensors
        ):
            raise CardError(f"{function} does not have a deterministic implementation on CUDA, at {place()}")

    def _note(self, traits, args, kwargs, made_here) -> None:
        name, wanted = traits.name, kwargs.get("device")
        if traits.reads:
            self.waits[name, place()] += 1
        elif traits.indexed:
            filled = name != "index" and len(args) > 2 and args[2].numel() == 1  # masked_fill needs no count
            for each in _tensors(args[1]):
                if not isinstance(each, CardTensor):
                    self._note_upload(name, False)
                elif each.dtype in (torch.bool, torch.uint8) and not filled:
                    self.waits[name, place()] += 1
        elif name in rules.COPIES:
            source = isinstance(args[1 if name == "copy_" else 0], CardTensor)
            goal = (
                isinstance(args[0], CardTensor)
                if name == "copy_"
                else made_here or (source and wanted is None)
            )
            if source and not goal:
                self.waits[name, place()] += 1
            elif goal and not source:
                self._note_upload(name, kwargs.get("non_blocking", len(args) > 2 and args[2]))
        if traits.launches:
            self.launches[name] += 1

    def _note_upload(self, name: str, in_background: bool) -> None:
        where = name, place()
        self.uploads[where] += 1
        if not in_background:
            self.blocking[where] += 1

    def _in_tf32(self, name: str) -> bool:
        return (name in rules.CONVOLUTIONS and torch.backends.cudnn.allow_tf32) or (
            name in rules.PRODUCTS and torch.backends.cuda.matmul.allow_tf32
        )
