"""``doctor``: versions, device with its reason, threads and data found."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from mamltheory.errors import DataError, printable
from mamltheory.fewshot.formats import recognise
from mamltheory.fewshot.formats.common import SPLITS
from mamltheory.products import product_route
from mamltheory.runtime.device import choose_device, environment

from .settings import Doctor


def print_environment(settings: Doctor) -> int:
    """Print versions, device, threads and data; returns 0. Raises DataError for a missing data folder."""
    device = choose_device(settings.device)
    rows = environment(device.device, product_route()) | {"device reason": device.reason}
    rows |= dict(_data(settings.data))
    for name, value in rows.items():
        print(printable(f"{name:14} {'not available' if value is None else value}"))
    return 0


def _data(folder: Path | None) -> Iterator[tuple[str, str]]:
    yield "data: glyphs", "embedded, always there"
    yield "data: pictures", "embedded" if find_spec("skimage") else "needs pip install 'mamltheory[pictures]'"
    if folder is None:
        return
    if not folder.is_dir():
        raise DataError(f"there is no data folder {folder}: expected the folder of mini- or tieredImageNet")
    yield f"data: {folder.name}", _found(folder)
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    yield "  it holds", shown or "nothing"


def _found(folder: Path) -> str:
    """The layout and the splits of a folder, from the names of its files alone."""
    try:
        layout, place = recognise(folder)
    except DataError as error:
        return str(error).replace(f"{folder} ", "", 1).split(" (")[0]
    present = layout.present(place)
    missing = [split for split in SPLITS if split not in present]
    inside = "" if place == folder else f" in {place.name}"
    lack = f", without {', '.join(missing)}" if missing else ""
    return f"{layout.name}{inside}: {', '.join(present)}{lack}"
