"""``gpu-check``: run every stage in its own process within the time that is left, and report line by line."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.device import choose_device, environment
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.records import plain, replace_file, to_json

from ..program import ROOT
from .process import check_fake_device
from .report import WELL, faults_of, report_text
from .settings import FAKE, STAGES, CheckStage, GpuCheck
from .wheels import wheel_list

PAUSE = 0.2
"""Seconds between two looks at the clock."""
PART = 0.9
"""Share of a stage's limit after which it should come to its end; at the limit its process is killed."""

RUNNING = "is running"
Record = dict[str, Any]


def run_gpu_check(settings: GpuCheck) -> int:
    """Run the stages and write the report; returns 0, or 1 if a stage found a fault or did not end well."""
    if settings.wheels:
        sys.stdout.write(wheel_list())
        return 0
    data = described(settings)
    name = f"gpu_{re.sub(r'[^A-Za-z0-9]+', '_', data['name']).strip('_')}"
    write = lambda: report_stages(settings.out, name, data, settings)  # noqa: E731
    chosen = {key: stage for key, stage in STAGES.items() if not settings.stages or key in settings.stages}
    end, shares = time.monotonic() + 60 * settings.minutes, [stage.share for stage in chosen.values()]
    write()  # before the log, which is known by it as a result of this program
    log = settings.out / f"{name}.log"
    log.write_bytes(b"")
    for number, (key, stage) in enumerate(chosen.items()):
        # What the stages before left of their time is shared among the others.
        limit = max(0.0, end - time.monotonic()) * stage.share / sum(shares[number:])
        record = data["stages"][key] = {
            "title": stage.title, "limit": limit, "seconds": 0.0, "ended": RUNNING, "lines": [],
        }  # fmt: skip
        run_stage_process(stage, settings.device, record, log, write)
        found = f"{len(record['lines'])} lines, {faults_of(record)} faults"
        print(f"{key:12} {record['seconds']:4.0f} s  {found}; {record['ended']}", flush=True)
    print(
        f"wrote {settings.out / name}.md and .json{', a rehearsal: no figure of a GPU' * data['rehearsal']}"
    )
    return int(any(stage["ended"] != WELL or faults_of(stage) for stage in data["stages"].values()))


def described(settings: GpuCheck) -> Record:
    """The record before the first stage: the device, and what its numbers depend on.

    Args:
        settings: The settings.

    Returns:
        The record.

    Raises:
        ConfigurationError: there is no such device.
    """
    if settings.device == FAKE:
        check_fake_device()
        name, versions = FAKE, {**environment("cpu"), "device": "the CPU, which says that it is one"}
    else:
        try:
            device = choose_device(settings.device).device
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}; --device {FAKE} rehearses the check without one") from None
        name, versions = torch.cuda.get_device_name(device), environment(device)
    return {
        "name": name,
        "rehearsal": settings.device == FAKE,
        "minutes": settings.minutes,
        "versions": {**versions, "cuda": torch.version.cuda or "none"},
        "stages": {},
    }


def report_stages(folder: Path, name: str, data: Record, settings: GpuCheck) -> None:
    """Write the record as JSON and as Markdown."""
    config = {"minutes": settings.minutes, "stages": settings.stages}
    replace_file(folder / f"{name}.json", to_json({"data": plain(data), "config": plain(config)}).encode())
    replace_file(folder / f"{name}.md", report_text(data).encode())


def run_stage_process(
    stage: CheckStage, device: str, record: Record, log: Path, write: Callable[[], None]
) -> None:
    """Run a stage in a fresh process and record its lines as they come; it is killed at its limit.

    Args:
        stage: The stage.
        device: The device setting.
        record: Where its lines, its time and its end are recorded; it has the limit.
        log: The file that gets what the process prints, and tracebacks.
        write: Is called after every line.
    """
    begun, why = time.monotonic(), "see the log"
    request = {"function": stage.function, "device": device, "seconds": PART * record["limit"]}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.NamedTemporaryFile() as written, log.open("ab") as errors:
        # Its own session: all its processes are killed together, and Ctrl-C reaches this process alone.
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.process", json.dumps(request)],
            stdin=subprocess.DEVNULL, stdout=written, stderr=errors,
            env=os.environ | {"PYTHONPATH": paths}, start_new_session=True,
        )  # fmt: skip
        try:
            with Path(written.name).open(encoding="utf-8") as lines:
                while record["ended"] == RUNNING:
                    status = process.poll()  # before the last look at what it wrote
                    for line in map(json.loads, lines):
                        why = line.get("error", why)
                        record["lines"] += [] if "error" in line else [line]
                        write()
                    record["seconds"] = time.monotonic() - begun
                    if status is not None:
                        record["ended"] = f"failed with status {status}: {why}" if status else WELL
                    elif record["seconds"] > record["limit"]:
                        record["ended"] = f"killed after its {record['limit']:.0f} s"
                    else:
                        check_interrupted()
                        time.sleep(PAUSE)
        finally:
            end_process(process)
            write()


def end_process(process: subprocess.Popen) -> None:
    """Kill a process with all that it started, unless it has ended; one that a driver holds is left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
