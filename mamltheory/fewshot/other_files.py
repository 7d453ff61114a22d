"""What people have under the name of a data file when a download went wrong."""

from pathlib import Path

from mamltheory.errors import DataError


def refuse_other_files(path: Path, head: bytes) -> None:
    """Raise DataError when the first bytes are those of a web page or of a Git LFS pointer."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path} is a web page saved under the name of a data file (a download link that asked for a "
            "confirmation): open the link in a browser, or fetch the file again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from"
        )
