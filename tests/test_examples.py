"""The examples in the docstrings of the package print what they say."""

import ast
import doctest
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> Iterator[pytest.param]:
    """(module, docstring) of everything in the package that has an example.

    The docstrings are read from the source: doctest's own search passes over functions whose shapes are checked.
    """
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for path in sorted((ROOT / "mamltheory").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" in text:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(text)):
                docstring = ast.get_docstring(node) if isinstance(node, documented) else None
                if docstring and ">>>" in docstring:
                    name = getattr(node, "name", "")
                    yield pytest.param(module, docstring, id=f"{module}.{name}".rstrip("."))


def failures(docstring: str, names: Mapping[str, object]) -> str:
    """What doctest reports of a docstring, among these names; empty where everything is as printed."""
    report: list[str] = []
    test = doctest.DocTestParser().get_doctest(docstring, dict(names), "example", None, 0)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize(("module", "docstring"), list(examples()))
def test_an_example_prints_what_it_says(module, docstring):
    found = failures(docstring, vars(importlib.import_module(module)))
    assert not found, found


def test_an_example_that_prints_something_else_is_found():
    assert not failures(">>> one + 1\n2\n", {"one": 1})
    assert failures(">>> one + 1\n3\n", {"one": 1})
