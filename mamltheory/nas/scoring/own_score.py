"""A user's score of a network at initialisation, in place of the condition number C_N."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from mamltheory.arguments import check_function
from mamltheory.errors import ConfigurationError, MamlTheoryError
from mamltheory.files import reason
from mamltheory.tasks import Task


@dataclass(frozen=True)
class OwnScore:
    """A score of a network on few-shot tasks: a function of both that returns a number.

    Args:
        function: gets the network, whose images are n×3×h×w, with new weights and GroupNorm, and the tasks, on the
            network's device; it may change the network, which is its own. It returns a finite number, or for a network
            that is of no use the infinity that counts as worst. It should follow from its arguments alone: what it
            draws, it draws from a generator. With several processes, it must stand at the top level of a module. Its
            GroupNorm has weights and biases, and its classifier the classes of a task: it has another number of
            parameters than the network that is trained, which searches at one size count.
        largest_is_best: whether large numbers are good; otherwise small ones are.

    Raises:
        ConfigurationError: something other than a function.

    Example:
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> from mamltheory.nas import NetworkSettings, OwnScore, Space, search
        >>> def parameters(network, tasks):
        ...     return sum(parameter.numel() for parameter in network.parameters())
        >>> data, size = glyph_data(16, 5, 2, 2, samples_per_class=6), NetworkSettings(4, 3, stem_stride=4)
        >>> space = Space(nodes=1, normal=("skip_connect", "conv_3x3"), reduce=("conv_3x3",))
        >>> found = search(data, score=OwnScore(parameters, largest_is_best=True), space=space, size=size, repeats=1)
        >>> found.genotype
        Genotype(normal: 2 × conv 3×3; reduce: 2 × conv 3×3)
    """

    function: Callable[[nn.Module, Sequence[Task]], float]
    largest_is_best: bool = False

    def __post_init__(self) -> None:
        check_function(function=self.function)
        if self.function is None or not isinstance(self.largest_is_best, bool):
            raise ConfigurationError(
                f"got {self.function!r:.60} and largest_is_best={self.largest_is_best!r:.20}: expected a function of a "
                "network and tasks, and True or False"
            )

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def value(self, network: nn.Module, tasks: Sequence[Task]) -> float:
        """The score as the function returns it.

        Args:
            network: the network.
            tasks: the tasks.

        Returns:
            The number. Errors of this package that the function raises are passed on.

        Raises:
            ConfigurationError: the function fails, or returns something other than a number, NaN, or the infinity
                that would count as best.
        """
        try:
            found = self.function(network, tasks)
        except Exception as error:
            if isinstance(error, MamlTheoryError):
                raise
            raise ConfigurationError(
                f"the score {self.name} fails: {type(error).__name__}: {reason(error)}"
            ) from error
        return self._number(found)

    def _number(self, found: object) -> float:
        single = isinstance(found, Tensor) and found.numel() == 1 and not found.is_complex()
        if not (single or isinstance(found, Real)) or isinstance(found, bool):
            shape = getattr(found, "shape", None)
            what = type(found).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
            raise ConfigurationError(f"the score {self.name} returns a {what}: expected one number")
        number = float(found)  # type: ignore[arg-type]
        worst = -math.inf if self.largest_is_best else math.inf
        if not math.isfinite(number) and number != worst:
            raise ConfigurationError(
                f"the score {self.name} returns {number}: expected a finite number, or {worst} for a network that is "
                "of no use, which ranks as the worst"
            )
        return number

    def ranked(self, value: float) -> float:
        """A value as searches compare it, and the value of such a number: the smaller the better."""
        return -value if self.largest_is_best else value


def own_scores(
    score: OwnScore, networks: Iterable[nn.Module], tasks: Sequence[Task], device: torch.device | str
) -> list[float]:
    """The scores of networks on the same tasks, in the form that searches compare: the smaller the better."""
    there = [task.to(device) for task in tasks]
    return [score.ranked(score.value(network.to(device), there)) for network in networks]
