"""``data`` and ``glyphs``: what a data set on disk is, whether it is complete, and contact sheets of its images."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mamltheory.errors import DataError, ImageSizesError, printable
from mamltheory.fewshot.datasets import complete, embedded_count, load_data
from mamltheory.fewshot.formats import Options, mirrors_of, recognise, refuse_needless_split
from mamltheory.fewshot.formats.common import SPLITS, in_memory, no_progress
from mamltheory.fewshot.formats.prepared import IMAGES, LABELS, UNFINISHED, room_in, write_prepared
from mamltheory.fewshot.formats.tiered import NPZ_FORMAT
from mamltheory.fewshot.glyphs import contact_sheet, glyph_data
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.inspection import Overlap, channel_order, copies, image_hashes, overlaps

from ..plotting import figure, save_figure
from ..requirements import require
from ..runs import image_stage, warn, without_paths
from ..settings import ExperimentSettings, shares_of
from .counts import fitting_defaults
from .loading import describe_copies
from .report import Report, channel_line, mirror_line, size_lines, storage_lines
from .settings import Data, Glyphs

USUAL_SIZE: int = ExperimentSettings.image_size
"""The side at which images of several sizes are read where no other is given."""


def check_data(settings: Data) -> int:
    """Print the report, draw the contact sheet and prepare the data on request.

    Encoded images need N·H·W·3 bytes of memory; with --prepare they are written to their file one by one.

    Args:
        settings: The settings.

    Returns:
        The exit code 0.

    Raises:
        DataError: The data are damaged, incomplete or not split by class; the report is printed first.
    """
    if settings.prepare is not None:
        claim_folder(settings.prepare)
    report = read_splits(settings)
    for line in (*size_lines(report), *storage_lines(report)):
        print(printable(line))
    if report.splits:
        draw_splits(report.splits, settings)
    if report.problems:
        raise DataError("; ".join(dict.fromkeys(report.problems)))
    data = report.complete()
    print(printable(channel_line(channel_order(data.train), report)))
    print(mirror_line(report))
    check_images(report, settings.path)
    for line in fitting_defaults(data):
        print(printable(f"{'small':10} {line}"))
    if settings.prepare is not None:
        write_prepared_data(data, settings, settings.prepare)
    return 0


def read_splits(settings: Data) -> Report:
    """The splits that can be read, and the problems of the others."""
    if embedded := embedded_count(settings.path):
        _refuse_as_stored(settings, "embedded images")
        with image_stage(f"draw {settings.path}", embedded) as advance:
            sizes: dict[str, Any] = {"image_size": settings.image_size, "split": shares_of(settings.split)}
            sizes["mirrors"] = settings.mirrors
            data = load_data(settings.path, **sizes, advance=advance, notice=warn)
        drawn = {name: getattr(data, name) for name in SPLITS}
        return Report(
            "embedded images", settings.path, drawn, [], None, False, lambda: data, mirrors=data.mirrors
        )
    layout, folder = recognise(Path(settings.path))
    if layout is not NPZ_FORMAT:
        _refuse_as_stored(settings, layout.name)
    mirrors = mirrors_of(layout, folder, settings.mirrors)
    splits: dict[str, ImageSplit] = {}
    problems: list[str] = []
    left_out: list[str] = []
    refuse_needless_split(layout, folder, options_of(settings, no_progress, left_out))
    for split in SPLITS:
        if layout.find(folder, split) is None:
            problems.append(f"{folder}: {split} is missing; expected {layout.layout}: add its files")
            continue
        try:
            with image_stage(f"read {split}") as advance:
                splits[split] = layout.load(folder, split, options_of(settings, advance, left_out))
        except ImageSizesError as error:
            if settings.prepare is None:
                print(
                    printable(
                        f"{'sizes':10} {error}; read at {USUAL_SIZE} × {USUAL_SIZE}, as by other commands"
                    )
                )
                return read_splits(dataclasses.replace(settings, image_size=USUAL_SIZE))
            problems.append(str(error))
        except DataError as error:
            problems.append(str(error))
    name, photographs = f"{layout.name} ({layout.layout})", layout.mirrors(folder)
    whole = partial(complete, layout, folder, splits, mirrors)
    to_rgb = not settings.as_stored if layout is NPZ_FORMAT else None
    public = layout.published(folder)
    return Report(name, str(folder), splits, problems, public, photographs, whole, to_rgb, left_out, mirrors)


def _refuse_as_stored(settings: Data, found: str) -> None:
    message = f"--as-stored is for tieredImageNet arrays, and {settings.path} holds {found}: drop the flag"
    require(not settings.as_stored, message)


def options_of(settings: Data, advance: Callable[[int], None], left_out: list[str]) -> Options:
    """Options of the reader; with --prepare it writes into files at once. Files that it skips go to ``left_out``."""
    allocate = in_memory if settings.prepare is None else partial(room_in, settings.prepare)
    shares = shares_of(settings.split)
    return Options(
        settings.image_size,
        settings.as_stored,
        allocate,
        advance,
        shares=shares,
        share_seed=settings.split_seed,
        notice=left_out.append,
    )


def check_images(report: Report, path: str) -> None:
    """Compare all images; raises DataError if classes in different splits are the same."""
    total = sum(map(len, report.splits.values()))
    with image_stage("compare images", total) as advance:
        hashes = {name: image_hashes(split, advance) for name, split in report.splits.items()}
    for name, split in report.splits.items():
        found = copies(split, hashes[name])
        if found.worst is not None:
            print(printable(f"{'copies':10} {name}: {describe_copies(found)}"))
    shared = overlaps(report.splits, hashes)
    same = [overlap for overlap in shared if overlap.same_class]
    if same:
        raise DataError(
            f"{path}: {describe_overlap(same[0])}, and {len(same) - 1} more such pairs: they are one class under two "
            "names. Few-shot classes must be new at test time; use a data set split by class"
        )
    count = sum(overlap.images for overlap in shared)
    worst = f" (most: {describe_overlap(shared[0])})" if shared else ""
    line = f"{'shared':10} {count} identical images in two splits{worst}: no class is in two of them"
    print(printable(line))


def describe_overlap(overlap: Overlap) -> str:
    """Two classes and the number of their identical images."""
    (first, a), (second, b) = overlap.first, overlap.second
    images = "1 image" if overlap.images == 1 else f"{overlap.images} images"
    return f"{images} of {first} class {a!r} and {second} class {b!r} are identical ({overlap.share:.0%})"


def draw_splits(splits: Mapping[str, ImageSplit], settings: Data) -> None:
    """Draw contact sheets of all splits, with evenly spaced classes and their first samples."""
    rows = max(min(settings.classes, len(split.class_names)) for split in splits.values())
    height = 0.8 + 1.45 * rows / settings.samples
    with figure("page", height, columns=len(splits)) as (drawing, axes):
        drawing.suptitle(
            f"{printable(Path(settings.path).name)}: the first images of some classes, a class a row",
            parse_math=False,
        )
        names = {}
        for panel, (name, split) in zip(axes[0], splits.items(), strict=True):
            chosen = some_classes(split, settings.classes, settings.samples)
            names[name] = chosen.class_names
            step, count = chosen.images.shape[1] + 2, len(chosen.class_names)
            panel.imshow(contact_sheet(chosen, count, settings.samples), interpolation="nearest")
            # A dollar sign in a name does not begin mathematics.
            words = [class_label(each) for each in chosen.class_names]
            panel.set_yticks([step / 2 + i * step for i in range(count)], words, parse_math=False)
            panel.tick_params(length=0, labelsize=5)
            panel.set_xticks([])
            panel.set_title(f"{name}: {count} of {len(split.class_names)} classes")
            panel.spines[:].set_visible(False)
            panel.grid(False)
        paths = save_figure(
            drawing, "contact_sheet", {"classes": names}, settings.out, without_paths(settings)
        )
    print(f"{'sheet':10} {paths[0]} (and .pdf, .json)")


def some_classes(split: ImageSplit, classes: int, samples: int) -> ImageSplit:
    """Evenly spaced classes of a split, each with its first images."""
    count = min(classes, len(split.class_names))
    chosen = np.unique(np.linspace(0, len(split.class_names) - 1, count).round().astype(np.int64))
    rows = [split.members[c][:samples] for c in chosen]
    labels = np.repeat(np.arange(len(chosen)), [len(each) for each in rows])
    images = np.ascontiguousarray(split.images[np.concatenate(rows)])
    return ImageSplit(images, labels.astype(np.int64), tuple(split.class_names[c] for c in chosen))


def class_label(class_name: str) -> str:
    """A class name on short lines, as the label of a row of images."""
    return "\n".join(textwrap.wrap(printable(class_name), 14, max_lines=3, placeholder=" …"))


def claim_folder(folder: Path) -> None:
    """Make the folder for prepared data; raises ConfigurationError if it holds files other than prepared ones."""
    unfinished = {pattern.format(split) for pattern in (IMAGES, LABELS) for split in SPLITS} | {UNFINISHED}
    free = not folder.exists() or (folder.is_dir() and {each.name for each in folder.iterdir()} <= unfinished)
    require(free, f"{folder} is in use: name a new folder with --prepare")
    folder.mkdir(parents=True, exist_ok=True)


def write_prepared_data(data: ImageData, settings: Data, folder: Path) -> None:
    """Write the data in the layout that is memory-mapped."""
    with image_stage("prepare") as advance:
        write_prepared(data, folder, options_of(settings, advance, []))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(printable(f"{'prepared':10} {folder} ({size / 1e9:.2f} GB): use --data {folder}"))


PANEL = 4.7
"""Width of the sheet in inches; the names of the classes take the rest of the page."""


def draw_glyphs(settings: Glyphs) -> int:
    """Draw the contact sheet of the embedded images; returns 0."""
    counts: dict[str, Any] = {f"{split}_classes": 2 for split in ("train", "val", "test")}
    counts[f"{settings.split}_classes"] = settings.classes
    size, samples = settings.image_size, settings.samples
    data = glyph_data(size, samples_per_class=samples, seed=settings.seed, **counts)
    draw_sheet(getattr(data, settings.split), settings)
    return 0


def draw_sheet(split: ImageSplit, settings: Glyphs) -> None:
    """Draw a row with a label for each class, and a column for each sample."""
    rows = len(split.class_names)
    step = settings.image_size + 2
    with figure("page", PANEL * rows / settings.samples + 0.7) as (drawing, axes):
        panel = axes[0, 0]
        panel.imshow(contact_sheet(split, rows, settings.samples), interpolation="nearest")
        panel.set_yticks([step / 2 + i * step for i in range(rows)], map(character_label, split.class_names))
        panel.tick_params(length=0)
        panel.set_xticks([])
        panel.set_title(
            f"Embedded few-shot images, {settings.split} scripts, seed {settings.seed}: a class a row"
        )
        panel.spines[:].set_visible(False)
        panel.grid(False)
        name, data = f"glyphs_{settings.split}", {"classes": split.class_names}
        paths = save_figure(drawing, name, data, settings.out, without_paths(settings), settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")


def character_label(class_name: str) -> str:
    """A character's code and name on short lines, as the label of a row."""
    code, _, name = class_name.partition(" ")
    return "\n".join([code, *textwrap.wrap(name.capitalize(), 20)])
