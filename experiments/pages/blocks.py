"""What a page is made of: an account of every run, with a verdict, facts and sections of words, tables and charts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

Tone = Literal["clear", "weak", "fails", "open", "plain"]
"""Colour of a verdict: holds, cannot be told from noise, fails, not finished, and none of these."""
Column = Sequence[object]


@dataclass(frozen=True)
class PageVerdict:
    """What a run found: a headline, its colour, and sentences that explain it."""

    headline: str
    tone: Tone = "plain"
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentences:
    """Paragraphs of text."""

    lines: tuple[str, ...]
    kind: str = "words"


@dataclass(frozen=True)
class DataTable:
    """A table; columns in ``words`` are aligned to the left, the others to the right; an aside follows a chart."""

    head: tuple[str, ...]
    rows: tuple[Column, ...]
    caption: str = ""
    words: tuple[str, ...] = ()
    aside: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Drawing:
    """An SVG or an image, with its caption.

    Two narrow ones stand in a line; a wide one takes the whole line, on white paper.
    """

    picture: Markup
    caption: str = ""
    size: Literal["narrow", "broad", "paper"] = "narrow"
    kind: str = "drawing"


@dataclass(frozen=True)
class Fragment:
    """HTML that is safe as it is."""

    html: Markup
    kind: str = "fragment"


Block = Sentences | DataTable | Drawing | Fragment


@dataclass(frozen=True)
class Section:
    """A heading with blocks; a folded one is opened by a click."""

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True)
class Account:
    """All that a page says of one run.

    Attributes:
        name: Of the run, from its folder.
        what: The command, and its method.
        verdict: What it found.
        facts: (name, value) of the most important numbers.
        sections: The details.
        missing: What an unfinished or damaged run lacks, a sentence each.
        key: Numbers that a comparison shows, by name.
    """

    name: str
    what: str
    verdict: PageVerdict
    facts: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()
    missing: tuple[str, ...] = ()
    key: dict[str, str] = field(default_factory=dict)


def in_percent(share: float, digits: int = 1) -> str:
    """The share in per cent."""
    return f"{100 * share:.{digits}f} %"


def with_half_width(mean: float, half_width: float) -> str:
    """An accuracy in per cent with the half-width of its interval."""
    return f"{100 * mean:.1f} ± {100 * half_width:.1f} %"


def signed_points(points: float, width: str = "") -> str:
    """A difference in points with its sign, and with its half-width if there is one."""
    return f"{points:+.1f}{width} points".replace("-", "−")


def in_figures(value: object, digits: int = 4) -> str:
    """A number in at most so many digits, with a minus sign; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}".replace("-", "−").replace("inf", "∞")


def time_in_words(seconds: float) -> str:
    """A time in the two units that suit it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
