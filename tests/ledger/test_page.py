"""The page and the figure of the verdicts: they need nothing else, and show every statement where it can be read."""

import itertools
import json
import re
from pathlib import Path

import pytest

from tests.html_pages import Elements, fetched_by
from tests.ledger.bars import counts_by_section
from tests.ledger.ledger import Erratum, Measured, Outcome, Statement, load
from tests.ledger.page import GAP, HEIGHT, LEFT, WIDTH, label, layout, render_page
from tests.ledger.plugin import draw
from tests.ledger.text import skeleton

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "figures" / "paper_checks.html"
STATEMENTS, ERRATA = load(ROOT / "tests" / "paper" / "statements.toml")
SMALL = (
    Statement("Eq. (1)", "Section 3", "identity", "a < b & c", errata=("E1",)),
    Statement("Sec. 5: </script>", "Section 5", "identity", "rests on it", uses=("Eq. (1)",)),
)


def small_page():
    errata = (Erratum("E1", "Eq. (1)", "a sign", "the other", "claim", ("Eq. (1)",)),)
    outcomes = [
        Outcome("Eq. (1)", "test_a", True, corrected=True, measured=(Measured("error", 0.5, 1.0),)),
        Outcome("Sec. 5: </script>", "test_b", True),
    ]
    return render_page(SMALL, errata, outcomes)


def test_the_page_holds_every_statement_with_its_verdict_numbers_and_errata():
    elements = Elements(small_page())
    content = json.loads(elements.data)
    assert content["verdicts"] == ["holds as corrected", "holds"]
    first, second = content["statements"]
    assert first == {
        "id": "Eq. (1)", "where": "Section 3", "verdict": 0, "claim": "a < b & c",
        "errata": ["E1: a sign Correct is: the other."], "numbers": ["error: 0.5 (< 1)"], "tests": ["test_a (1)"],
    }  # fmt: skip
    assert (second["id"], second["uses"], second["verdict"]) == ("Sec. 5: </script>", ["Eq. (1)"], 1)
    assert [box["data-n"] for box in elements.of("g", "box")] == ["0", "1"]
    ((arrow,),) = [elements.of("path", "arrow")]
    assert (arrow["data-from"], arrow["data-to"]) == ("1", "0")
    assert len([a for tag, a in elements.found if tag == "input" and "data-verdict" in a]) == 2
    assert [a["type"] for tag, a in elements.found if a.get("id") == "search"] == ["search"]


def test_values_may_differ_on_the_page_and_verdicts_may_not():
    page = small_page()
    assert (
        skeleton(page)
        == skeleton(page.replace("error: 0.5 ", "error: 0.25 "))
        != skeleton(page.replace("holds as corrected", "holds"))
    )


@pytest.mark.parametrize("text", [small_page(), PAGE.read_text("utf-8")], ids=["small", "committed"])
def test_the_page_asks_for_nothing(text):
    """No address but the name of a format, no file, no frame: it can be read without a network."""
    assert re.findall(r"https?:|//[\w-]+\.\w+|@import|url\(|fetch\(|XMLHttp|import\(", text) == []
    assert fetched_by(text) == []
    assert not re.search(r"<!-- [A-Z]+ -->|/\* [A-Z]+ \*/", text)


def test_the_committed_page_is_small_and_has_all_statements_and_arrows():
    text = PAGE.read_text("utf-8")
    elements = Elements(text)
    assert len(text.encode()) < 400_000
    assert [one["id"] for one in json.loads(elements.data)["statements"]] == [one.id for one in STATEMENTS]
    assert len(elements.of("g", "box")) == len(STATEMENTS)
    assert len(elements.of("path", "arrow")) == sum(len(one.uses) for one in STATEMENTS)


def test_boxes_keep_their_distance_and_their_section_and_names_fit():
    boxes, sections = layout(STATEMENTS)
    assert list(boxes) == [one.id for one in STATEMENTS]
    for one, other in itertools.combinations(boxes.values(), 2):
        apart = (
            abs(one.y - other.y) >= HEIGHT + GAP
            or max(other.x - one.x - one.width, one.x - other.x - other.width) >= GAP - 1e-9
        )
        assert apart
    tops = sorted(sections.values())
    for one in STATEMENTS:
        box = boxes[one.id]
        assert box.x >= LEFT
        assert box.x + box.width <= WIDTH
        assert max(top for top in tops if top <= box.y) == sections[one.where]
        assert box.width > 6 * len(label(one.id))


def test_the_bars_count_every_statement_once_worst_verdict_first():
    verdicts = dict(zip((one.id for one in SMALL), ("holds", "FAILS"), strict=True))
    more = Statement("Eq. (4)", "Section 3", "identity", "")
    counts = counts_by_section((*SMALL, more), verdicts | {"Eq. (4)": "refuted"})
    assert counts == {"Section 3": {"refuted": 1, "holds": 1}, "Section 5": {"FAILS": 1}}
    assert list(counts["Section 3"]) == ["refuted", "holds"]
    committed = json.loads((ROOT / "figures" / "verdict_bars.json").read_text("utf-8"))["data"]["counts"]
    assert list(committed) == list(dict.fromkeys(one.where for one in STATEMENTS))
    assert sum(sum(each.values()) for each in committed.values()) == len(STATEMENTS)


def test_the_figure_is_written_with_its_numbers(tmp_path):
    draw(SMALL, [Outcome("Eq. (1)", "test_a", True), Outcome("Sec. 5: </script>", "test_b", False)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"verdict_bars.{end}" for end in ("json", "pdf", "png")
    }
    written = json.loads((tmp_path / "verdict_bars.json").read_text("utf-8"))
    assert written["data"]["counts"] == {"Section 3": {"holds": 1}, "Section 5": {"FAILS": 1}}
