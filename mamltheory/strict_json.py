"""JSON of others, read strictly: of bounded size and depth, each key once, and with values of the expected types.

A file of ours ends with the SHA-256 of what stands before it, so that a single changed byte is noticed. Files of
earlier versions have none, and are taken as they are.
"""

import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from mamltheory.files import read_regular, reason, shown

MOST_BYTES, MOST_VALUES, MOST_DEPTH, MOST_DIGITS = 2**26, 2**22, 100, 300
SEAL = "sha256"
INFINITE = ("inf", "-inf", "nan")
"""How records write the numbers that JSON lacks."""
SEAL_BYTES = 100
"""The digest of a sealed object is among so many last bytes."""
_SEALED = re.compile(rb'": "([0-9a-f]{64})("\s*\}\s*)\Z')


def parse(data: bytes, infinite: bool = False) -> object:
    """The value of a JSON text.

    infinite: whether NaN and Infinity, which are not JSON, may occur. Raises ValueError, in words that go after the
    name of the file, for what is not strict JSON in UTF-8, and for more than 4 million values or 100 levels.
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
            json.dumps(value, ensure_ascii=False).encode()  # half a character, which no text may hold
    except RecursionError:
        raise ValueError(f"is nested more than {MOST_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({reason(error)})") from None
    _check_depth(value)
    return value


def read(path: Path, most: int = MOST_BYTES) -> object:
    """The value in a JSON file; raises OSError, or ValueError as :func:`parse` does."""
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


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for each in level
            if type(each) in (list, dict)
            for inner in (each if type(each) is list else each.values())
        ]
        if not level:
            return
    raise ValueError(f"is nested more than {MOST_DEPTH} levels deep")


def sealed(text: str, before: str = "") -> bytes:
    """The JSON text of an object with the digest of all before it as its last entry.

    before: the digest that this object follows, where objects are a sequence that must stay complete.
    """
    head = text.rstrip().removesuffix("}").rstrip()
    space = "\n" if "\n" in text.strip() else ""
    comma = "" if head == "{" else f",{space or ' '}"
    body = f'{head}{comma}{"  " if space else ""}"{SEAL}": "'
    return f'{body}{_digest(body.encode(), before)}"{space}}}\n'.encode()


def unsealed(raw: bytes, before: str = "") -> tuple[dict[str, object], str]:
    """The object that was sealed, and its digest; the digest is empty where an earlier version wrote none.

    Raises ValueError, as :func:`parse` does, for anything else and for what does not match its digest.
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


def misfit(value: object, kind: object, name: str) -> str | None:
    """What keeps a value of a JSON file from being of a type, in words that call it ``name``; None if it fits.

    kind: bool, int, float (also as "inf", "-inf" or "nan"), str, a Literal, a union, list, dict or tuple of such,
    Annotated[number, least], or a class with fields (TypedDict, dataclass, NamedTuple): an object, and for the
    last a list. Whole numbers have at most 64 bits.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        wrong = misfit(value, arguments[0], name)
        low = wrong is None and value not in INFINITE and value < arguments[1]
        return f"{name} is {shown(value)}: expected at least {arguments[1]}" if low else wrong
    if origin in (typing.Required, typing.NotRequired):
        return misfit(value, arguments[0], name)
    if origin in (types.UnionType, typing.Union):
        wrong = [misfit(value, each, name) for each in arguments]
        return None if None in wrong else wrong[0]
    if _named(kind) is not None:
        return _misfit_of_fields(value, kind, name)
    if origin in (list, Sequence) or (origin is tuple and arguments[-1] is Ellipsis):
        return _first(value, list, name, lambda: (("", item, arguments[0]) for item in value))
    if origin in (dict, Mapping):
        return _first(value, dict, name, lambda: ((key, item, arguments[1]) for key, item in value.items()))
    if origin is tuple:
        return _misfit_of_places(value, arguments, name)
    if _fits_plainly(value, kind, origin, arguments):
        return None
    expected = f"one of {list(arguments)}" if origin is typing.Literal else kind.__name__
    return f"{name} is {shown(value)}: expected {expected}"


def _fits_plainly(value: object, kind: object, origin: object, arguments: tuple) -> bool:
    if kind is object:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if kind is float:
        return type(value) is float or type(value) is int or (type(value) is str and value in INFINITE)
    if kind is int:
        return type(value) is int and value.bit_length() < 64
    return type(value) is kind


def _first(value: object, kind: type, name: str, inside: Callable[[], Iterable[tuple]]) -> str | None:
    if type(value) is not kind:
        return f"{name} is {shown(value)}: expected a {kind.__name__}"
    each = (
        misfit(item, hint, f"{name}[{key!r:.60}]" if key else f"each of {name}")
        for key, item, hint in inside()
    )
    return next((wrong for wrong in each if wrong is not None), None)


def _named(kind: object) -> dict[str, bool] | None:
    """The fields of a class by name, and whether each is required; None for other types."""
    if typing.is_typeddict(kind):
        return {key: key in kind.__required_keys__ for key in kind.__annotations__}
    if isinstance(kind, type) and is_dataclass(kind):
        return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    return dict.fromkeys(kind._fields, True) if hasattr(kind, "_fields") else None


def _misfit_of_fields(value: object, kind: type, name: str) -> str | None:
    hints, required = typing.get_type_hints(kind, include_extras=True), _named(kind)
    if hasattr(kind, "_fields"):
        return _misfit_of_places(value, tuple(hints[key] for key in required), name)
    if type(value) is not dict:
        return f"{name} is {shown(value)}: expected an object with {', '.join(required)}"
    if lacking := [key for key, needed in required.items() if needed and key not in value]:
        return f"{name} lacks {', '.join(lacking)}"
    wrong = (misfit(value[key], hints[key], f"{name}[{key!r}]") for key in required if key in value)
    return next((each for each in wrong if each is not None), None)


def _misfit_of_places(value: object, kinds: tuple, name: str) -> str | None:
    if type(value) is not list or len(value) != len(kinds):
        return f"{name} is {shown(value)}: expected a list of {len(kinds)}"
    wrong = (
        misfit(item, kind, f"{name}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )
    return next((each for each in wrong if each is not None), None)
