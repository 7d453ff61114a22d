"""The report on a table of cells of one size: ``equal_size.{png,pdf,json,md}``."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mamltheory.nas.statistics.resampled_ranks import Resampled
from mamltheory.nas.table import Table
from mamltheory.runtime.records import replace_file

from ..terminal import for_terminal
from .correlation_report import number, span
from .table_figure import draw_table
from .table_findings import (
    BOTH,
    FEWEST_CELLS,
    KernelScore,
    Predictor,
    TableFindings,
    chosen_kernel,
    table_findings,
)
from .table_replays import Replays, Tried, replays
from .table_words import LABELS, epochs_in_words, settings_words

NAME = "equal_size"
LEVEL = 0.05


def report_table(table: Table, out: Path, draws: int, seed: int) -> None:
    """Write ``equal_size.{png,pdf,json,md}`` and print the text, or a line that the table has too few cells.

    Args:
        table: The cells.
        out: Folder of the files.
        draws: Resamples of the cells, and searches per method.
        seed: Of both.
    """
    twice = len(table.having(BOTH))
    if twice < FEWEST_CELLS:
        print(f"no report: {twice} cells were trained twice, a report needs {FEWEST_CELLS}; raise --networks")
        return
    found, searches = table_findings(table, draws, seed), replays(table, draws, seed)
    config = {"table": table.settings, "draws": draws, "seed": seed}
    paths = draw_table(found, searches, out, NAME, config)
    text = table_text(table.settings, found, searches)
    replace_file(out / f"{NAME}.md", text.encode())
    print(f"{for_terminal(text)}wrote {paths[0]} (and .pdf, .json, .md)")


def table_text(settings: Mapping[str, Any], found: TableFindings, searches: Replays) -> str:
    """The report in words and tables."""
    noise = found.noise
    words = settings_words(settings, "data", "image_size", "channels", "epochs")
    lines = [
        "# What predicts accuracy among cells of one size",
        "",
        f"{found.cells} random cells of {settings.get('parameters', 'one number of')} parameters, trained twice "
        f"({words}). Accuracy is that of a logistic head on 1-shot tasks of the test classes. One training "
        f"deviates by {100 * noise.deviation:.1f} points, cells differ by {100 * found.between:.1f} (standard "
        f"deviations); reliability of one training {number(noise.reliability)}; τ between the two trainings "
        f"{number(noise.tau)}, highest τ to be expected of any score with one training {number(noise.highest_tau)} "
        f"{span(noise.highest_tau_interval)}. {found.diverged} trainings diverged; they rank last. τ is Kendall's, ρ "
        "Spearman's. Brackets are 95 % bootstrap intervals over cells. Signs are such that a positive number means "
        "that the score chooses better cells.",
        "",
        *[f"- {sentence}" for sentence in answers(found, searches)],
        "",
        *at_initialisation(found),
        *a_little_training(found),
    ]
    if found.kernels:
        lines += kernels_in_training(found)
    if found.scale:
        lines += another_scale(found)
    return "\n".join([*lines, *search_methods(searches)]) + "\n"


def answers(found: TableFindings, searches: Replays) -> list[str]:
    """The findings in a sentence each."""
    free = {row.name: row for row in found.predictors if row.group == "training-free"}
    known = [LABELS.get(name, name) for name, row in free.items() if row.adjusted < LEVEL]
    lines = [
        f"Of {len(free)} scores at initialisation, {listed(known)} can be told from chance at equal size (Holm's p "
        f"below {LEVEL} over all of them)."
    ]
    if (row := free.get("maml condition")) is not None:
        lines += [
            f"A small C_N of the MetaNTK has Spearman's ρ {shown(row.mean.rho)} with accuracy at equal size (τ "
            f"{shown(row.mean.tau)}).",
            condition_answer(row, found.kernels),
        ]
    if found.kernels:
        lines.append(kernel_answer(found))
    if found.scale:
        lines.append(
            f"Final accuracy has τ {shown(found.scale['final'].tau)} with that of the same cells at twice the width "
            f"and twice the epochs ({found.scale_cells} cells)."
        )
    return lines + search_answers(searches)


def search_answers(searches: Replays) -> list[str]:
    """What the paper's scores, halving and a warm start gain, in a sentence each."""
    lines = [
        f"The {each.label} gains {each.found.retrained} points for its cell trained again, for "
        f"{each.found.seconds:.0f} CPU seconds."
        for each in searches.all
        if each.label.endswith("C_N + R_N")
    ]
    if searches.chosen:
        own, warm = (each for each in searches.confirmed if each.label == searches.chosen)
        lines += [
            f"Of {len(searches.examined)} variants of halving, {own.label} gains most on the even cells; on the odd "
            f"cells the network that it trained gains {own.found.kept} points over a random one, and its cell "
            f"trained again {own.found.retrained}, for {own.found.seconds:.0f} CPU seconds.",
            f"With a surrogate, fitted on the even cells, that chooses its first rung, these gains are "
            f"{warm.found.kept} and {warm.found.retrained}.",
        ]
    return lines


