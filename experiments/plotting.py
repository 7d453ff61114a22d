"""Figures of one style, each written as PNG, PDF and the numbers drawn; cells as in the paper's Figure 2."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import offset_copy

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.records import plain, replace_file, to_json
from mamltheory.version import __version__

from .cell_drawing import draw_genotype

__all__ = [
    "COLOURS",
    "WIDTHS",
    "curve",
    "draw_genotype",
    "figure",
    "legend_below",
    "save_figure",
    "tall_left",
    "ticks_at",
]

# Okabe and Ito's colours, readable with every common colour blindness; black first, yellow (too pale for
# lines on white) left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
LIBRARIES = ("matplotlib", "numpy", "torch")
WIDTHS = {"column": 3.4, "page": 7.0, "front": 5.6}
"""Widths in inches of one column and of the full page of a two-column article, and of the picture on the front page."""
FRONT_PIXELS = 1600
"""Width of the picture on the front page: twice that at which it is shown, and its type is as much larger."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True, "axes.grid": True, "axes.labelsize": 9, "axes.linewidth": 0.7,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 9, "figure.dpi": 200,
    "figure.titlesize": 10, "font.family": "DejaVu Sans", "font.size": 8, "grid.alpha": 0.35,
    "grid.linewidth": 0.5, "legend.fontsize": 8, "legend.framealpha": 0.9, "lines.linewidth": 1.3,
    "lines.markersize": 4, "mathtext.fontset": "dejavusans", "pdf.fonttype": 42, "savefig.dpi": 200,
    "xtick.labelsize": 8, "ytick.labelsize": 8,
}  # fmt: skip


def curve(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the ``index``-th curve, so that no two differ by colour alone."""
    pick = index % len(COLOURS)
    return {"color": COLOURS[pick], "marker": MARKERS[pick], "linestyle": LINE_STYLES[pick]}


def ticks_at(axis: Axis, values: Sequence[int | float]) -> None:
    """Ticks at these values alone, written as plain numbers; for widths on a logarithmic axis."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    axis.set_minor_locator(NullLocator())


def legend_below(axes: Axes, columns: int = 1) -> None:
    """A legend under the x label, where no data are."""
    below = offset_copy(axes.transAxes, axes.get_figure(root=True), y=-31, units="points")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        ncols=columns,
        frameon=False,
        fontsize=7,
        handlelength=2.6,
        borderaxespad=0,
    )


def tall_left(axes: np.ndarray) -> tuple[Axes, Axes, Axes]:
    """Make one panel of the left column of 2 × 2 axes; returns it and the two on the right."""
    grid, drawing = axes[0, 0].get_gridspec(), axes[0, 0].get_figure()
    for panel in axes[:, 0]:
        panel.remove()
    return drawing.add_subplot(grid[:, 0]), axes[0, 1], axes[1, 1]


@contextmanager
def figure(
    width: str = "column", height: int | float = 2.5, rows: int = 1, columns: int = 1, **subplots: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the common style, which holds inside the block; it needs no display.

    Args:
        width: "column", "page" or "front".
        height: Height in inches.
        rows: Rows of axes.
        columns: Columns of axes.
        **subplots: Further arguments of ``Figure.subplots``, for example ``sharey=True``.

    Yields:
        The figure and its axes (rows × columns).

    Raises:
        ConfigurationError: The width is unknown.
    """
    if width not in WIDTHS:
        raise ConfigurationError(f"figure width is {width!r}: expected one of {sorted(WIDTHS)}")
    with matplotlib.rc_context():
        # From the defaults, not from the reader's matplotlibrc: figures would differ between machines.
        matplotlib.rcParams.update(
            dict(matplotlib.rcParamsDefault) | {**STYLE, "backend": matplotlib.rcParams["backend"]}
        )
        if width == "front":
            matplotlib.rcParams["savefig.dpi"] = FRONT_PIXELS / WIDTHS[width]
        drawing = Figure(figsize=(WIDTHS[width], height), layout="constrained")
        yield drawing, drawing.subplots(rows, columns, squeeze=False, **subplots)


def save_figure(
    drawing: Figure,
    name: str,
    data: Mapping[str, Any],
    directory: Path | str,
    config: object = None,
    seed: int | None = None,
) -> tuple[Path, Path, Path]:
    """Write NAME.png, NAME.pdf and NAME.json; the same numbers give the same bytes on the same machine.

    Args:
        drawing: The figure.
        name: Name of the files, without a folder.
        data: The numbers that are drawn; arrays and tensors are allowed.
        directory: Folder of the files.
        config: The settings behind the numbers.
        seed: Seed behind the numbers.

    Returns:
        The three paths.

    Raises:
        ConfigurationError: ``name`` contains a folder, or ``data`` is empty.
    """
    if not name or Path(name).name != name:
        raise ConfigurationError(
            f"figure name is {name!r}: expected a plain file name, the folder goes in directory"
        )
    if not data:
        raise ConfigurationError(f"figure {name!r} comes without data: give the numbers that it draws")
    record = {
        "figure": name,
        "data": plain(data),
        "config": _without_absolute_paths(plain(config)),
        "seed": seed,
        "versions": {"mamltheory": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    png, pdf, numbers = (Path(directory) / f"{name}.{ending}" for ending in ("png", "pdf", "json"))
    for path, (kind, metadata) in zip((png, pdf), undated.items(), strict=True):
        buffer = io.BytesIO()
        drawing.savefig(buffer, format=kind, metadata=metadata)
        replace_file(path, buffer.getvalue())
    replace_file(numbers, to_json(record).encode())
    return png, pdf, numbers


def _without_absolute_paths(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_absolute_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
