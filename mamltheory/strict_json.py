"""JSON files that others may have written, read strictly: bounded in size and depth, keys unique, types as expected.

A file that this package writes ends with the SHA-256 of the text before it, so that a single changed byte is noticed.
Files of earlier versions have none, and are read as they are.
"""

import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from mamltheory.files import read_regular, reason, shown

MOST_BYTES, MOST_VALUES, MOST_DEPTH, MOST_DIGITS = 2**26, 2**22, 100, 300
SEAL = "sha256"
INFINITE = ("inf", "-inf", "nan")
"""The numbers that JSON lacks, as records write them."""
SEAL_BYTES = 100
"""The digest of a sealed object is within that many bytes of the end."""
_SEALED = re.compile(rb'": "([0-9a-f]{64})("\s*\}\s*)\Z')


def parse(data: bytes, infinite: bool = False) -> object:
    """The value of a JSON text.

    Args:
        data: the text in UTF-8.
        infinite: whether NaN and Infinity, which are not JSON, may occur.

    Returns:
        The value.

    Raises:
        ValueError: not strict JSON, or more than 4 million values or 100 levels. The message continues a sentence
            that begins with the name of the file.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"holds more than {MOST_VALUES} values")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_constant=float if infinite else _not_json,
        )
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()  # refuses half a character
    except RecursionError:
        raise ValueError(f"is nested more than {MOST_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({reason(error)})") from None
    _check_depth(value)
    return value


def read_json_file(path: Path, most: int = MOST_BYTES) -> object:
    """The value in a JSON file of at most ``most`` bytes; errors are those of read_regular and :func:`parse`."""
    return parse(read_regular(path, most))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _not_json(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each if isinstance(each, list) else each.values())
        ]
        if not level:
            return
    raise ValueError(f"is nested more than {MOST_DEPTH} levels deep")


def sealed(text: str, before: str = "") -> bytes:
    """The JSON text of an object with its digest as the last entry; ``before``: the digest of the previous object."""
    head = text.rstrip().removesuffix("}").rstrip()
    space = "\n" if "\n" in text.strip() else ""
    comma = "" if head == "{" else f",{space or ' '}"
    body = f'{head}{comma}{"  " if space else ""}"{SEAL}": "'
    return f'{body}{_digest(body.encode(), before)}"{space}}}\n'.encode()


def unsealed(raw: bytes, before: str = "") -> tuple[dict[str, object], str]:
    """The object that :func:`sealed` wrote.

    Args:
        raw: the sealed text.
        before: the digest of the object before it.

    Returns:
        The object, and its digest; the digest is empty where an earlier version wrote none.

    Raises:
        ValueError: not a JSON object, or one that does not match its digest.
    """
    content, end = parse(raw), _SEALED.search(raw[-SEAL_BYTES:])
    if not isinstance(content, dict):
        raise ValueError(f"holds {shown(content)}: expected a JSON object")
    if end is None and SEAL not in content:
        return content, ""
    said = content.pop(SEAL, None)
    body = raw[: -len(end[1] + end[2])] if end else b""
    if not end or end[2] not in (b'"\n}\n', b'"}\n') or said != _digest(body, before):
        raise ValueError("is damaged: it does not match the SHA-256 that it ends with")
    return content, said


def seal_of(end: bytes) -> str:
    """The digest of a sealed object whose last bytes these are; empty where it has none."""
    found = _SEALED.search(end)
    return found[1].decode() if found else ""


def _digest(body: bytes, before: str) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


def misfit(value: object, kind: Any, name: str) -> str | None:
    """Why a value of a JSON file is not of a type.

    Args:
        value: the value.
        kind: bool, int, float (also as "inf", "-inf" or "nan"), str, a Literal, a union, list, dict or tuple of such,
            Annotated[number, least], or a class with fields: an object for a TypedDict or dataclass, a list for a
            NamedTuple. Whole numbers have at most 64 bits.
        name: the value's name in the message.

    Returns:
        The message; None if the value is of that type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        wrong = misfit(value, arguments[0], name)
        low = wrong is None and value not in INFINITE and value < arguments[1]
        return f"{name} is {shown(value)}: expected at least {arguments[1]}" if low else wrong
    if origin in (typing.Required, typing.NotRequired):
        return misfit(value, arguments[0], name)
    if origin in (types.UnionType, typing.Union):
        misfits = [misfit(value, each, name) for each in arguments]
        return None if None in misfits else misfits[0]
    if (required := _required_fields(kind)) is not None:
        return _misfit_of_fields(value, kind, required, name)
    if origin in (list, Sequence) or (origin is tuple and arguments[-1] is Ellipsis):
        return _misfit_inside(value, list, arguments[0], name)
    if origin in (dict, Mapping):
        return _misfit_inside(value, dict, arguments[1], name)
    if origin is tuple:
        return _misfit_of_places(value, arguments, name)
    if _fits_plainly(value, kind, origin, arguments):
        return None
    expected = f"one of {list(arguments)}" if origin is typing.Literal else kind.__name__
    return f"{name} is {shown(value)}: expected {expected}"


def _fits_plainly(value: object, kind: Any, origin: Any, arguments: tuple) -> bool:
    if kind is object:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if kind is float:
        return type(value) is float or type(value) is int or (type(value) is str and value in INFINITE)
    if kind is int:
        return type(value) is int and value.bit_length() < 64
    return type(value) is kind


def _misfit_inside(value: object, container: type, kind: Any, name: str) -> str | None:
    """Why a value is not a list or dict of values of one type."""
    if type(value) is not container:
        return f"{name} is {shown(value)}: expected a {container.__name__}"
    inside: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = (("", item) for item in value)
    return _first(
        misfit(item, kind, f"{name}[{key!r:.60}]" if key else f"each of {name}") for key, item in inside
    )


def _first(misfits: Iterable[str | None]) -> str | None:
    return next((each for each in misfits if each is not None), None)


def _required_fields(kind: Any) -> dict[str, bool] | None:
    """The fields of a class by name, and whether each is required; None for other types."""
    if typing.is_typeddict(kind):
        return {key: key in kind.__required_keys__ for key in kind.__annotations__}
    if isinstance(kind, type) and is_dataclass(kind):
        return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    return dict.fromkeys(kind._fields, True) if hasattr(kind, "_fields") else None


def _misfit_of_fields(value: object, kind: Any, required: dict[str, bool], name: str) -> str | None:
    hints = typing.get_type_hints(kind, include_extras=True)
    if hasattr(kind, "_fields"):
        return _misfit_of_places(value, tuple(hints[key] for key in required), name)
    if not isinstance(value, dict):
        return f"{name} is {shown(value)}: expected an object with {', '.join(required)}"
    if lacking := [key for key, needed in required.items() if needed and key not in value]:
        return f"{name} lacks {', '.join(lacking)}"
    return _first(misfit(value[key], hints[key], f"{name}[{key!r}]") for key in required if key in value)


def _misfit_of_places(value: object, kinds: tuple, name: str) -> str | None:
    if not isinstance(value, list) or len(value) != len(kinds):
        return f"{name} is {shown(value)}: expected a list of {len(kinds)}"
    pairs = enumerate(zip(value, kinds, strict=True))
    return _first(misfit(item, kind, f"{name}[{i}]") for i, (item, kind) in pairs)
