"""The accounts of trainings, evaluations and predictions: accuracy with its interval, and chance."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.fewshot.network_file import HEADER, NETWORK_FILE
from mamltheory.files import read_regular
from mamltheory.nas.genotype import Genotype
from mamltheory.runtime.folders import MOST_BYTES

from ..genotypes import genotype_from
from ..training.evaluate import accuracies_of
from .blocks import (
    Account,
    DataTable,
    Drawing,
    PageVerdict,
    Section,
    Sentences,
    Tone,
    in_figures,
    in_percent,
    with_half_width,
)
from .charts import histogram, line_chart
from .results import Folder
from .searches import cell_section, cpu_time, found_genotype

MOST_ROWS = 20
"""Rows of a table of epochs or of predictions."""


def training_account(run: Folder, name: str) -> Account:
    """The account of ``train``."""
    rows = list({line["epoch"]: line for line in run.metrics if "epoch" in line}.values())
    epochs, parameters = run.config.get("epochs"), run.results.get("parameters")
    verdict = _training_verdict(run, rows, epochs)
    facts = [("epochs", f"{rows[-1]['epoch'] if rows else 0} of {epochs}")]
    facts += [("parameters", in_figures(parameters))] if parameters else []
    if rows:
        facts += [("loss (nats)", in_figures(rows[-1]["loss"], 3))]
        facts += [("accuracy, training images", in_percent(rows[-1]["accuracy"]))]
    seen = [row for row in rows if "val_accuracy" in row]
    if seen:
        best = with_half_width(seen[-1]["val_accuracy"], seen[-1]["val_half_width"])
        facts.append(("accuracy, few-shot validation", best))
    facts += cpu_time(run)
    sections = _curves(run, rows, seen) + cell_section(_trained_genotype(run))
    network = "ResNet-12" if run.config.get("network") == "resnet12" else "a network of cells"
    key = {"result": verdict.headline, "parameters": in_figures(parameters)}
    return Account(name, f"training of {network}", verdict, tuple(facts), tuple(sections), key=key)


def _training_verdict(run: Folder, rows: Sequence[Mapping[str, Any]], epochs: object) -> PageVerdict:
    if not rows:
        return PageVerdict("Not finished: no epoch is done", "open")
    last = rows[-1]
    found = f"Loss {last['loss']:.3f} nats, {in_percent(last['accuracy'])} of the training images right"
    sentences = (
        f"After epoch {last['epoch']} of {epochs}, on augmented training images. The command evaluate measures the "
        "network on unseen classes.",
    )
    if run.status != "finished":
        return PageVerdict(
            f"Not finished, epoch {last['epoch']} of {epochs}: {found[0].lower()}{found[1:]}", "open"
        )
    return PageVerdict(found, "plain", sentences)


def _curves(
    run: Folder, rows: Sequence[Mapping[str, Any]], seen: Sequence[Mapping[str, Any]]
) -> list[Section]:
    if not rows:
        return []
    epochs, marks = [row["epoch"] for row in rows], [m + 0.5 for m in run.config.get("milestones") or ()]
    marks = [mark for mark in marks if mark < epochs[-1]]
    loss = {"training": (epochs, [row["loss"] for row in rows])}
    accuracy = {"training images": (epochs, [100 * row["accuracy"] for row in rows])}
    bars = {}
    if seen:
        accuracy["few-shot validation"] = (
            [row["epoch"] for row in seen],
            [100 * row["val_accuracy"] for row in seen],
        )
        bars["few-shot validation"] = [100 * row["val_half_width"] for row in seen]
    dotted = "Dotted: the learning rate falls." if marks else ""
    blocks = [
        Drawing(line_chart(loss, ("epoch", "cross-entropy (nats)"), marks=marks), f"Training loss. {dotted}"),
        Drawing(line_chart(accuracy, ("epoch", "accuracy (%)"), bars, marks=marks), f"Accuracy. {dotted}"),
    ]
    chosen = _spread(rows)
    head = ("epoch", "loss (nats)", "accuracy", "learning rate") + ("validation",) * bool(seen)
    table = [
        (
            row["epoch"],
            f"{row['loss']:.3f}",
            in_percent(row["accuracy"]),
            in_figures(row["learning_rate"]),
            *(
                [with_half_width(row["val_accuracy"], row["val_half_width"]) if row in seen else "–"]
                if seen
                else []
            ),
        )
        for row in chosen
    ]
    caption = (
        "" if len(chosen) == len(rows) else f"{len(chosen)} of {len(rows)} epochs; metrics.jsonl has all."
    )
    return [Section("Learning curves", (*blocks, DataTable(head, tuple(table), caption)))]


def _spread(rows: Sequence[Any]) -> list[Any]:
    """At most so many rows, the first and the last among them."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    step = (len(rows) - 1) / (MOST_ROWS - 1)
    return [rows[round(i * step)] for i in range(MOST_ROWS)]


def _trained_genotype(run: Folder) -> Genotype | None:
    """The cell of a trained network, from its file or from the genotype in its folder."""
    try:
        with safe_open(run.path / NETWORK_FILE, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(HEADER, "{}"))
        return genotype_from(header["genotype"]) if header.get("genotype") else None
    except (OSError, SafetensorError, ValueError, GenotypeError, ConfigurationError):
        return found_genotype(run)


