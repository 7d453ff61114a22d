"""Few-shot tasks as in Section 3 of the paper, checked."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Parameters = dict[str, Tensor]
"""The parameters θ of a network by name."""

Select = Collection[str] | Callable[[str], bool] | None
"""Names of parameters, or a predicate on names; None for all that require a gradient."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PARTS = "query_x", "query_y", "support_x", "support_y"


def params_optional(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let callers leave out the second argument, ``params``, which is None then: a module's own parameters.

    Args:
        function: takes (model, params, …).

    Returns:
        The same function, in which (model, tasks, …) and (model, tasks=…) stand for (model, None, tasks, …).
    """

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        second = args[1] if len(args) > 1 else None
        if len(args) < 2:
            kwargs.setdefault("params", None)
        elif any(
            isinstance(each, Task) for each in (second if isinstance(second, list | tuple) else [second])
        ):
            args = (args[0], None, *args[1:])  # type: ignore[assignment]
        return function(*args, **kwargs)

    return called


@dataclass(frozen=True, eq=False)
class Task:
    """A few-shot task T = (X, Y, X', Y') of Section 3: unprimed is *query*, primed is *support*.

    All parts share one floating-point dtype, and are finite and non-empty. Samples may also be integers (token ids).
    Labels are rows of real numbers: class indices become one-hot rows first. NumPy arrays become tensors of their
    dtype, which must be that of the network.

    Args:
        query_x: X, n × d, or n × any shape that the network takes.
        query_y: Y, n × k.
        support_x: X', m × d, or m × the same shape.
        support_y: Y', m × k.

    Raises:
        ShapeError: parts that do not fit together; the message names the part.
        ValueRangeError: a part with NaN or infinite entries.

    Example:
        >>> import torch
        >>> from mamltheory import Task
        >>> task = Task(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(4, 3), torch.ones(4, 1))
        >>> task.to(torch.float64).query_x.dtype
        torch.float64
    """

    query_x: Tensor
    query_y: Tensor
    support_x: Tensor
    support_y: Tensor

    def __post_init__(self) -> None:
        for name in PARTS:
            if isinstance(part := getattr(self, name), np.ndarray) and part.dtype.kind in "fiu":
                # a copy, for torch takes no negative strides and no foreign byte order
                part = torch.from_numpy(np.array(part, part.dtype.newbyteorder("="), order="C"))
                object.__setattr__(self, name, part)
            _check_part(name, part)
        for part in ("query", "support"):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if len(x) != len(y):
                raise ShapeError(
                    f"{part}_x has {len(x)} samples but {part}_y has {len(y)}: give one label row each"
                )
        if self.query_x.shape[1:] != self.support_x.shape[1:]:
            raise ShapeError(
                f"query_x has samples of shape {tuple(self.query_x.shape[1:])}, support_x of shape "
                f"{tuple(self.support_x.shape[1:])}: both go through one network, so they must agree"
            )
        if self.query_y.shape[1] != self.support_y.shape[1]:
            raise ShapeError(
                f"query_y has {self.query_y.shape[1]} outputs, support_y {self.support_y.shape[1]}: k must agree"
            )
        floating = [getattr(self, name) for name in PARTS if getattr(self, name).is_floating_point()]
        if len({part.dtype for part in floating}) != 1 or self.query_x.dtype != self.support_x.dtype:
            kinds = ", ".join(f"{name} is {getattr(self, name).dtype}" for name in PARTS)
            raise ShapeError(
                f"{kinds}: the parts of a task must share one dtype, floating-point but for samples that are integers; "
                "convert them with Task.to(dtype)"
            )

    def __repr__(self) -> str:
        sides = (
            f"{part} {len(x)} × {shape_of(x)}"
            for part, x in (("query", self.query_x), ("support", self.support_x))
        )
        kind = str(self.query_y.dtype).removeprefix("torch.")
        return f"Task({', '.join(sides)}, outputs {self.query_y.shape[1]}, {kind})"

    def to(self, *args: object, **kwargs: object) -> "Task":
        """The same task on another device or in another dtype, as ``torch.Tensor.to``; integer samples keep theirs."""
        return Task(*(_moved(getattr(self, name), args, kwargs) for name in PARTS))


def shape_of(samples: Tensor) -> str:
    """The shape of one sample, as in 3×28×28."""
    return "×".join(map(str, samples.shape[1:]))


def trusted_task(query_x: Tensor, query_y: Tensor, support_x: Tensor, support_y: Tensor) -> Task:
    """The task of parts that are known to fit and to be finite; without a check, for which the host would wait."""
    task = object.__new__(Task)
    for name, part in zip(PARTS, (query_x, query_y, support_x, support_y), strict=True):
        object.__setattr__(task, name, part)
    return task


def _moved(part: Tensor, args: tuple, kwargs: dict) -> Tensor:
    moved = part.to(*args, **kwargs)
    return moved if part.is_floating_point() else part.to(moved.device)


def _check_part(name: str, part: Tensor) -> None:
    if not isinstance(part, Tensor):
        raise ShapeError(
            f"{name} must be a floating-point tensor, got {type(part).__name__}: "
            "convert it with torch.as_tensor(...)"
        )
    check_dense(name, part)
    labels = name.endswith("_y")
    if labels and (part.dim() < 2 or not part.is_floating_point()):
        raise ShapeError(
            f"{name} has shape {tuple(part.shape)} and dtype {part.dtype}: expected floating-point samples × "
            "dimensions, one column per output; class indices become one-hot rows by "
            "torch.nn.functional.one_hot(y, k).to(x.dtype), and one real output keeps its axis, y[:, None]"
        )
    if part.is_complex() or part.dtype == torch.bool:
        raise ShapeError(
            f"{name} is {part.dtype}: expected real floating-point numbers, or integers for samples"
        )
    if part.dim() < 2 or (labels and part.dim() != 2):
        raise ShapeError(
            f"{name} has shape {tuple(part.shape)}: expected samples × dimensions "
            "(a single number per sample still needs its axis: y[:, None])"
        )
    if part.numel() == 0:
        raise ShapeError(
            f"{name} has shape {tuple(part.shape)}: a task needs at least one query and one support sample"
        )
    if not bool(torch.isfinite(part).all()):
        raise ValueRangeError(
            f"{name} contains NaN or infinite entries: clean the data before building the task"
        )


def check_dense(name: str, part: Tensor) -> None:
    """Raises ShapeError for a sparse, nested or quantised tensor."""
    if part.layout is not torch.strided or part.is_nested or part.is_quantized:
        kind = "nested" if part.is_nested else part.dtype if part.is_quantized else part.layout
        raise ShapeError(
            f"{name}: got a tensor that is {kind}, expected a dense one; convert it with to_dense(), a nested one with "
            "to_padded_tensor(0.0), a quantised one with dequantize()"
        )


def check_array(name: str, value: object, *sizes: int | None) -> None:
    """Raises ShapeError unless a value is a dense tensor of real numbers with these sizes (None: of any size)."""
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{name} is a {type(value).__name__}: expected a tensor; convert numbers with torch.as_tensor(...)"
        )
    check_dense(name, value)
    fits = value.dim() == len(sizes) and all(
        want in (None, got) for want, got in zip(sizes, value.shape, strict=True)
    )
    if not fits or value.is_complex() or value.dtype == torch.bool:
        wanted = " × ".join("any" if size is None else str(size) for size in sizes)
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}: expected real numbers of shape ({wanted})"
        )


def check_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks as a tuple; a ShapeError says that there are none, or that two do not fit one network."""
    if isinstance(tasks, Task | Tensor) or not isinstance(tasks, Iterable):
        raise ShapeError(
            f"tasks is a {type(tasks).__name__}: expected a sequence of tasks, [task] for a single one"
        )
    tasks = tuple(tasks)
    if not tasks:
        raise ShapeError("got no tasks: the meta-loss (2) needs at least one")
    for i, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise ShapeError(f"tasks[{i}] is a {type(task).__name__}, expected a mamltheory.Task")
        same = (
            task.query_x.shape[1:] == tasks[0].query_x.shape[1:]
            and task.query_y.shape[1] == tasks[0].query_y.shape[1]
            and (task.query_x.dtype, task.query_y.dtype) == (tasks[0].query_x.dtype, tasks[0].query_y.dtype)
        )
        if not same:
            raise ShapeError(f"tasks[{i}] differs from tasks[0] in input shape, number of outputs or dtype")
    return tasks


def query_labels(tasks: Sequence[Task]) -> Float[Tensor, " Nnk"]:
    """The stacked query labels 𝒴, flattened task by task, sample-major and class-minor."""
    return torch.cat([task.query_y.reshape(-1) for task in check_tasks(tasks)])


def selected_names(params: Parameters, select: Collection[str] | Callable[[str], bool]) -> frozenset[str]:
    """The names of parameters that ``select`` stands for; a ConfigurationError unless they exist, at least one."""
    if isinstance(select, str) or not (callable(select) or isinstance(select, Collection)):
        raise ConfigurationError(
            f"select is {select!r}: expected names of parameters, [{select!r}] for a single one, or a predicate"
        )
    try:
        names = frozenset(name for name in params if select(name)) if callable(select) else frozenset(select)
    except Exception as error:
        raise ConfigurationError(
            f"select fails ({type(error).__name__}: {error}): expected names of parameters or a predicate on names"
        ) from error
    if names - set(params):
        raise ConfigurationError(
            f"select names {sorted(map(str, names - set(params)))}, but the network has {sorted(params)}"
        )
    if not names:
        raise ConfigurationError(
            f"select={select!r} names no parameter of the network: it has {sorted(params)}"
        )
    return names
