"""Settings from JSON or TOML, strictly: an unknown key or a value of another type is an error."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .requirements import require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_NUMBER, MOST_WHOLE = 1e308, 2**63
"""Bounds of floats and whole numbers in settings; tensors hold no larger ones."""
S = TypeVar("S", bound="DataclassInstance")


def read_config(path: Path, command: str) -> dict[str, Any]:
    """The settings in ``path``: a ``run.json`` of this command, its folder, or settings in JSON or (.toml) TOML."""
    from mamltheory.files import read_regular, reason, shown
    from mamltheory.strict_json import MOST_BYTES, unsealed

    path = path / "run.json" if path.is_dir() else path
    try:
        data = read_regular(path, MOST_BYTES)
        content = _from_toml(data) if path.suffix.lower() == ".toml" else unsealed(data)[0]
    except OSError as error:
        require(False, f"cannot read the configuration {path}: {reason(error)}")
    except ValueError as error:
        hint = "; if it was changed on purpose, take out its last entry" * ("SHA" in str(error))
        require(False, f"cannot read the configuration {path}: it {error}{hint}")
    if "command" not in content:
        return content
    recorded = content["command"]
    require(
        recorded == command,
        f"{path} is a run of {shown(recorded)}, not of '{command}': use it with that command",
    )
    require(
        isinstance(content.get("config"), dict),
        f"{path} holds no settings: expected an object under 'config'",
    )
    settings: Any = content["config"]
    return settings


def _from_toml(data: bytes) -> dict[str, Any]:
    """The settings in a TOML text, with infinite numbers as JSON has them; raises ValueError for any other text."""
    import tomllib

    try:
        content = tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is not TOML ({error})") from None
    infinite = {
        key for key, value in content.items() if isinstance(value, float) and not math.isfinite(value)
    }
    return {key: str(value) if key in infinite else value for key, value in content.items()}


def settings_from(kind: type[S], content: Mapping[str, Any], base: S | None = None) -> S:
    """Settings of class ``kind`` with these values, others from ``base``; raises ConfigurationError."""
    content, hints = _without_retired(kind, content), typing.get_type_hints(kind)
    hints = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for key in content:
        near = difflib.get_close_matches(key[:100], hints, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(hints)}"
        require(key in hints, f"unknown setting {key[:100]!r} for {kind.__name__.lower()}: {hint}")
    values = {key: _convert(key, value, hints[key]) for key, value in content.items()}
    return kind(**values) if base is None else dataclasses.replace(base, **values)


def _without_retired(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without retired settings; raises ConfigurationError if one has another value."""
    retired = getattr(kind, "RETIRED", {})
    for key, only in retired.items():
        if content.get(key, only) != only:
            from mamltheory.files import shown

            require(
                False,
                f"setting '{key}' is {shown(content[key])}, but this version lacks it and always computes with "
                f"{shown(only)}: take it out of the configuration, or use the version that recorded it",
            )
    ignored = getattr(kind, "IGNORED", ())
    return {key: value for key, value in content.items() if key not in retired and key not in ignored}


def _convert(key: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [each for each in arguments if each is not type(None)]
        return None if value is None else _convert(key, value, inner[0])
    if origin is typing.Literal:
        fits, converted = value in arguments, value
    elif origin is tuple:
        fits = isinstance(value, list)
        converted = tuple(_convert(key, item, arguments[0]) for item in value) if fits else ()
    else:
        fits, converted = _convert_plain(value, hint)
    expected = (
        f"one of {list(arguments)}" if origin is typing.Literal else getattr(hint, "__name__", str(hint))
    )
    if not fits:
        from mamltheory.files import shown

        require(False, f"setting '{key}' is {shown(value)}: expected {expected}")
    return converted


def _convert_plain(value: Any, hint: Any) -> tuple[bool, Any]:
    if hint is float:
        infinite = value in ("inf", "-inf", "nan")  # JSON has no such numbers: run records write them as text
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_NUMBER
        return (True, float(value)) if number or infinite else (False, value)
    if hint is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else value
    return type(value) is hint and (hint is not int or abs(value) < MOST_WHOLE), value
