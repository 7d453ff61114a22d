"""The report of ``gpu-check`` in Markdown, written after every line."""

from collections.abc import Mapping
from typing import Any

WELL = "well"
"""How a stage ends that neither failed nor was killed."""
REHEARSAL = (
    "**A rehearsal on the CPU with tiny sizes. It shows that the check runs; nothing here is a figure of a GPU, and "
    "agreement is that of the CPU with itself.**"
)


def report_text(data: Mapping[str, Any]) -> str:
    """The whole report: what was run on, a table of the stages, and the lines of each."""
    parts = [f"# gpu-check: {data['name']}"]
    if data["rehearsal"]:
        parts.append(REHEARSAL)
    about = ", ".join(f"{name} {value}" for name, value in data["versions"].items())
    parts.append(f"At most {data['minutes']:g} minute{'s' * (data['minutes'] != 1)}. {about}.")
    rows = ["| stage | | seconds | ended | faults |", "|---|---|---|---|---|"]
    for name, stage in data["stages"].items():
        rows.append(
            f"| {name} | {stage['title']} | {stage['seconds']:.0f} of {stage['limit']:.0f} | {stage['ended']} | "
            f"{faults_of(stage) or 'none'} |"
        )
    parts.append("\n".join(rows))
    parts += [_section(name, stage) for name, stage in data["stages"].items() if stage["lines"]]
    return "\n\n".join(parts) + "\n"


def faults_of(stage: Mapping[str, Any]) -> int:
    """Lines of a stage that are not as they should be."""
    return sum(line["good"] is False for line in stage["lines"])


def _section(name: str, stage: Mapping[str, Any]) -> str:
    rows = [f"## {name}: {stage['title']}", "", "| what | found | |", "|---|---|---|"]
    for line in stage["lines"]:
        verdict = {True: "as it should be", False: "**fault**", None: ""}[line["good"]]
        found = f"{_shown(line['value'])} {line['unit']}".strip()
        rows.append(f"| {_cell(line['what'])} | {_cell(found)} | {verdict} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    if value is None:
        return "rehearsed:"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