def condition_answer(row: Predictor, kernels: Sequence[KernelScore]) -> str:
    """Does a well-conditioned MetaNTK make a better cell of its size?"""
    later = [each for each in kernels if each.name == "maml condition"]
    signs = [math.copysign(1, row.mean.tau.value)] if row.adjusted < LEVEL else []
    signs += [math.copysign(1, each.every.tau.value) for each in later if each.tau_adjusted < LEVEL]
    verdict = "no: over all scores that were tried its condition number cannot be told from chance"
    if signs:
        verdict = (
            "yes" if min(signs) > 0 else "no, rather a worse one" if max(signs) < 0 else "it depends on when"
        )
    taus = "; ".join(
        f"after {epochs_in_words(each.epoch)} τ {shown(each.every.tau)}" for each in later if each.epoch
    )
    return (
        f"Does a well-conditioned MetaNTK make a better cell at equal size? By this table, {verdict} (at "
        f"initialisation τ {shown(row.mean.tau)}{'; ' if taus else ''}{taus})."
    )


def kernel_answer(found: TableFindings) -> str:
    """What a kernel after a little training adds to few-shot accuracy."""
    best, count = chosen_kernel(found.kernels), len(found.kernels)
    p = best.odd.partial_p
    same = math.copysign(1, best.odd.partial.value) == math.copysign(1, best.even.partial.value)
    verdict = "confirms it" if p < LEVEL and same else "does not confirm it"
    return (
        f"Of {count} kernel scores in training, {LABELS.get(best.name, best.name)} after {epochs_in_words(best.epoch)} "
        f"adds most to {given(best.epoch)} on the even cells (partial ρ {shown(best.even.partial)}); the other half "
        f"{verdict} ({shown(best.odd.partial)}, p {probability(p)})."
    )


def given(epoch: int) -> str:
    """What a partial correlation of this epoch is given."""
    return "few-shot accuracy of the same epoch" if epoch else "log parameters"


def at_initialisation(found: TableFindings) -> list[str]:
    """The table of sizes and training-free scores."""
    rows = []
    for row in found.predictors:
        if row.group not in ("size", "training-free"):
            continue
        mean = row.mean
        ends = ("–", "–") if row.group == "size" else (probability(row.adjusted), number(row.reliability))
        rows.append(
            (
                LABELS.get(row.name, row.name),
                shown(row.network.tau),
                *map(shown, (mean.tau, mean.rho, mean.partial)),
                *ends,
                f"{row.seconds:.1f}",
            )
        )
    head = ("score", "τ, one training", "τ, mean of two", "ρ, mean of two", "ρ given log parameters")
    note = "Holm's p is that of τ with the mean of two trainings, over all scores below the sizes. α is Cronbach's "
    note += "reliability over the pools of classes that a score saw. CPU seconds are for all scores together."
    return ["## At initialisation", "", *grid((*head, "Holm's p", "α", "CPU s"), rows), "", note, ""]


