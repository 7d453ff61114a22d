"""The file of a genotype: its JSON, and where it is in the folder of a search."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mamltheory.errors import GenotypeError
from mamltheory.files import reason
from mamltheory.nas.space import CELL_TYPES, PAPER, Space
from mamltheory.strict_json import read_json_file

T = TypeVar("T")
GENOTYPE_FILE, MOST_GENOTYPE = "genotype.json", 2**20
"""The file in the folder of a search, and the most bytes of such a file."""


def genotype_path(path: object) -> Path:
    """The file of a genotype.

    Args:
        path: the file, or the run folder of a search.

    Returns:
        The file, which need not exist.

    Raises:
        GenotypeError: something other than a path.
    """
    if not isinstance(path, str | Path):
        raise GenotypeError(
            f"the path is a {type(path).__name__}: expected a file, or the folder of a search"
        )
    path = Path(path)
    return path / GENOTYPE_FILE if path.is_dir() else path


def genotype_content(file: Path) -> dict[str, Any]:
    """The JSON object in the file of a genotype; raises GenotypeError if there is none."""
    try:
        content = read_json_file(file, MOST_GENOTYPE)
    except OSError as error:
        raise GenotypeError(
            f"cannot read {file}: {reason(error)}; search first, or name another file"
        ) from None
    except ValueError as error:
        raise GenotypeError(f"{file} {error}: expected a genotype as the search writes it") from None
    if not isinstance(content, dict):
        raise GenotypeError(
            f"{file} holds no genotype: expected an object with the keys 'normal' and 'reduce'"
        )
    return content


def parsed_file(path: object, parse: Callable[[dict[str, Any]], T]) -> T:
    """What is made of the content of a genotype's file; raises GenotypeError, which names the file."""
    file = genotype_path(path)
    content = genotype_content(file)
    try:
        return parse(content)
    except GenotypeError as error:
        raise GenotypeError(f"{file} holds no genotype: {error}") from None


def write_content(path: object, content: Mapping[str, Any]) -> Path:
    """Write the JSON of a genotype; a file that holds anything else is kept.

    Args:
        path: the file, or a folder, in which it is called ``genotype.json``.
        content: the genotype as lists and strings.

    Returns:
        The file.

    Raises:
        GenotypeError: another file is there, or the system refuses to write.
    """
    file, text = genotype_path(path), json.dumps(content, indent=2).encode() + b"\n"
    try:
        with file.open("xb") as opened:
            opened.write(text)
    except FileExistsError:
        if genotype_content_or_none(file) != json.loads(text):
            raise GenotypeError(
                f"{file} is there already and holds something else: remove it, or name another file"
            ) from None
    except OSError as error:
        raise GenotypeError(f"cannot write {file}: {reason(error)}; name another file") from None
    return file


def genotype_content_or_none(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it holds none."""
    try:
        return genotype_content(file)
    except GenotypeError:
        return None


def check_keys(data: object, space: Space) -> None:
    """Raise GenotypeError for a key that a genotype of this space does not have."""
    if isinstance(data, str | Path):
        raise GenotypeError(
            f"{str(data)[:80]!r} is a path, and from_json takes the content of a file: read the file by Genotype.load"
        )
    if not isinstance(data, Mapping):
        return  # _cell_from_json reports it
    concatenated = [*range(2, space.nodes + 2)]  # all nodes, numbered as sources
    for key, value in data.items():
        if key in CELL_TYPES:
            continue
        if key == "space":
            if space == PAPER:
                raise GenotypeError(
                    f"it is of the space {str(value)[:80]!r}: give that space as well, by the argument space"
                )
            continue
        if key not in [f"{kind}_concat" for kind in CELL_TYPES]:
            raise GenotypeError(
                f"a genotype has no key {str(key)[:40]!r}: supported are 'normal', 'reduce' and, if they are "
                f"{concatenated}, 'normal_concat' and 'reduce_concat'"
            )
        plain = isinstance(value, list | tuple | range) and all(type(each) is int for each in value)
        if not plain or list(value) != concatenated:
            shown = str(list(value[:8])) if plain else f"a {type(value).__name__} of other content"
            raise GenotypeError(
                f"{key!r} is {shown}: the networks here concatenate all nodes, {concatenated}, and no others"
            )
