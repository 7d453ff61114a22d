"""Image data for few-shot learning by name or by path."""

from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats import FORMATS, Options
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.images import ImageData, ImageSplit

__all__ = ["ImageData", "ImageSplit", "load_data"]


def load_data(
    source: str | Path, *, image_size: int | None = None, seed: int = 0, tiered_bgr: bool = True
) -> ImageData:
    """The embedded characters for "glyphs", or a data set on disk, recognised by its layout.

    A path must be a folder in one of the layouts of :data:`mamltheory.fewshot.formats.FORMATS`. `image_size`
    is the side of the square images (None: as stored, 32 for glyphs). `seed` draws the glyph classes and
    images and means nothing for data on disk. `tiered_bgr`: the published tieredImageNet arrays hold blue
    first; False for a corrected copy.

    Raises DataError when the folder is missing, of no known layout, damaged, or not split by class.
    """
    if image_size is not None and image_size < 1:
        raise DataError(
            f"image_size is {image_size}: give a positive number of pixels, or None to keep the stored size"
        )
    if str(source) == "glyphs":
        return glyph_data(image_size=image_size or 32, seed=seed)
    path = Path(source)
    if not path.is_dir():
        raise DataError(
            f"there is no folder {path}: give the path of a data set, or glyphs for the embedded one"
        )
    for layout in FORMATS:
        if layout.matches(path):
            return layout.read(path, Options(image_size, tiered_bgr))
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    known = "; ".join(f"{layout.name}: {layout.layout}" for layout in FORMATS)
    raise DataError(f"{path} has no known layout (it holds {found}). Known are {known}")
