"""Load image data for few-shot learning, by name or by path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mamltheory.arguments import check_kind
from mamltheory.errors import DataError, ImageSizesError
from mamltheory.fewshot.formats import mirrors_of, recognise, refuse_missing_splits, refuse_needless_split
from mamltheory.fewshot.formats.common import SPLITS, Format, Options, no_progress, python_warning
from mamltheory.fewshot.glyphs import GLYPH_SETS, named_glyphs
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics
from mamltheory.fewshot.pictures import PICTURE_SETS, picture_data
from mamltheory.fewshot.places import check_embedded, shares_of

MOST_PIXELS = 2**14
"""The longest side of images."""
Data = ImageData | str | Path
"""Images, or the name of an embedded data set, or a folder."""


def data_from(data: Data, image_size: int | None = None) -> ImageData:
    """The images themselves, or those of a name or folder as :func:`load_data` reads them."""
    if isinstance(data, ImageData):
        return data
    if not isinstance(data, str | Path):
        raise DataError(
            f"the data are a {type(data).__name__}: expected the name of an embedded data set, a folder, or what "
            "load_data returns"
        )
    return load_data(data, image_size=image_size)


def load_data(
    source: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    tiered_bgr: bool = True,
    advance: Callable[[int], None] = no_progress,
    split: str | Sequence[int] | None = None,
    split_seed: int = 0,
    notice: Callable[[str], None] | None = None,
    mirrors: bool | None = None,
) -> ImageData:
    """Return an embedded data set, or one on disk, whose layout is recognised.

    Encoded images come out upright, with 8 bits a channel, on white where they are transparent.

    Memory: arrays that are stored uncompressed, at the size asked for, are mapped and take none. Encoded or resized
    images take N·H·W·3 bytes once; prepare such data (``experiments data --prepare``) to map them too.

    Args:
        source: "glyphs", "glyphs-mini", "pictures" (which needs scikit-image), or the folder of a data set in one of
            the layouts that the page of the commands lists.
        image_size: side of the square images in pixels; None keeps the stored size (32 for glyphs and pictures, 84 for
            glyphs-mini).
        seed: draws the embedded classes and images; data on disk do not depend on it.
        tiered_bgr: the published tieredImageNet arrays store the channels as BGR; False for a corrected copy.
        advance: is called with n when n more images are drawn, decoded or resized.
        split: how many of the classes go to training, validation and test, as "60/20/20" or (60, 20, 20), for folders
            of classes without splits; ConfigurationError is raised for anything else.
        split_seed: draws these classes.
        notice: is called with a text about skipped files, or about a folder with the name of an embedded set; by
            default all of them become one Python warning.
        mirrors: whether a mirrored image shows the same class: False for folders of characters; None for what the data
            say, which of image folders is True.

    Returns:
        The images. DataError is raised when the folder is missing, of no known layout, damaged, or not split by class,
        when the pictures are not installed, and when ``mirrors`` contradicts the data.

    Example:
        See :func:`mamltheory.fewshot.tasks_from`.
    """
    _check_source(source, image_size)
    check_kind(bool, mirrors=mirrors)
    shares, notes = shares_of(split), list[str]()
    options = Options(image_size, not tiered_bgr, advance=advance, notice=notice or notes.append)
    options = replace(options, shares=shares, share_seed=split_seed, mirrors=mirrors)
    if embedded_count(str(source)):
        check_embedded(str(source), split is not None, mirrors)
        data = _embedded_data(str(source), options, seed)
    else:
        data = read_data(Path(source), options)
    if notes:
        python_warning(f"{source}: {'; '.join(notes)}")
    return data


def _check_source(source: object, image_size: object) -> None:
    if not isinstance(source, str | Path):
        raise DataError(f"the source is a {type(source).__name__}: expected a name or a folder")
    whole = (
        isinstance(image_size, int) and not isinstance(image_size, bool) and 1 <= image_size <= MOST_PIXELS
    )
    if image_size is not None and not whole:
        raise DataError(
            f"image_size is {image_size!r:.80}: give a number of pixels from 1 to {MOST_PIXELS}, or None to keep the "
            "stored size"
        )


def embedded_count(source: str) -> int | None:
    """Number of images of an embedded data set in all splits; None if none has this name."""
    sizes = (GLYPH_SETS | PICTURE_SETS).get(source)
    if sizes is None:
        return None
    return sizes["samples_per_class"] * sum(sizes[f"{split}_classes"] for split in SPLITS)


def _embedded_data(name: str, options: Options, seed: int) -> ImageData:
    if Path(name).is_dir():
        options.notice(
            f"{name} are the embedded images; to read the folder of this name, give its absolute path"
        )
    if name in GLYPH_SETS:
        return named_glyphs(name, options.image_size, seed, options.advance)
    size = {} if options.image_size is None else {"image_size": options.image_size}
    return picture_data(**PICTURE_SETS[name] | size, seed=seed, advance=options.advance)


def read_data(path: Path, options: Options) -> ImageData:
    """The data set in a folder; raises DataError as :func:`load_data` does."""
    layout, folder = recognise(path)
    refuse_needless_split(layout, folder, options)
    refuse_missing_splits(layout, folder)
    mirrors = mirrors_of(layout, folder, options.mirrors)  # before any image is read
    splits, problems = dict[str, ImageSplit](), list[DataError]()
    for split in SPLITS:
        try:
            splits[split] = layout.load(folder, split, options)
        except ImageSizesError:
            raise  # of every split, and said once
        except DataError as error:
            problems.append(error)
    if problems:
        raise DataError("; ".join(dict.fromkeys(map(str, problems))))
    return complete(layout, folder, splits, mirrors)


def complete(layout: Format, folder: Path, splits: Mapping[str, ImageSplit], mirrors: bool) -> ImageData:
    """The splits with the name and statistics of the data set; DataError if they share a class or differ in size."""
    mean, std = layout.statistics(folder) or channel_statistics(splits["train"])
    return ImageData(layout.title(folder), **splits, mean=mean, std=std, mirrors=mirrors)
