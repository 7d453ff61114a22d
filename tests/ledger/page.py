"""The statements as a page with their graph: one file, which asks for nothing else and needs no network.

Statements stand section by section, in the paper's order; an arrow leads from a statement to what it rests on. The
places are computed here, so that a browser has nothing to lay out; ``page.html`` has style and behaviour.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from experiments.pages import settings as report
from tests.ledger.ledger import COLOURS, VERDICTS, Erratum, Outcome, Statement, merged, of, verdict
from tests.ledger.text import number_text, numbers_of

TEMPLATE = Path(__file__).with_name("page.html")
BASE = Path(report.__file__).with_name("base.css")
"""The style that all pages of HTML share."""
LEFT, WIDTH = 104, 1010
"""Where statements begin, and where a line ends, in pixels."""
PITCH, HEIGHT, GAP = 32, 22, 8
"""From line to line, height of a statement's box, and space between boxes and between sections."""


@dataclass(frozen=True)
class Box:
    """Place and size of a statement's box in pixels."""

    x: float
    y: float
    width: float

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre."""
        return self.x + self.width / 2, self.y + HEIGHT / 2


def label(name: str) -> str:
    """A statement's id without what its section says already."""
    return name.removeprefix("Eq. ").removeprefix("App. ").rpartition(": ")[2]


def layout(statements: Sequence[Statement]) -> tuple[dict[str, Box], dict[str, float]]:
    """(box of every statement, height of every section's first line); a section begins a new line."""
    boxes: dict[str, Box] = {}
    sections: dict[str, float] = {}
    y = GAP
    for where, group in groupby(statements, key=lambda one: one.where):
        sections[where], x = y, LEFT
        for one in group:
            width = 14 + 6.4 * len(label(one.id))
            if x + width > WIDTH and x > LEFT:
                x, y = LEFT, y + PITCH
            boxes[one.id] = Box(x, y, width)
            x += width + GAP
        y += PITCH + GAP
    return boxes, sections


def render_page(
    statements: Sequence[Statement], errata: Sequence[Erratum], outcomes: Sequence[Outcome]
) -> str:
    """The whole file."""
    outcomes = merged(outcomes)
    verdicts = {one.id: verdict(one, of(one.id, outcomes)) for one in statements}
    counts = Counter(verdicts.values())
    present = [name for name in VERDICTS if counts[name]]
    known = {one.id: one for one in errata}
    data = [_record(one, verdicts[one.id], present, known, outcomes) for one in statements]
    parts = {
        "BASE": BASE.read_text(encoding="utf-8").strip(),
        "COLOURS": "".join(f".v{i} rect,.v{i}.key{{fill:{COLOURS[name]};background:{COLOURS[name]}}}"
                           for i, name in enumerate(present)),
        "FILTERS": "".join(f'<label title="{escape(VERDICTS[name])}"><input type="checkbox" data-verdict="{i}" '
                           f'checked><span class="key v{i}"></span>{name} ({counts[name]})</label>\n'
                           for i, name in enumerate(present)),
        "GRAPH": _drawing(statements, verdicts, present),
        "DATA": _embedded({"verdicts": present, "statements": data}),
    }  # fmt: skip
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part).replace(f"/* {name} */", part)
    return text


def _record(
    one: Statement,
    verdict_: str,
    present: Sequence[str],
    errata: Mapping[str, Erratum],
    outcomes: Sequence[Outcome],
) -> dict[str, object]:
    """What the page shows of a statement; empty fields are left out."""
    found = of(one.id, outcomes)
    record = {
        "id": one.id,
        "where": one.where,
        "verdict": present.index(verdict_),
        "claim": one.claim,
        "condition": one.condition,
        "reason": one.reason if not found else "",
        "errata": [
            f"{name}: {errata[name].wrong} Correct is: {errata[name].corrected}." for name in one.errata
        ],
        "uses": one.uses,
        # processes hand in the cases of a test in any order
        "numbers": sorted(number_text(number) for number in numbers_of(one.id, outcomes)),
        "tests": [f"{outcome.test} ({outcome.cases})" for outcome in found],
    }
    return {key: value for key, value in record.items() if value or key == "verdict"}


def _embedded(content: object) -> str:
    """JSON that may stand inside a script element, a statement on a line."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # a "<" before a value stays, since the comparison of the committed page reads it
    return text.replace("</", "<\\/").replace("<!", "\\u003c!").replace('{"id"', '\n{"id"')


def _drawing(statements: Sequence[Statement], verdicts: Mapping[str, str], present: Sequence[str]) -> str:
    boxes, sections = layout(statements)
    number = {one.id: i for i, one in enumerate(statements)}
    height = max(box.y for box in boxes.values()) + PITCH
    parts = [
        f'<svg id="graph" viewBox="0 0 {WIDTH + GAP} {height:g}" width="{WIDTH + GAP}" height="{height:g}">'
    ]
    parts += [
        f'<text class="section" x="{LEFT - 12}" y="{y + 15:g}">{where}</text>'
        for where, y in sections.items()
    ]
    for one in statements:
        for used in one.uses:
            path = _arrow(boxes[one.id], boxes[used])
            parts.append(
                f'<path class="arrow" data-from="{number[one.id]}" data-to="{number[used]}" d="{path}"/>'
            )
    for one in statements:
        box, place = boxes[one.id], f"{one.id}: {verdicts[one.id]}. {one.claim}"
        parts.append(
            f'<g class="box v{present.index(verdicts[one.id])}" data-n="{number[one.id]}" tabindex="0">'
            f"<title>{escape(place)}</title>"
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{HEIGHT}" rx="5"/>'
            f'<text x="{box.middle[0]:g}" y="{box.y + 15:g}">{escape(label(one.id))}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


def _arrow(start: Box, end: Box) -> str:
    """A curve between two boxes: between their rows, or bowed above a row that both share."""
    (x1, y1), (x2, y2) = start.middle, end.middle
    if y1 == y2:
        top = y1 - HEIGHT / 2
        return f"M{x1:g} {top:g}Q{(x1 + x2) / 2:g} {top - PITCH / 2:g} {x2:g} {top:g}"
    side = HEIGHT / 2 if y2 > y1 else -HEIGHT / 2
    y1, y2 = y1 + side, y2 - side
    return f"M{x1:g} {y1:g}C{x1:g} {(y1 + y2) / 2:g} {x2:g} {(y1 + y2) / 2:g} {x2:g} {y2:g}"
