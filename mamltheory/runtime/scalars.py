"""The optional hook to TensorBoard: the numbers that a run logs, as scalars."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mamltheory.errors import ConfigurationError

FOLDER = "tensorboard"
STEPS = ("step", "epoch", "round")
"""What counts the lines of a run; the first of them that a line has is its step."""


def summary_writer() -> Callable[[str], Any]:
    """The class ``SummaryWriter`` of torch, which takes a folder; ConfigurationError if TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigurationError(
            "--tensorboard needs TensorBoard, which is not installed: pip install 'mamltheory[tensorboard]', or run "
            "without this flag"
        ) from None
    return SummaryWriter


def write_scalars(writer: Any, values: Mapping[str, object]) -> None:
    """Write the numbers in a line of measurements, those in objects as ``outer/inner``, and wait for the disk.

    Args:
        writer: takes ``add_scalar(name, value, step)``.
        values: the line; what is no number, a list for example, is left out.
    """
    step = next((values[name] for name in STEPS if name in values), None)
    for name, value in _numbers(values):
        if name not in STEPS:
            writer.add_scalar(name, value, step)
    writer.flush()


def _numbers(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{name}", float(value)
