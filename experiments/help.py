"""Help texts: what a flag that is left out stands for, in place of None, and booleans as pairs of flags."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from .requirements import require

METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def with_help_texts(base: Any) -> Any:
    """The same settings in a class whose flags have these help texts.

    Args:
        base: Settings with the values of a preset or a configuration. A method ``default_words`` says, by name, what
            settings that are None stand for, and ``value`` gives it.

    Returns:
        Settings for tyro to show.
    """
    import tyro

    kind = type(base)
    words = base.default_words() if hasattr(base, "default_words") else {}
    hints, docs, changed = typing.get_type_hints(kind), field_docs(kind), []
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(kind)}
    for name, value in values.items():
        hint, metavar = _plain(hints[name])
        if hint is bool and value is None:
            values[name] = bool(hasattr(base, "value") and base.value(name))
        else:
            hint = hints[name]
        note = f"(default: {words[name]})" if name in words else _default_note(value)
        shown = tyro.conf.arg(help=docs.get(name), help_behavior_hint=note, metavar=metavar)
        changed.append((name, Annotated[hint, shown], dataclasses.field(default=values[name])))
    # The values are checked already, and those that stand for None may not be given together.
    namespace = {"__doc__": kind.__doc__, "__post_init__": lambda _: None}
    return dataclasses.make_dataclass(
        kind.__name__, changed, bases=(kind,), namespace=namespace, frozen=True
    )(**values)


def _default_note(value: object) -> str | None:
    """The default in words, for booleans and settings without a value; None where tyro shows the value well."""
    if isinstance(value, bool):
        return f"(default: {in_words(value)})"
    return "(default: none)" if value is None or value in ("", ()) else None


def in_words(value: object) -> str:
    """A setting as help and messages show it: yes and no for booleans."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


def _plain(hint: Any) -> tuple[Any, str | None]:
    """The type without None, and how its values are shown; None for a type without None, which tyro shows well."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, None
    [hint] = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) is Literal:
        return hint, "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    return hint, METAVARS.get(hint)


def field_docs(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of the classes that it is made from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def plain_booleans(kind: type, flags: Sequence[str]) -> list[str]:
    """The flags with every boolean as tyro takes it, for all of them in both forms: --regions True, and --no-regions.

    Args:
        kind: The class of the settings.
        flags: A command line.

    Returns:
        The command line; what is no boolean stays as it is.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if _plain(hint)[0] is bool}
    found: list[str] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        word, _, value = flag.partition("=")
        name = word.removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        negated = name.removeprefix("no_")
        if name not in hints and negated not in hints:
            found.append(flag)
            continue
        if name in hints and not value and rest and rest[0] in ("True", "False", "None"):
            value = rest.pop(0)
        elif name not in hints:
            name, value = negated, value or "False"
        value = value or "True"
        if hints[name] is bool and value in ("True", "False"):
            found.append(f"--{'no-' * (value == 'False')}{name.replace('_', '-')}")
        else:
            found += [f"--{name.replace('_', '-')}", value]
    return found


SHELLS = ("bash", "zsh", "tcsh", "fish")


def write_completion(arguments: Sequence[str], commands: Mapping[str, Any]) -> int:
    """Print or write the script by which a shell completes the words of ``mamltheory``; returns the exit code.

    Args:
        arguments: --tyro-print-completion SHELL, or --tyro-write-completion SHELL PATH.
        commands: All commands by name, with the class of their settings and their presets.

    Returns:
        0. ConfigurationError is raised for other words.
    """
    import tyro

    words = 2 if arguments[0] == "--tyro-print-completion" else 3
    require(
        len(arguments) == words and arguments[1] in SHELLS,
        f"got {' '.join(arguments)}: expected one of {', '.join(SHELLS)}" + " and a file" * (words == 3),
    )
    subcommands: Any = None
    for name, command in commands.items():
        base = with_help_texts(command.settings())
        shown = Annotated[type(base), tyro.conf.arg(name="")]
        fields: list[tuple[str, Any, Any]] = [
            ("settings", shown, dataclasses.field(default=base)),
            ("config", Path | None, dataclasses.field(default=None)),
            ("print_config", bool, dataclasses.field(default=False)),
            ("debug", bool, dataclasses.field(default=False)),
        ]
        if command.presets:
            fields.append(("preset", Literal[tuple(command.presets)] | None, dataclasses.field(default=None)))
        invocation = dataclasses.make_dataclass("Invocation", fields, frozen=True)
        one = Annotated[invocation, tyro.conf.subcommand(name, description=command.summary)]
        subcommands = one if subcommands is None else subcommands | one
    try:
        tyro.cli(subcommands, prog="mamltheory", args=list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
