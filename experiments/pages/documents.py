"""The accounts of figures and tables, and of measurements: what the commands drew and wrote, in one page."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markupsafe import Markup

from mamltheory.files import read_regular
from mamltheory.runtime.folders import MOST_BYTES

from .blocks import Account, Block, DataTable, Drawing, Fragment, PageVerdict, Section, Sentences, in_figures
from .charts import embedded_image
from .findings import verdict_of
from .results import Folder, is_result
from .searches import cpu_time

DRAWN_AGAIN = ("cells", "trace", "rungs", "learning_curves", "meta_curves")
"""Figures that a page draws from the numbers of the run."""
MEASUREMENTS = "measurements"


def documents_account(folder: Folder, name: str) -> Account:
    """The account of figures and tables, with the measurements behind them if they lie in the same folder."""
    results = {key: content for key, content in folder.contents.items() if is_result(content)}
    found = {key: _verdict(key, content) for key, content in results.items()}
    known = {key: verdict for key, verdict in found.items() if verdict is not None}
    sections = [*result_sections(folder, found), *_measured_sections(folder)]
    count = _measurements(folder)
    facts = [(count[0], count[1])] if count else []
    facts += cpu_time(folder) if "cpu_seconds" in folder.results else []
    if folder.status != "finished":
        verdict = PageVerdict(f"Not finished: {count[1] if count else 'no'} measurements are done", "open")
    elif len(known) == 1:
        verdict = next(iter(known.values()))
    elif known:
        verdict = PageVerdict(
            f"{len(results)} results", "plain", tuple(f"{key}: {v.headline}." for key, v in known.items())
        )
    elif count:
        verdict = PageVerdict(f"{count[1]} {count[0]}, and no figure of them in this folder")
    else:
        verdict = PageVerdict(f"Without a verdict: {', '.join(results)}")
    what = folder.command or "figures and tables"
    key = {"result": verdict.headline}
    return Account(name, what, verdict, tuple(facts), tuple(sections), key=key)


def _verdict(name: str, content: Any) -> PageVerdict | None:
    try:
        return verdict_of(name, content)
    except (KeyError, TypeError, ValueError, IndexError):
        return PageVerdict("Written by another version: its numbers cannot be summed up", "plain")


def result_sections(folder: Folder, found: dict[str, PageVerdict | None]) -> list[Section]:
    """A section for every figure or table: verdict, picture and text."""
    sections = []
    for name, verdict in found.items():
        if name in DRAWN_AGAIN and folder.record is not None:
            continue
        blocks: list[Block] = []
        if verdict is not None and len(found) > 1:
            blocks.append(Sentences((f"{verdict.headline}.", *verdict.sentences)))
        picture, text = (folder.path / f"{name}{end}" for end in (".png", ".md"))
        if picture.exists():
            blocks.append(Drawing(embedded_image(picture, name), size="paper"))
        elif "figure" in folder.object(name):
            blocks.append(Sentences((f"{picture.name} is not there: its numbers are in {name}.json.",)))
        if text.exists():
            blocks.append(Fragment(html_of(read_regular(text, MOST_BYTES).decode(errors="replace"))))
        settings = folder.object(name).get("config") or folder.object(name).get("settings")
        if folder.record is None and isinstance(settings, dict) and settings:
            rows = tuple((key, setting_words(value)) for key, value in settings.items())
            blocks.append(
                Fragment(Markup("<details><summary>Settings</summary>{}</details>").format(_pairs(rows)))
            )
        title = name if len(found) > 1 or folder.record is not None else "Result"
        sections.append(Section(title, tuple(blocks)))
    return sections


def _pairs(rows: Sequence[tuple[str, str]]) -> Markup:
    lines = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(*row) for row in rows)
    return Markup('<dl class="settings">{}</dl>').format(lines)


def setting_words(value: object) -> str:
    """A setting in a few words."""
    if isinstance(value, list) and all(not isinstance(each, list | dict) for each in value):
        return ", ".join(map(setting_words, value)) or "none"
    if isinstance(value, dict):
        return f"{len(value)} entries"
    if isinstance(value, list):
        return f"{len(value)} entries"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measurements(folder: Folder) -> tuple[str, str] | None:
    if "measurements" in folder.results:
        return "measurements", in_figures(folder.results["measurements"])
    if (folder.path / MEASUREMENTS).is_dir():
        return "measurements", in_figures(len(list((folder.path / MEASUREMENTS).glob("*.json"))))
    if folder.metrics:
        return "networks measured", in_figures(len(folder.metrics))
    return None


def _measured_sections(folder: Folder) -> list[Section]:
    """Medians over seeds by width, for measurements of the theory commands."""
    rows = [line for line in folder.metrics if "width" in line]
    if not rows:
        return []
    names = [key for key in rows[0] if all(isinstance(line.get(key), float) for line in rows)]
    widths = sorted({line["width"] for line in rows})
    table = []
    for width in widths:
        some = [line for line in rows if line["width"] == width]
        table.append((width, len(some), *(in_figures(median(line[name] for line in some)) for name in names)))
    head = ("width", "seeds", *(name.replace("_", " ") for name in names))
    return [Section("Medians over the seeds", (DataTable(head, tuple(table)),))]


class _TextOnly(RendererHTML):
    """Pictures and addresses of links are left out: the page asks for nothing."""

    def image(self, *_: object) -> str:
        """Nothing."""
        return ""

    def link_open(self, *_: object) -> str:
        """Nothing; the words of the link stay."""
        return ""

    def link_close(self, *_: object) -> str:
        """Nothing."""
        return ""


def html_of(markdown: str) -> Markup:
    """Markdown as HTML: raw HTML is shown as text, tables scroll, and headings begin at the third level."""
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_TextOnly).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    text = parser.renderer.render(tokens, parser.options, {})
    text = text.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    return Markup(f'<div class="text">{text}</div>')


def file_names(folder: Path) -> set[str]:
    """Names of the files and folders in a folder."""
    return {each.name for each in folder.iterdir()}
