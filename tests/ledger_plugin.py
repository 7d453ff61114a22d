"""Hooks that collect what the tests say of the paper's statements; they work under xdist too."""

from pathlib import Path

import pytest

from mamltheory.ledger import Outcome, render

LEDGER = Path(__file__).parents[1] / "paper_checks.md"
collected = pytest.StashKey[list[Outcome]]()


def pytest_addoption(parser):
    parser.addoption(
        "--ledger", choices=["write", "check"], help="write paper_checks.md, or fail if it is stale"
    )


def pytest_configure(config):
    config.stash[collected] = []
    config.pluginmanager.register(Collector(config), "ledger collector")


def pytest_runtest_setup(item):
    marks = list(item.iter_markers("paper"))
    statements = [(name, bool(mark.kwargs.get("corrected"))) for mark in marks for name in mark.args]
    # user_properties travel from the worker processes to the one that reports
    item.user_properties.append(("paper", (item.originalname or item.name, statements)))


class Collector:
    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and not (report.when == "setup" and report.failed):
            return
        for key, value in report.user_properties:
            if key == "paper":
                test, statements = value
                outcomes = [Outcome(name, test, report.passed, corrected) for name, corrected in statements]
                self.config.stash[collected] += outcomes


def pytest_sessionfinish(session, exitstatus):
    mode = session.config.getoption("--ledger")
    if mode is None or hasattr(session.config, "workerinput"):
        return
    text = render(session.config.stash[collected])
    if mode == "write":
        LEDGER.write_text(text, encoding="utf-8")
    elif exitstatus == pytest.ExitCode.OK and (
        not LEDGER.exists() or LEDGER.read_text(encoding="utf-8") != text
    ):
        session.config.get_terminal_writer().line("paper_checks.md is out of date: run make ledger", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
