"""Accuracy of every trained network against its size."""

from typing import Any

from experiments.plotting import curve, figure, save_figure
from experiments.runs import without_paths
from experiments.tables.results import Results
from experiments.tables.settings import RECIPES, SHOTS, SIZED, Experiment, Method
from experiments.tables.sheets import NAMES


def draw_sizes(results: Results, experiment: Experiment) -> str:
    """Draw a panel for each number of shots and a point for each run with its interval over tasks; returns the name."""
    settings = results.settings
    marked = [method for method in settings.methods if method not in SIZED]
    points = {method: _points(results, experiment, method) for method in settings.methods}
    with figure("page", 3.4, columns=len(SHOTS)) as (drawing, axes):
        for panel, shots in zip(axes[0], SHOTS, strict=True):
            for method, found in points.items():
                chosen = [point for point in found if point["shots"] == shots]
                columns = (
                    [point[key] for point in chosen] for key in ("parameters", "per_cent", "half_width")
                )
                x, y, error = columns
                x = [number / 1000 for number in x]
                style = curve(marked.index(SIZED.get(method, method))) | {"linestyle": "none"}
                hollow = {"markerfacecolor": "white"} if method in SIZED else {}
                panel.errorbar(x, y, error, **style | hollow, label=NAMES[method])
            panel.set_xlabel("thousand parameters")
            panel.set_ylabel(f"5-way {shots}-shot accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=3)
        parts = dict.fromkeys(("table", settings.name, experiment.replace("-", "_"), "sizes"))
        name = "_".join(parts)  # the experiment once, where the table is named after it
        data = {"data": RECIPES[experiment].data, "methods": points}
        save_figure(drawing, name, data, settings.out, without_paths(settings), settings.seed)
    return name


def _points(results: Results, experiment: Experiment, method: Method) -> list[dict[str, Any]]:
    return [
        {
            "seed": measured.run.seed,
            "shots": shots,
            "parameters": measured.parameters,
            "per_cent": 100 * found["accuracy"],
            "half_width": 100 * found["half_width"],
        }
        for measured in results.of(experiment, method)
        for shots, found in measured.evaluations.items()
    ]
