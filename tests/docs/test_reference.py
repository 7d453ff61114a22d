"""The reference of the site has an entry for every public name; `make test` builds it."""

import re
from collections import Counter
from pathlib import Path

import pytest

import mamltheory
import mamltheory.fewshot
import mamltheory.nas
from mamltheory import errors

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.rst")}


def entries() -> list[str]:
    """The full names of all entries, page by page."""
    found = []
    for text in PAGES.values():
        for package in re.findall(r"^\.\. currentmodule:: ([\w.]+)$", text, flags=re.MULTILINE):
            found += [f"{package}.{name}" for name in re.findall(r"^   ([\w.]+)$", text, flags=re.MULTILINE)]
    return found


@pytest.mark.parametrize("package", [mamltheory, mamltheory.nas, mamltheory.fewshot])
def test_every_public_name_has_one_entry(package):
    found = Counter(entries())
    assert {name: found[f"{package.__name__}.{name}"] for name in package.__all__} == dict.fromkeys(
        package.__all__, 1
    )


def test_errors_are_described_by_their_module():
    assert ".. automodule:: mamltheory.errors" in PAGES["errors"]
    assert errors.__doc__


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^api/(\w+)$", index, flags=re.MULTILINE))
    assert listed == set(PAGES)
