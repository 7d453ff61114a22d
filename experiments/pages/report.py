"""``report``: one page of HTML for a run or several, with everything inside it."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from mamltheory import __version__
from mamltheory.errors import ConfigurationError, printable
from mamltheory.runtime.folders import PAGE_MARK, check_writable, is_page
from mamltheory.runtime.records import plain, replace_file

from ..commands import COMMANDS
from ..program import PROGRAM
from ..runs import quoted
from .blocks import Account, DataTable, PageVerdict, Section, Sentences, time_in_words
from .charts import with_numbered_charts
from .comparison import comparison_account
from .documents import DRAWN_AGAIN, documents_account, file_names, result_sections, setting_words
from .results import Folder, folders_at
from .searches import search_account
from .settings import RunReport
from .trainings import evaluation_account, meta_training_account, prediction_account, training_account

PLACE = Path(__file__).parent
ACCOUNTS: Mapping[str, Callable[[Folder, str], Account]] = {
    "search": search_account,
    "train": training_account,
    "meta-train": meta_training_account,
    "evaluate": evaluation_account,
    "predict": prediction_account,
}
TIMES = "Times, versions and machine"
EXPECTED = {
    "search": ("genotype.json", "search.json"),
    "train": ("network.safetensors",),
    "predict": ("predictions.csv",),
}
"""What a finished run of these commands holds, in addition to its record."""


def write_page(settings: RunReport) -> int:
    """Write the page, and print the verdict and where it is; returns 0."""
    if not settings.runs:
        raise ConfigurationError(
            f"got no run: name one or several folders, as in {PROGRAM} report runs/glyph-smoke/search"
        )
    folders = [folder for path in settings.runs for folder in folders_at(path)]
    folders = list({each.path.resolve() / "".join(each.contents if not each.record else ()): each for each in folders}
                   .values())  # fmt: skip
    names = names_of([each.path for each in folders])
    place = _place(settings, names)
    accounts = [account_of(folder, name) for folder, name in zip(folders, names, strict=True)]
    shown = [comparison_account(folders, accounts), *accounts] if len(accounts) > 1 else accounts
    replace_file(place, rendered(shown).encode())
    for line in (f"{shown[0].name}: {shown[0].verdict.headline}", f"wrote {place}"):
        print(printable(line))
    return 0


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of folders: the last two parts of the path of one, and those of several below what they share."""
    full = [path.resolve() for path in paths]
    if len(full) == 1:
        return ["/".join(full[0].parts[1:][-2:])]
    shared = Path(os.path.commonpath([path.parent for path in full]))
    return [path.relative_to(shared).as_posix() for path in full]


def _place(settings: RunReport, names: Sequence[str]) -> Path:
    """The file of the page; ConfigurationError if it holds something else, or cannot be written."""
    place = settings.out
    if place.suffix.lower() not in (".html", ".htm") or place.is_dir():
        name = names[0].replace("/", "-") if len(names) == 1 else "comparison"
        place = place / f"{name}.html"
    if place.exists() and not is_page(place):
        raise ConfigurationError(
            f"{place} is no page of this command: choose another --out, so that nothing of yours is overwritten"
        )
    check_writable(place.parent)
    return place


def account_of(folder: Folder, name: str) -> Account:
    """The account of a run, with its time, settings and versions, and what it lacks."""
    problems = list(folder.problems)
    try:
        account = ACCOUNTS.get(folder.command, documents_account)(folder, name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        problems.append(f"The files do not fit this version, and only the record is shown ({error!r}).")
        account = Account(name, folder.command, PageVerdict("The results cannot be read", "open"))
    more: list[Section] = []
    if folder.record is not None:
        if folder.command in ACCOUNTS:
            others = {
                key: None
                for key in folder.contents
                if "figure" in folder.object(key) and key not in DRAWN_AGAIN
            }
            more += result_sections(folder, dict(others))
        more += [_settings_section(folder), _versions_section(folder)]
    facts = (*account.facts, *_times(folder.record or {}))
    return replace(
        account,
        facts=facts,
        sections=(*account.sections, *more),
        missing=(*_missing(folder), *map(printable, problems)),
        key=account.key | ({"status": folder.status} if folder.record else {}),
    )


def _missing(folder: Folder) -> tuple[str, ...]:
    if folder.record is None:
        return ()
    found, lines = file_names(folder.path), []
    if folder.status != "finished":
        said = "has not ended" if folder.status == "running" else f"was {folder.status}"
        known = folder.command in COMMANDS and folder.command not in ("evaluate", "predict")
        again = f"; it continues with: {PROGRAM} {folder.command} --config {quoted(folder.path)}" * known
        lines.append(f"The run {said}{again}.")
    lines += [
        f"{name} is not there"
        + ("." if folder.status == "finished" else ": the command writes it at its end.")
        for name in EXPECTED.get(folder.command, ())
        if name not in found
    ]
    return tuple(lines)


def _times(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if not record.get("started") or not record.get("ended"):
        return ()
    starts = record.get("starts", 1)
    if "seconds" in record:
        name, pauses, seconds = "running time", "without pauses", record["seconds"]
    else:  # the record of an earlier version, in whole seconds
        started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        name, pauses, seconds = "time from start to end", "pauses included", (ended - started).total_seconds()
    note = f" ({starts} starts, {pauses})" * (starts > 1)
    return ((f"{name}{note}", time_in_words(seconds) if seconds else "less than 1 s"),)


def _settings_section(folder: Folder) -> Section:
    command = COMMANDS.get(folder.command)
    usual = (
        {f.name: plain(f.default) for f in fields(command.settings) if f.default is not MISSING}
        if command
        else {}
    )
    rows = {True: [], False: []}  # type: dict[bool, list[tuple[str, str]]]
    for name, value in folder.config.items():
        rows[command is None or value != usual.get(name)].append((name, setting_words(value)))
    head, words = ("setting", "value"), ("setting", "value")
    blocks = []
    if rows[True]:
        caption = "" if command is None else "Those that differ from the defaults of the command."
        blocks.append(DataTable(head, tuple(rows[True]), caption, words))
    if rows[False]:
        blocks.append(DataTable(head, tuple(rows[False]), "Defaults.", words))
    return Section("Settings", tuple(blocks), folded=True)


def _versions_section(folder: Folder) -> Section:
    record = folder.record or {}
    sessions = [one for one in record.get("sessions") or [] if isinstance(one.get("environment"), dict)]
    environments = [one["environment"] for one in sessions] or [record.get("environment") or {}]
    names = list(dict.fromkeys(name for one in environments for name in one))
    times = [(f"{name}: {record.get(name) or 'not recorded'}") for name in ("started", "ended")]
    if not any("cpu" in key.lower() for key in (*folder.results, *itertools.chain(*folder.metrics))):
        times.append("CPU time: not recorded")
    moments = Sentences((f"{'; '.join(times)}.",))
    rows = tuple((name, *(setting_words(one.get(name)) for one in environments)) for name in names)
    if not rows:
        return Section(TIMES, (moments,), folded=True)
    heads = (
        ("value",) if len(environments) == 1 else tuple(f"from start {one.get('start')}" for one in sessions)
    )
    table = DataTable(("entry", *heads), rows, words=("entry", *heads))
    return Section(TIMES, (moments, table), folded=True)


def rendered(accounts: Sequence[Account]) -> str:
    """The page of these accounts; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PLACE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        accounts=accounts, mark=PAGE_MARK, version=__version__, title=accounts[0].name
    )
    return with_numbered_charts(page)