def a_little_training(found: TableFindings) -> list[str]:
    """The table of accuracy and loss during training."""
    by_epoch: dict[str, dict[str, Predictor]] = {}
    for row in found.predictors:
        if row.group in ("accuracy", "loss"):
            by_epoch.setdefault(row.name, {})[row.group] = row

    def cells(row: Predictor) -> tuple[str, ...]:
        return tuple(map(shown, (row.network.tau, row.network.partial, row.mean.tau, row.other.tau)))

    rows = [
        (epoch, f"{pair['accuracy'].seconds:.1f}", *cells(pair["accuracy"]), *cells(pair["loss"]))
        for epoch, pair in by_epoch.items()
    ]
    kinds = ("τ, this training", "ρ given log parameters", "τ, mean of two", "τ, another training")
    head = ("epochs", "CPU s", *(f"accuracy: {kind}" for kind in kinds), *(f"loss: {kind}" for kind in kinds))
    note = "Accuracy is that of 1-shot tasks of the validation classes, loss that of the training in its last epoch."
    return ["## A little training", "", *grid(head, rows), "", note, ""]


def kernels_in_training(found: TableFindings) -> list[str]:
    """The table of kernel scores of networks in training."""
    rows = [
        (
            str(row.epoch),
            LABELS.get(row.name, row.name),
            shown(row.every.tau),
            probability(row.tau_adjusted),
            shown(row.every.partial),
            probability(row.partial_adjusted),
            *map(shown, (row.even.partial, row.odd.partial)),
        )
        for row in found.kernels
    ]
    rows += [
        (str(epoch), "few-shot accuracy itself", shown(each.tau), *["–"] * 5)
        for epoch, each in found.few_shot.items()
    ]
    kinds = ("τ", "Holm's p", "partial ρ", "Holm's p", "partial ρ, even cells", "partial ρ, odd cells")
    note = (
        f"{found.scored_cells} cells; final accuracy of the same training. The partial correlation is given "
    )
    note += f"{given(1)}, at epoch 0 {given(0)}. Holm's p is over the {len(found.kernels)} scores tried."
    return [
        "## The kernel after a little training",
        "",
        *grid(("epochs", "score", *kinds), rows),
        "",
        note,
        "",
    ]


def another_scale(found: TableFindings) -> list[str]:
    """The table of the second scale."""
    words = {"final": "final accuracy", "mean": "final accuracy, mean of two trainings"}
    words["same scale"] = "for comparison: two trainings at the small scale"
    rows = [
        (
            words.get(name) or f"validation accuracy after {epochs_in_words(int(name.split()[1]))}",
            shown(each.tau),
            shown(each.rho),
        )
        for name, each in found.scale.items()
    ]
    note = f"{found.scale_cells} cells, trained again at twice the width and twice the epochs."
    return [
        "## Does it hold at another scale?",
        "",
        *grid(("at the small scale", "τ", "ρ"), rows),
        "",
        note,
        "",
    ]


def search_methods(searches: Replays) -> list[str]:
    """The tables of gains."""

    def row(each: Tried) -> tuple[str, ...]:
        warm = ", first rung by surrogate" * (each.group == "warm start")
        gains = (str(each.found.kept), str(each.found.retrained))
        return (each.label + warm, each.cells, *gains, f"{each.found.seconds:.0f}", f"{each.trainings:.1f}")

    head = ("method", "cells", "network that it trained", "its cell trained again", "CPU s", "full trainings")
    lines = [
        "## Search methods, replayed",
        "",
        *grid(head, map(row, (*searches.all, *searches.confirmed))),
        "",
    ]
    lines.append(
        "Gains are points of accuracy over the mean of the cells, with 95 % intervals over resampled tables. The price "
        "holds a full training of what was chosen."
    )
    if searches.examined:
        lines[-1] += (
            f" {len(searches.examined)} variants of halving were compared on the cells at even positions, by the mean "
            "of both gains; the odd cells took no part in this, and the surrogate is fitted on the even ones."
        )
    if searches.examined:
        rows = [
            (
                each.label,
                f"{each.found.kept.mean:+.1f}",
                f"{each.found.retrained.mean:+.1f}",
                f"{each.trainings:.1f}",
            )
            for each in searches.examined
        ]
        lines += ["", *grid(("variant, on even cells", *head[2:4], head[5]), rows)]
    return lines


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def shown(value: Resampled) -> str:
    """A statistic with its interval."""
    return f"{number(value.value)} {span(value.interval)}".strip()


def probability(p: float) -> str:
    """Three decimals, or a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def listed(names: Sequence[str]) -> str:
    """Names in a row, or "none"."""
    return ", ".join(names) or "none"
