"""Image data for few-shot learning by name or by path."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats import Format, Options, recognise
from mamltheory.fewshot.formats.common import SPLITS, unwatched, warned
from mamltheory.fewshot.formats.folders import FLAT_FORMAT
from mamltheory.fewshot.glyphs import GLYPH_SETS, named_glyphs
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics

__all__ = ["ImageData", "ImageSplit", "complete", "load_data", "read_data"]


def load_data(
    source: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    tiered_bgr: bool = True,
    advance: Callable[[int], None] = unwatched,
    split: Sequence[int] | None = None,
    split_seed: int = 0,
    notice: Callable[[str], None] = warned,
) -> ImageData:
    """The embedded characters for "glyphs" and "glyphs-mini", or a data set on disk, recognised by its layout.

    A path must be a folder in one of the layouts of :data:`mamltheory.fewshot.formats.FORMATS`. `image_size`
    is the side of the square images (None: as stored; 32 for glyphs, 84 for glyphs-mini). `seed` draws the
    glyph classes and images and means nothing for data on disk. `tiered_bgr`: the published tieredImageNet
    arrays hold blue first; False for a corrected copy. `advance(n)` is called when n more images are drawn,
    decoded or resized. `split`: how many of the classes go to training, validation and test, as (60, 20, 20),
    for folders of classes without splits; `split_seed` draws them. `notice(text)` is called with what was left
    out (a warning of Python, unless given).

    Encoded images come out upright, 8 bits a channel, on white where they are transparent.

    Memory: arrays that lie uncompressed in their files, at the size asked for, are mapped and take none;
    encoded or resized images take N·H·W·3 bytes, once. Prepare such data (``experiments data --prepare``) to
    map them too. Raises DataError when the folder is missing, of no known layout, damaged, or not split by
    class.
    """
    if image_size is not None and image_size < 1:
        raise DataError(
            f"image_size is {image_size}: give a positive number of pixels, or None to keep the stored size"
        )
    if str(source) in GLYPH_SETS:
        if split is not None:
            raise DataError(f"{source} has splits of its own: leave the split out")
        return named_glyphs(str(source), image_size, seed, advance)
    shares = None if split is None else tuple(split)
    own = {"advance": advance, "shares": shares, "share_seed": split_seed, "notice": notice}
    return read_data(Path(source), Options(image_size, as_stored=not tiered_bgr, **own))


def read_data(path: Path, options: Options) -> ImageData:
    """A data set on disk; see :func:`load_data`, and :class:`Options` for where the images go."""
    layout, folder = recognise(path)
    refuse_needless_split(layout, folder, options)
    missing = [split for split in SPLITS if split not in layout.present(folder)]
    if missing:
        raise DataError(
            f"{folder} holds {layout.name}, of which {', '.join(missing)} is missing: expected {layout.layout}"
        )
    return complete(layout, folder, {split: layout.load(folder, split, options) for split in SPLITS})


def refuse_needless_split(layout: Format, folder: Path, options: Options) -> None:
    """Raise DataError when the options split data that are split already."""
    if options.shares is not None and layout is not FLAT_FORMAT:
        told = "/".join(map(str, options.shares))
        raise DataError(f"{folder} holds {layout.name}, with splits of its own: leave out --split {told}")


def complete(layout: Format, folder: Path, splits: Mapping[str, ImageSplit]) -> ImageData:
    """The splits of a data set with its name and statistics; DataError when they share a class or differ in
    size.
    """
    mean, std = layout.statistics(folder) or channel_statistics(splits["train"])
    return ImageData(layout.title(folder), **splits, mean=mean, std=std, mirrors=layout.mirrors(folder))
