"""The summary at the end of a search: the cell, its size, its score, how sure that is, and the next command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamltheory.errors import GenotypeError
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.scoring.score import Score
from mamltheory.runtime.runlog import RUN_FILE, read_run
from mamltheory.strict_json import read_json_file

from ..genotypes import genotype_from
from ..program import PROGRAM
from ..runs import quoted
from ..training.settings import TRAIN, Train
from .figures import NAMES, score_words
from .halving_report import SEARCH_FILE, confirmed_words, cost_words, found_command, gain_words
from .settings import Search
from .words import cell_rows, task_words, verdict_words

Rows = list[tuple[str, str]]
SHARED = ("data", "split", "split_seed", "mirrors", "image_size", "channels", "cells", "stem_stride")
"""Settings of a search that its training has as well."""


def is_drawn(folder: Path, name: str) -> bool:
    """Whether the three files of a figure are there."""
    return all((folder / f"{name}.{ending}").is_file() for ending in ("png", "pdf", "json"))


def drawn_cells(settings: Search, genotype: Genotype) -> dict[str, Any] | None:
    """The numbers in the drawing of these cells, their size and scores; None if it is not there, or of other cells."""
    if not is_drawn(settings.out, "cells"):
        return None
    try:
        content: Any = read_json_file(settings.out / "cells.json")
        data: dict[str, Any] = content["data"]
        same = data["genotype"] == genotype.to_json()
        return data if same and isinstance(data["parameters"], int) and data["scores"] is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def record_of_finished(settings: Search) -> tuple[dict[str, Any], float] | None:
    """What ``search.json`` of a finished search says, and its CPU seconds; None before its end, or without the file."""
    if not (settings.out / RUN_FILE).exists():
        return None
    run = read_run(settings.out)
    if run.get("status") != "finished":
        return None
    try:
        record: Any = read_json_file(settings.out / SEARCH_FILE)
        genotype_from(record["genotype"])
        return record, float(run["results"]["cpu_seconds"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError, GenotypeError):
        return None


def pruned_rows(state: SearchState, settings: Search) -> Rows:
    """The rows for Algorithm 1; the cells are drawn."""
    genotype = state.candidates.genotype()
    data = drawn_cells(settings, genotype) or {"parameters": 0, "scores": []}
    scores = [Score(float(each["condition"]), float(each["regions"])) for each in data["scores"]]
    words = "".join(score_words(settings, scores))
    for typeset, plain in (("$\\log C_{\\mathcal{N}}$", "log C_N"), ("$R_{\\mathcal{N}}$", "R_N")):
        words = words.replace(typeset, plain)
    draws = f", on {len(scores)} new draws" * bool(scores)
    return [
        *_found(settings, genotype, data["parameters"]),
        ("score", words + draws if scores else ""),
        ("verdict", verdict_words(state.reports)),
        ("figures", f"cells.png and trace.png in {settings.out}"),
        ("train it", train_command(settings)),
    ]


def band_rows(record: Mapping[str, Any], settings: Search) -> Rows:
    """The rows for the best of random cells in a band."""
    places = record.get("places", {})
    count, repeats = len(record["cells"]), record.get("repeats", 0)
    standing = ", ".join(f"{place}. {name}" for name, place in places.items())
    return [
        *_found(settings, genotype_from(record["genotype"]), record["parameters"]),
        ("score", f"{standing} of {count} random cells" if standing else ""),
        ("verdict", f"{record['agreeing']} of {repeats} repeats alone take this cell" if repeats else ""),
        ("figures", f"cells.png in {settings.out}"),
        ("train it", train_command(settings)),
    ]


def halving_rows(record: Mapping[str, Any], settings: Search) -> Rows:
    """The rows for successive halving; with ``then_train`` the next command follows after that training."""
    last = record["rungs"][-1]
    best = next(cell for cell in last["cells"] if cell["cell"] == record["cell"])
    diverged = record["diverged"]
    measure = task_words(record.get("tasks"))
    accuracy = f"{100 * best['accuracy']:.1f} % {measure}, at epoch {last['epochs']}"
    seconds = float(read_run(settings.out).get("results", {}).get("cpu_seconds", 0.0))
    return [
        *_found(settings, genotype_from(record["genotype"]), record["parameters"]),
        ("number", f"cell {record['cell']} of {settings.rungs[0]}"),
        ("score", accuracy),
        ("verdict", gain_words(record, settings)),
        ("confirmed", confirmed_words(record["confirmed"]) if record["confirmed"] else ""),
        ("diverged", f"the trainings of cells {', '.join(map(str, diverged))}" if diverged else ""),
        ("cost", cost_words(record, seconds)),
        ("figures", f"cells.png and rungs.png in {settings.out}"),
        ("evaluate it", found_command(settings) if settings.then_train is None else ""),
    ]


def _found(settings: Search, genotype: Genotype, parameters: int) -> Rows:
    where = f"{NAMES[settings.method]} on {Path(settings.data).name}, seed {settings.seed}"
    size = f"{parameters:,} parameters, {settings.cells} cells of {settings.channels} channels"
    return [("found by", where), *cell_rows(genotype), ("size", size)]


def train_command(settings: Search) -> str:
    """The command that trains the found cell: a preset that names its genotype, or the settings that both share."""
    genotype = settings.out / "genotype.json"
    for name, preset in TRAIN.items():
        if (preset.genotype, preset.data) == (genotype, settings.data):
            other = f"  # with {preset.channels} channels" * (preset.channels != settings.channels)
            return f"{PROGRAM} train --preset {name}{other}"
    given = {
        name: getattr(settings, name) for name in SHARED if getattr(settings, name) != getattr(Train, name)
    }
    flags = [f"--{name.replace('_', '-')} {quoted(Path(str(value)))}" for name, value in given.items()]
    return " ".join([f"{PROGRAM} train --genotype {quoted(genotype)}", *flags])