def meta_training_account(run: Folder, name: str) -> Account:
    """The account of ``meta-train``."""
    rows = list({line["step"]: line for line in run.metrics if "step" in line}.values())
    config, chance = run.config, 1 / run.config["ways"]
    kind = f"{config['ways']}-way {config['shots']}-shot"
    if "accuracy" in run.results:
        mean, half = run.results["accuracy"], run.results["half_width"]
        start, width = run.results["before"]
        before = with_half_width(start, width)
        tone = _beyond(mean, half, chance)
        verdict = PageVerdict(
            f"{with_half_width(mean, half)} on unseen {_classes(config)} ({kind}), {before} before training",
            "weak" if tone == "clear" and mean - half <= start + width else tone,
            (f"Chance is {in_percent(chance)}; 95 % intervals over {config['test_tasks']} tasks.",),
        )
        facts = [("accuracy", with_half_width(mean, half)), ("before training", before)]
    else:
        last = f"step {rows[-1]['step']}" if rows else "step 0"
        verdict = PageVerdict(f"Not finished: {last} of {config['steps']}", "open")
        facts = []
    facts += [
        ("chance", in_percent(chance)),
        ("outer steps", f"{rows[-1]['step'] if rows else 0} of {config['steps']}"),
        *cpu_time(run),
    ]
    sections = []
    if rows:
        steps = [row["step"] for row in rows]
        bars = {"validation": [100 * row["val_half_width"] for row in rows]}
        curves = {"validation": (steps, [100 * row["val_accuracy"] for row in rows])}
        loss = line_chart(
            {"training": (steps, [row["loss"] for row in rows])}, ("outer step", "squared loss")
        )
        accuracy = line_chart(curves, ("outer step", "accuracy (%)"), bars, {"chance": 100 * chance})
        table = [
            (r["step"], in_figures(r["loss"]), with_half_width(r["val_accuracy"], r["val_half_width"]))
            for r in _spread(rows)
        ]
        blocks = (
            Drawing(loss, "Squared loss per query sample of the step's tasks."),
            Drawing(accuracy, "Accuracy on tasks of the validation classes, with 95 % intervals."),
            DataTable(("step", "loss", "validation"), tuple(table)),
        )
        sections.append(Section("Learning curves", blocks))
    what = f"meta-training of Conv4 by {str(config['algorithm']).upper()}"
    key = {"result": verdict.headline}
    return Account(name, what, verdict, tuple(facts), tuple(sections), key=key)


def _classes(config: Mapping[str, Any]) -> str:
    return {"val": "validation classes", "test": "test classes"}.get(str(config.get("split")), "classes")


def _beyond(mean: float, half_width: float, chance: float) -> Tone:
    return "clear" if mean - half_width > chance else "fails"


def evaluation_account(run: Folder, name: str) -> Account:
    """The account of ``evaluate``."""
    config = run.config
    kind, chance = f"{config['ways']}-way {config['shots']}-shot", 1 / config["ways"]
    what = f"evaluation on {kind} tasks"
    if "accuracy" not in run.results:
        return Account(
            name, what, PageVerdict("Not finished: an evaluation has no result before its end", "open")
        )
    mean, half = run.results["accuracy"], run.results["half_width"]
    tone = _beyond(mean, half, chance)
    against = "above" if tone == "clear" else "not above"
    verdict = PageVerdict(
        f"{with_half_width(mean, half)} on unseen {_classes(config)} ({kind})",
        tone,
        (
            f"95 % interval over {config['tasks']} tasks, {against} chance ({in_percent(chance)}). Head: "
            f"{config['head']}, C = {config['C']:g}, augmented copies of each support image: {config['augment']}, "
            f"{config['queries']} queries per class.",
        ),
    )
    facts = [
        ("accuracy", with_half_width(mean, half)),
        ("chance", in_percent(chance)),
        ("tasks", str(config["tasks"])),
    ]
    facts += [("parameters", in_figures(run.results.get("parameters"))), *cpu_time(run)]
    accuracies = 100 * accuracies_of(dict(run.results))
    picture = histogram(accuracies, "accuracy on a task (%)", {"mean": 100 * mean, "chance": 100 * chance})
    spread = (
        ("mean", in_percent(mean)),
        ("standard deviation over tasks", f"{accuracies.std(ddof=1):.1f} points"),
        ("worst and best task", f"{accuracies.min():.1f} and {accuracies.max():.1f} %"),
    )
    head = ("over tasks", "")
    blocks = (
        Drawing(picture, "Tasks by their accuracy."),
        DataTable(head, spread, words=("over tasks",), aside=True),
    )
    key = {"result": with_half_width(mean, half), "parameters": in_figures(run.results.get("parameters"))}
    return Account(name, what, verdict, tuple(facts), (Section("Over the tasks", blocks),), key=key)


def prediction_account(run: Folder, name: str) -> Account:
    """The account of ``predict``."""
    lines = tuple(map(str, run.results.get("summary") or ()))
    if not lines:
        return Account(name, "prediction", PageVerdict("Not finished: no image is classified", "open"))
    headline, _, how = lines[0].partition(", from ")
    verdict = PageVerdict(headline, sentences=(f"From {how}.",) if how else ())
    sections = [Section("Summary", (Sentences(lines[1:]),))] if lines[1:] else []
    file = run.path / "predictions.csv"
    if file.exists():
        head, *rows = csv.reader(read_regular(file, MOST_BYTES).decode().splitlines())
        few = tuple((*names, f"{float(value):.3f}") for *names, value in rows[:MOST_ROWS])
        caption = f"{len(few)} of {len(rows)} images; {Path(file).name} has all."
        table = DataTable(tuple(head), few, caption if len(few) < len(rows) else "", ("file", "class"))
        sections.append(Section("Predictions", (table,)))
    key = {"result": headline}
    return Account(name, "prediction", verdict, tuple(cpu_time(run)), tuple(sections), key=key)
