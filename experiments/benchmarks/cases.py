"""What is compared: problems of some sizes, and ways to solve them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Sizes = Mapping[str, int | str]
Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Method:
    """One way to solve a group's problem.

    make: (problem) -> the call that is measured; what does not depend on the numbers is done in ``make``.
    package: distribution that it needs; None for torch alone and for ours.
    interpreter: it runs in another Python, which the command line names.
    read: what the call's result has to do with the group's, where it is not that itself.
    """

    name: str
    make: Callable[[object], Callable[[], object]] | None = None
    package: str | None = None
    ours: bool = False
    interpreter: str | None = None
    read: Callable[[object, object], Result] | None = None


@dataclass(frozen=True)
class Group:
    """Problems of one kind, and everything that can be measured on them.

    build: (sizes, dtype, device, seed) -> problem.  reference: plain PyTorch, obviously right.
    floor: FLOP that any method of this kind needs, a stated formula; None where products do not set the pace.
    parameters: number of the network's parameters.  quick: sizes that take no time.
    scaling: the base sizes and the values of each size over which cost is followed.
    """

    name: str
    build: Callable[[Sizes, torch.dtype, torch.device, int], object]
    methods: tuple[Method, ...]
    reference: Method
    quick: Sizes
    floor: Callable[[Sizes], float] | None = None
    parameters: Callable[[Sizes], int] | None = None
    export: Callable[[object], Mapping[str, object]] | None = None
    scaling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scaling_base: Sizes = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method of that name, or the reference."""
        return next(method for method in (*self.methods, self.reference) if method.name == name)


@dataclass(frozen=True)
class Case:
    """One problem, measured in float32.

    methods: names, ours first.  check: sizes that differ where the reference could not be computed; results
    are then compared there.
    """

    name: str
    title: str
    group: Group
    sizes: Sizes
    methods: tuple[str, ...]
    check: Sizes = field(default_factory=dict)
    tuned: bool = False

    @property
    def checked_sizes(self) -> Sizes:
        """Sizes at which results are compared."""
        return {**self.sizes, **self.check}
