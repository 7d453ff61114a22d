"""``python -m experiments COMMAND [flags]``: presets < configuration file < flags, then the command.

Exit codes: 0 success; 1 a fault that ``gpu-check`` found; 2 a mistake in settings or data, or an error of the disk
(one line on standard error; ``--debug`` adds the traceback); 130 and 143 a stop by Ctrl-C or SIGTERM after the current
step; 141 a closed pipe.
"""

import argparse
import dataclasses
import difflib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .commands import COMMANDS, Command
from .inputs import check_inputs
from .program import PROGRAM
from .requirements import require
from .terminal import (
    BROKEN_PIPE,
    accept_everything,
    end_output,
    figures_in_files,
    one_line,
    reader_has_left,
)

if TYPE_CHECKING:
    from mamltheory.runtime.interrupt import Interrupted

EXAMPLES = (
    ("demo", "everything on the embedded data, in ten minutes at most"),
    ("search --preset glyph-smoke --seed 1", "a small search; flags override presets"),
    ("search --config runs/search/run.json", "the same search again, or continued after a stop"),
    ("search --preset mini-5 --print-config", "all settings as JSON, which --config takes"),
    ("search --help", "all settings of one command"),
)

PRINT_CONFIG = "--print-config"
MEASUREMENTS = "measurements"
"""A folder that `tabulate` takes up also where the record of the run is lost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    accept_everything()
    try:
        with figures_in_files():
            return _main(arguments)
    except Exception as error:
        return _answered(error, "--debug" in arguments)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    name, flags = arguments[0], arguments[1:]
    if name in ("--tyro-print-completion", "--tyro-write-completion"):
        from .help import write_completion

        return write_completion(arguments, COMMANDS)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: unknown command '{name}': {hint}\n")
        return 2
    command = COMMANDS[name]
    if command.verb is not None and flags[:1] == [command.verb]:
        flags = flags[1:]
    first = command.positional
    if first is not None and flags and not flags[0].startswith("-"):
        flags = [f"--{first}", *flags]
    return _run(name, flags)


def overview() -> str:
    """The text of ``--help``: commands by group, one line each, and examples."""
    lines = [f"usage: {PROGRAM} COMMAND [flags]", ""]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:12} {c.summary}" for name, c in COMMANDS.items() if c.group == group]
        lines.append("")
    lines.append("Examples:")
    lines += [f"  {PROGRAM} {example:38} # {remark}" for example, remark in EXAMPLES]
    return "\n".join(lines) + "\n"


def _run(name: str, flags: list[str]) -> int:
    settings = resolve(name, flags)
    if PRINT_CONFIG in flags:
        from mamltheory.runtime.records import to_json

        sys.stdout.write(to_json(settings.resolved() if hasattr(settings, "resolved") else settings))
        return 0
    if not COMMANDS[name].ranks or os.environ.get("RANK", "0") == "0":
        _take_folders(name, settings)
        check_inputs(settings)
    function = COMMANDS[name].load()
    # Only now: this loads torch, which help, mistakes on the command line and missing files need not wait for.
    from mamltheory.runtime.distributed import joined
    from mamltheory.runtime.interrupt import Interrupted, interruptible

    try:
        with interruptible(), joined() if COMMANDS[name].ranks else nullcontext(True) as leads:
            return (function(settings) or 0) if leads else 0
    except Interrupted as stop:
        return _stopped(stop, name, flags)


def _answered(error: Exception, debug: bool) -> int:
    """Report an error that a user can cause in one line and return the exit code; raise any other error."""
    if isinstance(error, BrokenPipeError) and reader_has_left():
        return BROKEN_PIPE
    from mamltheory.errors import MamlTheoryError

    if debug or not isinstance(error, MamlTheoryError | OSError):
        raise error
    message = f"{error}" if isinstance(error, MamlTheoryError) else _refused(error)
    sys.stderr.write(f"error: {one_line(message)}\n")
    return 2


def _take_folders(name: str, settings: object) -> None:
    """Check before any work that folders are writable and that folders for results hold nothing else."""
    from mamltheory.runtime.folders import (
        RUN_FILE,
        check_results_folder,
        check_run_folder,
        check_writable,
        inputs_in,
    )

    folders = {key: getattr(settings, key, None) for key in COMMANDS[name].folders}
    for folder in folders.values():
        if isinstance(folder, Path):
            check_writable(folder)
    for key in COMMANDS[name].results:
        check_results_folder(getattr(settings, key), name)
    run = folders.get("out")
    if "out" not in COMMANDS[name].results and isinstance(run, Path) and not (run / RUN_FILE).exists():
        check_run_folder(run, name, (*inputs_in(run, settings), MEASUREMENTS))


def _refused(error: OSError) -> str:
    """The message for an error of the operating system."""
    what = f"{error.filename}: " if error.filename is not None else ""
    return (
        f"{what}{error.strerror or error}; make room or name another folder: the same command continues from what "
        "has been saved"
    )


def _stopped(stop: "Interrupted", name: str, flags: list[str]) -> int:
    if stop.continue_with is None:
        sys.stderr.write(
            f"{stop}; nothing is saved: start again with: {PROGRAM} {shlex.join([name, *flags])}\n"
        )
    else:
        sys.stderr.write(f"{stop}; saved; continue with: {stop.continue_with}\n")
    return stop.exit_code


def resolve(name: str, flags: Sequence[str]) -> object:
    """The settings from presets < ``--config`` < flags; raises ConfigurationError, a wrong flag exits with code 2."""
    command = COMMANDS[name]
    early = argparse.ArgumentParser(prog=f"{PROGRAM} {name}", add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config", type=Path)
    chosen, _ = early.parse_known_args(flags)
    base = command.settings()
    if chosen.preset is not None:
        known = ", ".join(command.presets) or f"none, {name} has no presets"
        require(
            chosen.preset in command.presets, f"unknown preset '{chosen.preset}' for {name}: expected {known}"
        )
        base = command.presets[chosen.preset]
    if chosen.config is not None:
        from .config import read_config, settings_from

        record = chosen.config.is_dir() or chosen.config.name == "run.json"
        require(
            chosen.preset is None or not record,
            f"--preset {chosen.preset} and --config {chosen.config} were given, and the record of a run has every "
            "setting: leave out one of them, and change settings by flags",
        )
        base = settings_from(command.settings, read_config(chosen.config, name), base)
    return _parse(name, command, base, flags)


def _parse(name: str, command: Command, base: object, flags: Sequence[str]) -> object:
    import tyro  # only here, because the import takes a tenth of a second

    from .help import plain_booleans, with_help_texts

    if {"-h", "--help"} & set(flags):
        base = with_help_texts(base)
    fields: list[tuple[str, Any, Any]] = [
        ("settings", Annotated[type(base), tyro.conf.arg(name="")], dataclasses.field(default=base))
    ]
    if command.presets:
        names = "{" + ",".join(command.presets) + "}"
        preset = Annotated[
            str | None, tyro.conf.arg(help="Start from named settings.", metavar=names, help_behavior_hint="")
        ]
        fields.append(("preset", preset, dataclasses.field(default=None)))
    config = Annotated[
        Path | None,
        tyro.conf.arg(
            help="Take settings from a run.json or another file in JSON or TOML.",
            metavar="PATH",
            help_behavior_hint="",
        ),
    ]
    debug = Annotated[
        bool,
        tyro.conf.arg(help="Show the traceback of an error.", help_behavior_hint="(default: no)"),
        tyro.conf.FlagCreatePairsOff,
    ]
    printed = Annotated[
        bool,
        tyro.conf.arg(help="Print all settings as --config takes them.", help_behavior_hint="(default: no)"),
        tyro.conf.FlagCreatePairsOff,
    ]
    fields += [
        ("config", config, dataclasses.field(default=None)),
        ("print_config", printed, dataclasses.field(default=False)),
        ("debug", debug, dataclasses.field(default=False)),
    ]
    invocation = dataclasses.make_dataclass("Invocation", fields, frozen=True)
    return tyro.cli(
        invocation,
        prog=f"{PROGRAM} {name}",
        description=command.summary,
        args=plain_booleans(command.settings, flags),
    ).settings


def run_program() -> int:
    """Run the command line of this process, with its signals and streams; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback, nothing to save
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # results and progress keep their order in a log file
    try:
        return main()
    finally:
        end_output()


if __name__ == "__main__":
    sys.exit(run_program())
