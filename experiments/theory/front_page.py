"""The picture of the front page, drawn from the numbers of two figures.

``python -m experiments.theory.front_page FOLDER``, where the folder holds ``convergence_sphere.json`` and
``drift_sphere.json``, writes ``front_page.{png,pdf,json}`` there.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mamltheory.errors import ConfigurationError

from ..plotting import figure, legend_below, save_figure
from .convergence import draw_residuals
from .report import draw_power_law

SOURCES = {"convergence": "convergence_sphere", "drift": "drift_sphere"}
MOVED = {"kernel_drift": "MetaNTK", "movement": "parameters"}
NAME = "front_page"


def front_page_numbers(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of both figures in a folder, and the settings that they have in common.

    Args:
        folder: Where ``convergence_sphere.json`` and ``drift_sphere.json`` are.

    Returns:
        The numbers by command, without those that are not drawn; and the settings with the seed.

    Raises:
        ConfigurationError: A figure is missing, or the two have different settings.
    """
    records = {}
    for command, name in SOURCES.items():
        path = folder / f"{name}.json"
        if not path.exists():
            raise ConfigurationError(f"{path} is missing: make it with the command {command} --out {folder}")
        records[command] = json.loads(path.read_text(encoding="utf-8"))
    first, second = (record["config"] for record in records.values())
    if first != second:
        differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        raise ConfigurationError(
            f"the two figures in {folder} differ in {', '.join(differing)}: make both with equal settings"
        )
    names = ("widths", "median_relative_residual", "largest_relative_residual", "bound")
    return {
        "convergence": {name: records["convergence"]["data"][name] for name in names},
        "drift": {name: records["drift"]["data"][name] for name in ("widths", *MOVED)},
    }, first


def draw_front_page(data: Mapping[str, Any], config: Mapping[str, Any], out: Path) -> Path:
    """Draw both panels in large type.

    Args:
        data: The numbers of :func:`front_page_numbers`.
        config: The settings behind them.
        out: Folder of the files.

    Returns:
        The path of the picture.
    """
    with figure("front", 3.1, columns=2) as (drawing, axes):
        where = f"{config['task_count']} tasks of points on the sphere; {config['activation']}, $L$ = {config['depth']}"
        drawing.suptitle(f"MAML, $\\tau$ = {config['tau']}; {where}; {config['seeds']} seeds", fontsize=8)
        left, right = axes[0]
        draw_residuals(left, data["convergence"])
        left.get_lines()[-1].set_label("bound of Theorem 3")
        left.set_ylabel("residual, relative to its start")
        left.set_title("It converges linearly, below the bound")
        legend_below(left, 2)
        draw_movements(right, data["drift"])
        right.set_title("The wider, the less it moves")
        legend_below(right)
        return save_figure(drawing, NAME, data, out, config, config["seed"])[0]


def draw_movements(axes: Axes, data: Mapping[str, Any]) -> None:
    """Draw how far MetaNTK and parameters move in training.

    Both are relative to the narrowest width, for their norms have no common unit.

    Args:
        axes: The panel.
        data: The measurements by name, and their widths.
    """
    widths = tuple(data["widths"])
    for i, (name, words) in enumerate(MOVED.items()):
        values = np.asarray(data[name]["values"])
        draw_power_law(axes, i, widths, values / data[name]["rms"][0], words, solid=True)
    axes.set_xlabel("width $l$")
    axes.set_ylabel(f"change in training,\nrelative to $l$ = {widths[0]}")


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2])
    try:
        print(f"wrote {draw_front_page(*front_page_numbers(folder), folder)} (and .pdf, .json)")
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
