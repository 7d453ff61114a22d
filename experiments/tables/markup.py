"""A table as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "✓": r"$\checkmark$",
    "·": r"$\cdot$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


WIDE = 8
"""Most columns of a LaTeX table in one column of a page."""


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: Title or caption.
        columns: (group, name) of each column; neighbours in one group share a heading.
        rows: The cells.
        notes: Sentences below the table.
        blocks: Numbers of the rows with a line above.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()


def markdown(sheet: Sheet) -> str:
    """A GitHub table; the name of a column begins with its group."""
    names = [f"{group}: {name}" if group else name for group, name in sheet.columns]
    lines = [f"**{sheet.title}**", "", _bar(names), _bar(["---"] * len(names))]
    lines += [_bar([cell.replace("|", "\\|") for cell in row]) for row in sheet.rows]
    for note in sheet.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(sheet: Sheet) -> str:
    """A LaTeX table; it needs the packages booktabs and amssymb."""
    count = len(sheet.columns)
    kind = "table*" if count > WIDE else "table"
    lines = [
        rf"\begin{{{kind}}}",
        r"\centering",
        rf"\caption{{{escaped(' '.join([sheet.title + '.', *sheet.notes]))}}}",
        rf"\begin{{tabular}}{{l{'c' * (count - 1)}}}",
        r"\toprule",
    ]
    groups = [(group, len(list(members))) for group, members in groupby(group for group, _ in sheet.columns)]
    if any(group for group, _ in groups):
        lines += _headings(groups)
    lines.append(_latex_row(name for _, name in sheet.columns))
    lines.append(r"\midrule")
    for number, row in enumerate(sheet.rows):
        if number in sheet.blocks:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\end{{{kind}}}"]
    return "\n".join(lines) + "\n"


def _headings(groups: list[tuple[str, int]]) -> list[str]:
    cells, rules, column = [], [], 1
    for group, width in groups:
        if group:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(group)}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        else:
            cells.append(" & ".join([""] * width))
        column += width
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """The text with special characters as LaTeX commands."""
    return "".join(LATEX.get(character, character) for character in text)


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Records with the same keys as CSV; None is an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()
