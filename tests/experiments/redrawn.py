"""The committed figures, drawn again from the numbers that lie with them.

``python -m tests.experiments.redrawn [NAME ...]`` writes their PNG, PDF and JSON into figures/, where the drawing
changed; without names all of them.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import benchmark
from experiments.benchmarks.settings import Benchmark
from experiments.config import settings_from
from experiments.search import comparison_report
from experiments.search import figures as search_figures
from experiments.search.settings import Protocols, Search
from experiments.studies import correlation_report, stability_report, table_figure
from experiments.studies.settings import Correlation, Stability
from experiments.studies.table_findings import TableFindings
from experiments.studies.table_replays import Replays
from experiments.tables import figure as table_figures
from experiments.tables.settings import Table
from experiments.theory import (
    bounds,
    convergence,
    drift,
    ensemble,
    equivalence,
    front_page,
    laziness,
    lipschitz,
    plateau,
)
from experiments.theory import settings as theory_settings
from mamltheory.nas.space import PAPER
from mamltheory.runtime.records import plain

FIGURES = Path(__file__).resolve().parents[2] / "figures"


def rebuilt(kind: Any, content: Any) -> Any:
    """A value of this type from what :func:`mamltheory.runtime.records.plain` made of it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is float:
        return float(content)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: rebuilt(hints[name], value) for name, value in content.items()})
    if origin in (types.UnionType, typing.Union):
        return None if content is None else rebuilt(parts[0], content)
    if isinstance(content, Mapping) and parts:
        return {rebuilt(parts[0], name): rebuilt(parts[1], value) for name, value in content.items()}
    if isinstance(content, list) and parts:
        return tuple(rebuilt(parts[0], value) for value in content)
    return kind(content) if kind in (int, str) else content


def settings_of(kind: Any, config: Mapping[str, Any], out: Path) -> Any:
    """The settings that lie with a figure, with another folder."""
    return settings_from(kind, {**config, "out": out.as_posix()})


def theory(kind: Any, draw: Callable[[Any, Any], None]) -> Callable[[dict, Path], None]:
    """The drawing of a figure of the theory from its numbers and settings."""
    return lambda record, out: draw(record["data"], settings_of(kind, record["config"], out))


def kink_apart(data: dict[str, Any], settings: Any) -> None:
    lipschitz.draw_lipschitz(settings, {k: v for k, v in data.items() if k != "kink"}, data["kink"])


