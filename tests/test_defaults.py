"""Defaults are part of every result: who changes one changes everybody's numbers, and says so in the changelog.

``python -m tests.test_defaults`` writes them down again.
"""

import dataclasses
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import mamltheory

KNOWN = Path(__file__).with_name("defaults.json")


def _functions(module):
    """The public functions, methods and dataclasses that a module defines, by name."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            if dataclasses.is_dataclass(value):
                yield f"{module.__name__}.{name}", value
            members = ((inner, getattr(value, inner)) for inner in vars(value) if not inner.startswith("_"))
            yield from (
                (f"{module.__name__}.{name}.{n}", each) for n, each in members if inspect.isfunction(each)
            )
        elif inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value


def defaults():
    """The defaults of the package's public functions and settings, by name and parameter."""
    found = {}
    for info in pkgutil.walk_packages(mamltheory.__path__, "mamltheory."):
        if info.name.endswith("__main__"):
            continue
        for name, each in _functions(importlib.import_module(info.name)):
            parameters = inspect.signature(each).parameters.values()
            own = {p.name: repr(p.default) for p in parameters if p.default is not p.empty}
            own = {key: text for key, text in own.items() if " at 0x" not in text and "factory" not in text}
            found |= {name: own} if own else {}
    return dict(sorted(found.items()))


def test_no_default_changes_unnoticed():
    known, found = json.loads(KNOWN.read_text(encoding="utf-8")), defaults()
    changed = {
        f"{name}({parameter})": (known.get(name, {}).get(parameter), found.get(name, {}).get(parameter))
        for name in known | found
        for parameter in known.get(name, {}) | found.get(name, {})
        if known.get(name, {}).get(parameter) != found.get(name, {}).get(parameter)
    }
    assert not changed, f"defaults (before, now); if that is meant, python -m tests.test_defaults: {changed}"


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(own, ensure_ascii=False)}" for name, own in defaults().items())
    KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
