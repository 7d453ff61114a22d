"""Tensors of the device, and the mode that computes on them."""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

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


class Card(TorchDispatchMode):
    """Computes on what tensors of the device hold; refuses what CUDA refuses; counts what the host does.

    Attributes:
        launches: how often each operation ran on the device, by its name; views and allocations are not counted.
        waits: how often the host waited for the device, by (operation, place); see ``place``.
        uploads: how often data came from the CPU, by (operation, place).
    """

    def __init__(self, tf32: bool) -> None:
        super().__init__()
        self.tf32 = tf32
        self.launches, self.waits, self.uploads = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        ours = [each for each in tensors if isinstance(each, CardTensor)]
        wanted = kwargs.get("device")
        made_here = wanted is not None and torch.device(wanted).type == INNER.type
        if not ours and not made_here:
            return function(*args, **kwargs)
        name = function._schema.name.partition("::")[2]
        if ours:
            self._check(function, name, args, tensors, len(ours))
        self._note(function, name, args, ours, wanted, made_here)
        held = [each.held if isinstance(each, CardTensor) else each for each in leaves]
        if self.tf32 and self._in_tf32(name):
            held = [rules.rounded_to_tf32(each) if isinstance(each, Tensor) else each for each in held]
        outer = args, kwargs
        args, kwargs = tree_unflatten(held, spec)
        if made_here:
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        result = function(*args, **kwargs)
        if name == "_to_copy" and wanted is not None and not made_here:
            return result
        if name == "copy_" and not isinstance(tensors[0], CardTensor):
            return tensors[0]
        if torch.Tag.inplace_view in function.tags:
            with no_dispatch():
                function(*outer[0], **outer[1])  # the wrapper, too, has another shape now
        known = {id(each.held): each for each in ours}  # what is written in place keeps its wrapper

        def wrapped(each):
            if not isinstance(each, Tensor):
                return each
            return known[id(each)] if id(each) in known else CardTensor(each)

        return tree_map(wrapped, result)

    def _check(self, function, name, args, tensors, count) -> None:
        if count < len(tensors):
            foreign = [each for each in tensors if not isinstance(each, CardTensor)]
            if not rules.takes(function, name, args, foreign, isinstance(tensors[0], CardTensor)):
                raise CardError(
                    f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: "
                    f"{name} with {[tuple(each.shape) for each in foreign]} on the CPU, at {place()}"
                )
        if torch.are_deterministic_algorithms_enabled() and rules.has_no_deterministic_form(name, tensors):
            raise CardError(f"{name} does not have a deterministic implementation on CUDA, at {place()}")
        if torch.Tag.inplace_view in function.tags:
            raise NotImplementedError(
                f"the fake device cannot change the shape in place: {name}, at {place()}"
            )

    def _note(self, function, name, args, ours, wanted, made_here) -> None:
        def note(counter, what):
            counter[what, place()] += 1

        if name in rules.READS or function in rules.READING_OVERLOADS:
            note(self.waits, name)
        elif name in rules.INDEXED:
            indices = [each for each in args[1] if isinstance(each, Tensor)]
            filled = name != "index" and len(args) > 2 and args[2].numel() == 1  # masked_fill needs no count
            for each in indices:
                if not isinstance(each, CardTensor):
                    note(self.uploads, name)
                elif each.dtype in (torch.bool, torch.uint8) and not filled:
                    note(self.waits, name)
        elif name in rules.COPIES:
            source = isinstance(args[1 if name == "copy_" else 0], CardTensor)
            goal = (
                isinstance(args[0], CardTensor)
                if name == "copy_"
                else made_here or (source and wanted is None)
            )
            if source and not goal:
                note(self.waits, name)
            elif goal and not source:
                note(self.uploads, name)
        creates = not function.is_view and not name.startswith(rules.WITHOUT_KERNEL)
        if creates and (ours or made_here):
            self.launches[name] += 1

    def _in_tf32(self, name: str) -> bool:
        return (name in rules.CONVOLUTIONS and torch.backends.cudnn.allow_tf32) or (
            name in rules.PRODUCTS and torch.backends.cuda.matmul.allow_tf32
        )
