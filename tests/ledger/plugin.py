"""Hooks that collect what the tests say of the paper's statements; they work under xdist too.

``--ledger write`` writes paper_checks.md, its page and its figure. ``--ledger check`` fails when one of the two texts
is stale. ``--ledger slow`` stores the outcomes of the slow tests, which the other two add to their own.
``--row "Eq. (12)"`` runs the tests of one row alone and prints its numbers.
"""

import dataclasses
import hashlib
import json
from datetime import date
from pathlib import Path

import pytest

from tests.ledger.ledger import Measured, Outcome, load, merged, of, verdict
from tests.ledger.page import render_page
from tests.ledger.text import BARS, PAGE, number_text, numbers_of, render, skeleton

ROOT = Path(__file__).parents[2]
LEDGER, STATEMENTS = ROOT / "paper_checks.md", ROOT / "tests" / "paper" / "statements.toml"
FIGURES = ROOT / "figures"
SLOW = ROOT / "tests" / "paper" / "slow_outcomes.json"
collected = pytest.StashKey[list[Outcome]]()
mutants = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_addoption(parser):
    parser.addoption("--ledger", choices=["write", "check", "slow"], help="what to do with paper_checks.md")
    parser.addoption(
        "--row", metavar="ID", help="run the tests of one statement or erratum, such as 'Eq. (12)'"
    )


def pytest_configure(config):
    config.stash[collected], config.stash[mutants] = [], []
    config.pluginmanager.register(Collector(config), "ledger collector")


@pytest.fixture
def measured(request):
    """measured(what, value, below=…) or above=…: holds a number against its bound and notes both in the ledger."""

    def note(what, value, *, below=None, above=None):
        value, bound = float(value), float(below if above is None else above)
        request.node.user_properties.append(("measured", (what, value, bound, above is not None)))
        assert value > bound if above is not None else value < bound, (
            f"{what} is {value:.3g}, bound {bound:.3g}"
        )

    return note


def named_by(item):
    """(statement or erratum, how) of every mark of the test."""
    named = [(name, mark.kwargs) for mark in item.iter_markers("paper") for name in mark.args]
    return named + [(name, {}) for mark in item.iter_markers("erratum") for name in mark.args]


def pytest_runtest_setup(item):
    named = named_by(item)
    if named:
        test = item.originalname or item.name
        slow = item.get_closest_marker("slow") is not None
        # user_properties travel from the worker processes to the one that reports
        item.user_properties.append(("paper", (test, slow, named)))


class Collector:
    def __init__(self, config):
        self.config = config

    def pytest_collection_modifyitems(self, config, items):
        row = config.getoption("--row")
        if row is not None:
            others = [item for item in items if row not in dict(named_by(item))]
            config.hook.pytest_deselected(items=others)
            items[:] = [item for item in items if row in dict(named_by(item))]

    def pytest_terminal_summary(self, terminalreporter):
        row = self.config.getoption("--row")
        if row is not None:
            terminalreporter.section(row)
            for line in lines_of(row, merged(self.config.stash[collected])):
                terminalreporter.write_line(line)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or (report.when == "setup" and report.failed):
            self.config.stash[collected] += outcomes_of(report)
            caught = [value for key, value in report.user_properties if key == "mutant"]
            self.config.stash[mutants] += caught if report.passed else []


def outcomes_of(report):
    properties = {"measured": [], "paper": []}
    for key, value in report.user_properties:
        properties.setdefault(key, []).append(value)
    numbers = tuple(Measured(*one) for one in properties["measured"])
    return [
        Outcome(
            subject,
            test,
            report.passed,
            1,
            bool(how.get("corrected")),
            bool(how.get("refuted")),
            slow,
            numbers,
        )
        for test, slow, named in properties["paper"]
        for subject, how in named
    ]


def lines_of(row, outcomes):
    """What the tests of one row measured, test by test."""
    for one in of(row, outcomes):
        yield f"{one.test}: {'passed' if one.passed else 'FAILED'} ({one.cases})"
        yield from (f"  {number_text(number)}" for number in numbers_of(row, [one]))


def pytest_sessionfinish(session, exitstatus):
    mode = session.config.getoption("--ledger")
    if mode is None or hasattr(session.config, "workerinput"):
        return
    outcomes = merged(session.config.stash[collected])
    if mode == "slow":
        write_slow(outcomes)
        return
    slow_date, slow = read_slow()
    statements, errata = load(STATEMENTS)
    outcomes = [*outcomes, *slow]
    texts = {
        LEDGER: render(statements, errata, outcomes, slow_date, session.config.stash[mutants]),
        FIGURES / PAGE: render_page(statements, errata, outcomes),
    }
    if mode == "write":
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        draw(statements, merged(outcomes))
    elif exitstatus == pytest.ExitCode.OK and (
        stale := [path.name for path in texts if is_stale(path, texts[path])]
    ):
        terminal = session.config.get_terminal_writer()
        terminal.line(f"out of date: {', '.join(stale)}; run make ledger", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def is_stale(path, text):
    """Whether a statement, verdict, test, bound or mutant differs; values alone may, from machine to machine."""
    return not path.exists() or skeleton(path.read_text(encoding="utf-8")) != skeleton(text)


def draw(statements, outcomes, directory=FIGURES):
    # here alone: every test process would wait a second for matplotlib
    from experiments.plotting import figure, save_figure
    from tests.ledger.bars import counts_by_section, draw_bars

    counts = counts_by_section(statements, {one.id: verdict(one, of(one.id, outcomes)) for one in statements})
    with figure("page", 4.6) as (drawing, axes):
        drawing.suptitle("What the tests say of every numbered statement of the paper")
        draw_bars(axes[0, 0], counts)
        save_figure(drawing, BARS, {"counts": counts}, directory)


def tested_code():
    """Digest of the modules that the slow tests run: their numbers belong to this code and no other."""
    digest = hashlib.sha256()
    package = ROOT / "mamltheory"
    names = ["linalg", "dynamics", "activations", "networks", "inner_loop", "objective", "maml", "predictors"]
    theory = [package / f"{name}.py" for name in names]
    # kernels/layers serves modules that are no networks of Eq. (16)
    kernels = [
        one for folder in ("factored", "finite_width", "kernels") for one in (package / folder).glob("*.py")
    ]
    for module in sorted(theory + kernels):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


def write_slow(outcomes):
    rows = [dataclasses.asdict(one) for one in outcomes]
    content = {"date": date.today().isoformat(), "tested_code": tested_code(), "outcomes": rows}
    SLOW.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_slow():
    if not SLOW.exists():
        return "", []
    content = json.loads(SLOW.read_text(encoding="utf-8"))
    rows = [
        Outcome(**{**row, "measured": tuple(Measured(**one) for one in row["measured"])})
        for row in content["outcomes"]
    ]
    return content["date"], rows
