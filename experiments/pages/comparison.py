"""What several runs say together: results, differences on the same tasks, and settings that differ."""

import itertools
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mamltheory.intervals import Interval, mean_interval

from ..training.evaluate import accuracies_of
from .blocks import Account, Block, DataTable, Drawing, PageVerdict, Section, signed_points
from .charts import interval_chart, line_chart
from .documents import setting_words
from .results import Folder

MOST_CURVES, MOST_PAIRS, MOST_SENTENCES = 7, 21, 4
Pairs = list[tuple[int, int, Interval]]


def comparison_account(folders: Sequence[Folder], accounts: Sequence[Account]) -> Account:
    """The account of all runs together."""
    evaluations = [
        i for i, each in enumerate(folders) if each.command == "evaluate" and "accuracy" in each.results
    ]
    pairs = _pairs(folders, evaluations)
    sections = [Section("Results", (_overview(accounts),))]
    if len(evaluations) > 1:
        sections.append(
            Section("Accuracy on unseen classes", tuple(_accuracies(folders, accounts, evaluations, pairs)))
        )
    trainings = [i for i, each in enumerate(folders) if each.command == "train" and each.metrics]
    if 1 < len(trainings) <= MOST_CURVES:
        sections.append(Section("Learning curves", tuple(_learning(folders, accounts, trainings))))
    if different := _settings(folders, accounts):
        sections.append(Section("Settings that differ", different))
    verdict = _verdict(accounts, evaluations, pairs)
    return Account(f"{len(accounts)} runs", "comparison", verdict, sections=tuple(sections))


def _verdict(accounts: Sequence[Account], evaluations: Sequence[int], pairs: Pairs) -> PageVerdict:
    open_ = [each.name for each in accounts if each.verdict.tone == "open"]
    note = (f"Not finished: {', '.join(open_)}.",) if open_ else ()
    if len(evaluations) == 2 and len(pairs) == 1:
        first, second, difference = pairs[0]
        if difference.mean < 0:
            first, second, difference = second, first, Interval(-difference.mean, difference.half_width)
        by = f"{100 * difference.mean:.1f}{_width(difference)} points"
        names = accounts[first].name, accounts[second].name
        same = (
            "Both met the same tasks; 95 % interval of the difference over the tasks, for these two networks."
        )
        if difference.mean > difference.half_width:
            return PageVerdict(f"{names[0]} is {by} more accurate than {names[1]}", "clear", (same, *note))
        return PageVerdict(f"{names[0]} and {names[1]} cannot be told apart ({by})", "weak", (same, *note))
    if pairs:
        clear = sum(abs(each.mean) > each.half_width for _, _, each in pairs)
        differ = f"{clear} of {len(pairs)} differences on the same tasks are clear of zero"
        lines = [
            f"{accounts[i].name} − {accounts[j].name}: {signed_points(100 * each.mean, _width(each))}."
            for i, j, each in pairs[:MOST_SENTENCES]
        ]
        return PageVerdict(differ, "plain", (*lines, "Each by its own 95 % interval over the tasks.", *note))
    apart = ("The evaluations met different tasks.",) if len(evaluations) > 1 else ()
    found = [f"{each.name}: {each.verdict.headline}." for each in accounts[:MOST_SENTENCES]]
    found += [f"And {len(accounts) - MOST_SENTENCES} more, see the table."] * (len(accounts) > MOST_SENTENCES)
    headline = "No difference is measured, because no two runs were evaluated on the same tasks"
    return PageVerdict(headline, "open" if open_ else "plain", (*apart, *found, *note))


def _width(interval: Interval) -> str:
    return f" ± {100 * interval.half_width:.1f}"


def _overview(accounts: Sequence[Account]) -> DataTable:
    columns = list(dict.fromkeys(name for each in accounts for name in each.key))
    rows = [
        (_link(i, each.name), each.what, *(each.key.get(name, "–") for name in columns))
        for i, each in enumerate(accounts, 1)
    ]
    return DataTable(("run", "what", *columns), tuple(rows), words=("run", "what", "result"))


def _link(number: int, name: str) -> Markup:
    return Markup('<a href="#run-{}">{}</a>').format(number, name)


def _pairs(folders: Sequence[Folder], evaluations: Sequence[int]) -> Pairs:
    """(first, second, difference) of evaluations that met the same tasks."""
    found = []
    for i, j in itertools.combinations(evaluations, 2):
        one, other = (dict(folders[k].results) for k in (i, j))
        if one.get("tasks_digest") == other.get("tasks_digest"):
            difference = accuracies_of(one) - accuracies_of(other)
            if len(difference) > 1:
                found.append((i, j, mean_interval(difference)))
    return found


def _accuracies(
    folders: Sequence[Folder], accounts: Sequence[Account], evaluations: Sequence[int], pairs: Pairs
) -> list[Block]:
    rows = [
        (accounts[i].name, 100 * folders[i].results["accuracy"], 100 * folders[i].results["half_width"])
        for i in evaluations
    ]
    chances = {1 / folders[i].config["ways"] for i in evaluations}
    levels = {"chance": 100 * chances.pop()} if len(chances) == 1 else {}
    caption = "Mean accuracy with its 95 % interval over the tasks."
    blocks: list[Block] = [Drawing(interval_chart(rows, "accuracy (%)", levels), caption, "broad")]
    if pairs:
        table = [
            (accounts[i].name, accounts[j].name, signed_points(100 * each.mean, _width(each)))
            for i, j, each in pairs[:MOST_PAIRS]
        ]
        left = f" The first {MOST_PAIRS} of {len(pairs)}." * (len(pairs) > MOST_PAIRS)
        caption = f"Differences on the same tasks, task by task, with 95 % intervals.{left}"
        blocks.append(DataTable(("run", "minus", "difference"), tuple(table), caption, ("run", "minus")))
    return blocks


def _learning(
    folders: Sequence[Folder], accounts: Sequence[Account], trainings: Sequence[int]
) -> list[Block]:
    def curves(name: str, factor: float) -> dict[str, tuple[list[float], list[float]]]:
        return {
            accounts[i].name: (
                [line["epoch"] for line in folders[i].metrics],
                [factor * line[name] for line in folders[i].metrics],
            )
            for i in trainings
        }

    return [
        Drawing(line_chart(curves("loss", 1), ("epoch", "cross-entropy (nats)")), "Training loss."),
        Drawing(
            line_chart(curves("accuracy", 100), ("epoch", "training accuracy (%)")), "Training accuracy."
        ),
    ]


def _settings(folders: Sequence[Folder], accounts: Sequence[Account]) -> tuple[DataTable, ...]:
    """For every command with several runs, the settings that are not the same in all of them."""
    tables = []
    for command in dict.fromkeys(each.command for each in folders if each.command):
        some = [i for i, each in enumerate(folders) if each.command == command]
        configs: list[Mapping[str, object]] = [folders[i].config for i in some]
        names = list(dict.fromkeys(key for config in configs for key in config if key != "out"))
        names = [key for key in names if len({repr(config.get(key)) for config in configs}) > 1]
        if len(some) > 1 and names:
            rows = [
                (accounts[i].name, *(setting_words(folders[i].config.get(key)) for key in names))
                for i in some
            ]
            tables.append(DataTable(("run", *names), tuple(rows), command, ("run", *names)))
    return tuple(tables)
