"""The lines of the report on a data set."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.inspection import PUBLISHED, ChannelOrder


@dataclass(frozen=True)
class Report:
    """A data set: layout, folder, the splits that could be read, and the problems of the others."""

    layout: str
    place: str
    splits: Mapping[str, ImageSplit]
    problems: list[str]
    published: str | None
    """The public set with this layout; None for a general layout."""
    photographs: bool
    complete: Callable[[], ImageData]
    """The whole data set; to be called if there are no problems."""
    reversed_channels: bool | None = None
    """Whether BGR was converted to RGB; None for layouts that keep the order of the channels."""
    left_out: list[str] = field(default_factory=list)
    """Files that were not read, by split and reason."""
    mirrors: bool = True
    """Whether a mirrored image shows the same class."""


def size_lines(report: Report) -> Iterator[str]:
    """Lines on the layout, and for each split on classes and images against those of the public set."""
    yield f"{'layout':10} {report.layout}"
    yield f"{'folder':10} {report.place}"
    name = _public_set(report)
    expected = PUBLISHED.get(name or "", {})
    for split, content in report.splits.items():
        counts = np.bincount(content.labels)
        each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        line = f"{split:10} {len(counts)} classes, {len(content)} images ({each} a class)"
        if split in expected:
            same = expected[split] == (len(counts), len(content))
            classes, images = expected[split]
            line += f", as in {name}" if same else f"; {name} has {classes} classes, {images} images"
        yield line
    for line in report.left_out:
        yield f"{'left out':10} {line}"
    if not expected and report.photographs and report.splits:
        yield f"{'expected':10} nothing: no public set is known to have these classes ({', '.join(PUBLISHED)})"


def _public_set(report: Report) -> str | None:
    """The public set with the same numbers of classes and this image size; by default that of the layout."""
    found = [
        name
        for name, expected in PUBLISHED.items()
        if all(len(content.class_names) == expected[split][0] for split, content in report.splits.items())
    ]
    if not report.splits or report.published in found:
        return report.published
    small = any(content.images.shape[1] <= 32 for content in report.splits.values())
    of_this_size = (name for name in found if small == (name in ("CIFAR-FS", "FC100")))
    return next(of_this_size, report.published)


def storage_lines(report: Report) -> Iterator[str]:
    """Lines on the size of the images, and on memory: mapped files or arrays."""
    for shape in sorted({content.images.shape[1:3] for content in report.splits.values()}):
        yield f"{'images':10} {shape[1]} × {shape[0]} pixels"
    loaded = [content.images.nbytes for content in report.splits.values() if not _mapped(content)]
    if loaded:
        made = "decoded" if report.photographs else "drawn"
        yield (
            f"{'memory':10} {sum(loaded) / 1e9:.2f} GB, {made} again by every command: --prepare FOLDER writes "
            "files that are memory-mapped"
        )
    elif report.splits:
        yield f"{'memory':10} none: the files of the images are memory-mapped"


def _mapped(content: ImageSplit) -> bool:
    return isinstance(content.images, np.memmap)


def channel_line(order: ChannelOrder, report: Report) -> str:
    """The estimated order of the channels, with its evidence."""
    means = ", ".join(f"{value:.1f}" for value in order.means)
    evidence = f"means {means}; first − third {order.difference:+.1f} ± {order.error:.1f} over classes"
    verdict = f"{order.verdict} ({evidence}; photographs are warmer than grey: ImageNet has +15.9)"
    if not (report.photographs and report.mirrors):
        verdict = f"of drawn images, of any colour ({evidence})"
    elif order.verdict == "blue first":
        verdict += f": {_advice(report)}"
    return f"{'channels':10} {verdict}"


def mirror_line(report: Report) -> str:
    """Whether trainings mirror the images, and the flag for folders of characters, which look like any other."""
    advice = "yes; --no-mirrors if these are characters" if report.photographs else "yes"
    return f"{'mirrors':10} mirrored images in training: {advice if report.mirrors else 'no'}"


def _advice(report: Report) -> str:
    """The advice for photographs in BGR order."""
    if report.reversed_channels is None:
        return "this layout keeps the order of the channels, so convert the files from BGR to RGB"
    if not report.reversed_channels:
        return "without --as-stored they are converted to RGB"
    return (
        "these arrays were in RGB order before the conversion, unlike the published ones. Write them unchanged "
        f"with `data check {report.place} --as-stored --prepare READY`, and give --data READY to every command"
    )