def swapped(draw: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    return lambda data, settings: draw(settings, data)


def draw_stability(record: dict[str, Any], out: Path) -> None:
    names = {
        field.name: typing.get_type_hints(stability_report.StabilityFindings)[field.name]
        for field in dataclasses.fields(stability_report.StabilityFindings)
    }
    data = record["data"]

    def by_name(found: Mapping[str, Any]) -> dict[Any, Any]:
        return {
            (one, int(tasks), measure): value
            for key, value in found.items()
            for one, tasks, measure in [key.split()]
        }

    found = stability_report.StabilityFindings(
        {name: np.array(values) for name, values in by_name(data["scores"]).items()},
        rebuilt(names["stability"], by_name(data["stability"])),
        *(
            rebuilt(names[name], data[key])
            for name, key in (
                ("harmonic_gain", "harmonic_less_condition"),
                ("task_gain", "most_less_fewest_tasks"),
                ("gradient_gain", "gradient_less_one_by_one"),
                ("agreement", "correlation_with_one_by_one"),
                ("alike", "harmonic_with_condition_without_noise"),
                ("evaluations", "gradient_in_evaluations"),
                ("infinite", "repeats_left_out_as_infinite"),
            )
        ),
    )
    stability_report.draw_stability(settings_of(Stability, record["config"], out), found)


def draw_correlation(record: dict[str, Any], out: Path) -> None:
    kind, data = correlation_report.CorrelationFindings, record["data"]
    hints = typing.get_type_hints(kind)
    networks = data["networks"]
    components, singular = correlation_report.components_of(networks)
    accuracy = {k: np.array([r["accuracy"][k] for r in networks]) for k in correlation_report.SHOTS}
    rest = {
        name: rebuilt(hints[name], data[key])
        for name, key in (
            ("validity", "validity"),
            ("reliability", "reliability"),
            ("ceiling", "noise_ceiling"),
            ("seconds", "cpu_seconds"),
        )
    }
    found = kind(networks=networks, accuracy=accuracy, components=components, singular=singular, **rest)
    correlation_report.draw_correlation(settings_of(Correlation, record["config"], out), found)


def draw_table(record: dict[str, Any], out: Path) -> None:
    data = record["data"]
    findings, searches = rebuilt(TableFindings, data["findings"]), rebuilt(Replays, data["searches"])
    table_figure.draw_table(findings, searches, out, record["figure"], record["config"])


def draw_cells(record: dict[str, Any], out: Path) -> None:
    settings = settings_of(Search, record["config"], out)
    search_figures.cells_figure(record["data"], settings, record["figure"], out)


def draw_trace(record: dict[str, Any], out: Path) -> None:
    parts = record["figure"], out, record["config"], record["seed"]
    search_figures.trace_figure(record["data"], PAPER, *parts)


def draw_differences(record: dict[str, Any], out: Path) -> None:
    settings, data = settings_of(Table, record["config"], out), record["data"]
    table_figures.differences_figure(data["differences"], settings, settings.experiments[0])


def draw_sizes(record: dict[str, Any], out: Path) -> None:
    settings = settings_of(Table, record["config"], out)
    table_figures.sizes_figure(record["data"]["methods"], settings, settings.experiments[0])


def draw_benchmark(record: dict[str, Any], out: Path) -> None:
    settings = dataclasses.replace(settings_of(Benchmark, record["config"], out), seed=record["seed"])
    benchmark.benchmark_figure(record["figure"], record["data"], settings)


def draw_protocols(record: dict[str, Any], out: Path) -> None:
    found = json.loads((FIGURES / "protocols.json").read_text())
    settings = dataclasses.replace(Protocols(), seed=record["seed"], out=out)
    assert {name: getattr(settings, name) for name in ("channels", "cells")}.items() <= found["size"].items()
    comparison_report.draw_comparison(found, settings)


def draw_front(record: dict[str, Any], out: Path) -> None:
    assert [record["data"], record["config"]] == plain(front_page.front_page_numbers(FIGURES))
    front_page.draw_front_page(record["data"], record["config"], out)


DRAWERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    **{
        f"convergence_{tasks}": theory(theory_settings.Convergence, convergence.convergence_figure)
        for tasks in ("sphere", "glyphs")
    },
    **{f"drift_{tasks}": theory(theory_settings.Drift, drift.drift_figure) for tasks in ("sphere", "glyphs")},
    **{
        f"equivalence_{tasks}": theory(theory_settings.Equivalence, equivalence.equivalence_figure)
        for tasks in ("sphere", "glyphs")
    },
    "bounds_sphere": theory(theory_settings.Bounds, swapped(bounds.draw_bounds)),
    "lipschitz_sphere": theory(theory_settings.Lipschitz, kink_apart),
    "plateau_sphere": theory(theory_settings.Plateau, swapped(plateau.draw_plateau)),
    "ensemble_sphere": theory(theory_settings.Ensemble, swapped(ensemble.draw_ensemble)),
    "laziness_sphere": theory(theory_settings.Laziness, swapped(laziness.draw_laziness)),
    "stability": draw_stability,
    "correlation": draw_correlation,
    "equal_size": draw_table,
    **dict.fromkeys(("cells", "searched_cells", "halving_cells"), draw_cells),
    **dict.fromkeys(("table_glyphs_halving_differences", "table_pictures_differences"), draw_differences),
    "table_glyphs_sizes": draw_sizes,
    "trace": draw_trace,
    "benchmark_cpu": draw_benchmark,
    "protocols_figure": draw_protocols,
    "front_page": draw_front,
}


def redraw(path: Path, out: Path) -> None:
    """Draw the figure of these numbers into a folder; raises AssertionError if that changed the numbers."""
    record = json.loads(path.read_text())
    DRAWERS[path.stem](record, out)
    again = json.loads((out / path.name).read_text())
    assert again["data"] == record["data"], f"{path} holds other numbers than its figure draws"


def committed() -> list[Path]:
    """The numbers of every committed figure that can be drawn from them."""
    return sorted(path for path in FIGURES.rglob("*.json") if path.stem in DRAWERS)


if __name__ == "__main__":
    for path in committed():
        name = path.relative_to(FIGURES).with_suffix("").as_posix()
        if name in sys.argv[1:] or len(sys.argv) == 1:
            with tempfile.TemporaryDirectory() as folder:
                redraw(path, Path(folder))
                for ending in (".png", ".pdf"):
                    shutil.copy(Path(folder) / f"{path.stem}{ending}", path.parent)
