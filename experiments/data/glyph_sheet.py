"""``glyphs``: the contact sheet of the embedded few-shot images."""

import textwrap

from experiments.data.settings import Glyphs
from experiments.plotting import figure, save
from experiments.runs import without_paths
from mamltheory.fewshot.glyphs import contact_sheet, glyph_data
from mamltheory.fewshot.images import ImageSplit

PANEL = 4.7
"""Width of the sheet in inches; the names of the classes take the rest of the page."""


def run(settings: Glyphs) -> int:
    """Draw the sheet; returns 0."""
    counts = {f"{split}_classes": 2 for split in ("train", "val", "test")}
    counts[f"{settings.split}_classes"] = settings.classes
    size, samples = settings.image_size, settings.samples
    data = glyph_data(size, samples_per_class=samples, seed=settings.seed, **counts)
    draw(getattr(data, settings.split), settings)
    return 0


def draw(split: ImageSplit, settings: Glyphs) -> None:
    """A row for each class, named beside it, and a column for each sample."""
    rows = len(split.class_names)
    step = settings.image_size + 2
    with figure("page", PANEL * rows / settings.samples + 0.7) as (drawing, axes):
        panel = axes[0, 0]
        panel.imshow(contact_sheet(split, rows, settings.samples), interpolation="nearest")
        panel.set_yticks([step / 2 + i * step for i in range(rows)], map(readable, split.class_names))
        panel.tick_params(length=0)
        panel.set_xticks([])
        panel.set_title(
            f"Embedded few-shot images, {settings.split} scripts: a class a row, a sample a column"
        )
        panel.spines[:].set_visible(False)
        panel.grid(False)
        name, data = f"glyphs_{settings.split}", {"classes": split.class_names}
        paths = save(drawing, name, data, settings.out, without_paths(settings), settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")


def readable(class_name: str) -> str:
    """A character's code and name on lines short enough to stand beside its row."""
    code, _, name = class_name.partition(" ")
    return "\n".join([code, *textwrap.wrap(name.capitalize(), 20)])
