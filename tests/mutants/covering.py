"""Which tests run which lines of the package, and tests run in forks of one process that has collected them.

A fork costs no import. Every test file is traced in a fork of its own, so that no line is hidden by what the tests of
another file have left in a cache.
"""

import hashlib
import json
import os
import resource
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mamltheory"
OTHER_TESTS = (
    *(
        f"tests/{name}/"
        for name in ("cuda", "docs", "experiments", "runtime", "ledger", "fake_cuda", "mutants")
    ),
    "tests/paper/test_mutations.py",
)


class Collected:
    """Collected tests by name; ``use`` is called with it in place of a test run."""

    def __init__(self, use: Callable[["Collected"], None]) -> None:
        self.use, self.items, self.failed = use, {}, False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        own = (item for item in session.items if not item.nodeid.startswith(OTHER_TESTS))
        self.items = {item.nodeid: item for item in own}
        self.use(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def passes(self, names: Sequence[str]) -> bool:
        """Whether tests pass in this process, up to the first that does not."""
        self.failed = False
        chosen = [self.items[name] for name in names]
        for item, following in zip_longest(chosen, chosen[1:]):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return False
        return True


def collect(use: Callable[[Collected], None]) -> None:
    """Call ``use`` with the fast tests, in a process that has imported them."""
    options = ["-q", "-s", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]
    pytest.main([*options, str(ROOT / "tests")], plugins=[Collected(use)])


def forked(calls: Iterable[tuple[str, Callable[[Path], int]]], jobs: int) -> Iterator[tuple[str, int]]:
    """Names and exit codes of calls, ``jobs`` at once, each in a fork and with a folder that is removed after it."""
    waiting, running = iter(calls), {}
    while True:
        while len(running) < jobs and (call := next(waiting, None)):
            folder = tempfile.TemporaryDirectory()
            pid = os.fork()
            if not pid:
                _end_with(call[1], Path(folder.name))
            running[pid] = call[0], folder
        if not running:
            return
        pid, status = os.wait()
        name, folder = running.pop(pid)
        folder.cleanup()
        yield name, os.waitstatus_to_exitcode(status)


def _end_with(call: Callable[[Path], int], folder: Path) -> None:
    code, errors = 70, os.fdopen(os.dup(2), "w")
    try:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        code = call(folder)
    except Exception:
        traceback.print_exc(file=errors)
        errors.flush()
    finally:
        os._exit(code)


def cpu_limit(seconds: float) -> None:
    """Let this process end after so many CPU seconds: some mutants do not end."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))


@dataclass(frozen=True)
class Covering:
    """Tests by the lines that they run, and the CPU seconds of each test that passes."""

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]

    @classmethod
    def read(cls, records: Iterable[Path]) -> "Covering":
        lines, seconds = defaultdict(lambda: defaultdict(list)), {}
        for path in records:
            part = json.loads(path.read_text(encoding="utf-8"))
            seconds |= part["seconds"]
            for file, by_line in part["lines"].items():
                for line, names in by_line.items():
                    lines[file][int(line)] += [name for name in names if name in part["seconds"]]
        return cls(lines, seconds)

    def choose(self, file: str, lines: Iterable[int], budget: float) -> list[str]:
        """The tests that run some of these lines of a file, or else any of its lines, within CPU seconds.

        Those of the test file that mirrors it are taken first; test files that end soon are run first.
        """
        known = self.lines.get(file, {})
        found = {name for line in lines for name in known.get(line, ())}
        path = Path("tests", file).relative_to("tests/mamltheory")
        mirror = f"{Path('tests', path).with_name(f'test_{path.name}')}::"
        if not found:  # a constant, say, of which no test runs the line
            found = {name for names in known.values() for name in names}
            found |= {name for name in self.seconds if name.startswith(mirror)}
        chosen, cost = [], defaultdict(float)
        for name in sorted(found, key=lambda name: (not name.startswith(mirror), self.seconds[name])):
            if chosen and sum(cost.values()) + self.seconds[name] > budget:
                break
            chosen.append(name)
            cost[name.split("::")[0]] += self.seconds[name]
        place = {name: k for k, name in enumerate(self.seconds)}
        return sorted(chosen, key=lambda name: (cost[name.split("::")[0]], place[name]))


def trace(tests: Collected, folder: Path, jobs: int) -> Covering:
    """The lines of the package that each test runs; a folder keeps them until one of the files changes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = defaultdict(list)
    for name in tests.items:
        files[name.split("::")[0]].append(name)
    records = {file: folder / f"{file.replace('/', '.')}.json" for file in files}
    missing = [file for file in files if not _is_current(records[file])]

    def call(file):
        return file, lambda scratch: _trace_file(tests, files[file], records[file], scratch)

    for count, (file, code) in enumerate(forked(map(call, missing), jobs), 1):
        print(f"traced {count} of {len(missing)} test files: {file}", flush=True)
        if code:
            raise RuntimeError(f"the trace of {file} ended with {code}")
    return Covering.read(records.values())


def _digests(files: Iterable[str]) -> dict[str, str]:
    return {file: hashlib.blake2b((ROOT / file).read_bytes(), digest_size=6).hexdigest() for file in files}


def _is_current(record: Path) -> bool:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))["files"]
        return known == _digests(known)
    except FileNotFoundError:  # no record, or a module that it is about is gone
        return False


def _trace_file(tests: Collected, names: Sequence[str], record: Path, scratch: Path) -> int:
    tracer = coverage.Coverage(data_file=str(scratch / "lines"), include=[f"{PACKAGE}/*"])
    tracer.set_option("run:disable_warnings", ["no-data-collected"])  # some tests read texts alone
    tracer.start()
    seconds = {}
    for name in names:
        tracer.switch_context(name)
        start = time.process_time()
        if tests.passes([name]):
            seconds[name] = time.process_time() - start
    tracer.stop()
    data = tracer.get_data()
    lines = {
        str(Path(file).relative_to(ROOT)): {
            line: [name for name in found if name] for line, found in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    content = {"files": _digests([names[0].split("::")[0], *lines]), "seconds": seconds, "lines": lines}
    record.write_text(json.dumps(content), encoding="utf-8")
    return 0
