"""The file of a trained network: weights as safetensors, and in its header all that is needed to build it again."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import nn

from mamltheory.errors import CheckpointError, ConfigurationError, MamlTheoryError, UnsupportedModelError
from mamltheory.fewshot.resnet import ResNet12, resnet12
from mamltheory.fewshot.training_state import Inputs, load_weights, recorded_inputs
from mamltheory.files import reason
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import Network, NetworkSettings, derived_network
from mamltheory.nas.space import PAPER, Space
from mamltheory.strict_json import misfit, parse

HEADER, FORMAT = "mamltheory", 1
NETWORK_FILE = "network.safetensors"
"""The file of a trained network in the folder of its training."""


class _Header(TypedDict):
    """What a file says of its network."""

    format: Annotated[int, 1]
    genotype: dict[str, object] | None
    size: dict[str, object] | None
    inputs: object
    classes: list[str]


def network_bytes(network: nn.Module, inputs: Inputs, classes: Sequence[str]) -> bytes:
    """The file of a network of cells or ResNet-12; UnsupportedModelError is raised for others."""
    if not isinstance(network, Network | ResNet12):
        raise UnsupportedModelError(
            f"a {type(network).__name__} cannot be built again from a file: save its state_dict with torch"
        )
    cells = network if isinstance(network, Network) else None
    header: dict[str, Any] = {
        "format": FORMAT,
        "genotype": None if cells is None else cells.candidates.genotype().to_json(),
        "size": None if cells is None else dataclasses.asdict(cells.settings),
        "inputs": inputs.record(),
        "classes": list(classes),
    }
    weights = {
        name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()
    }
    return serialised(weights, {HEADER: json.dumps(header)})


def read_network(file: Path, space: Space = PAPER) -> tuple[nn.Module, Inputs, list[str]]:
    """The network in a file, the images that it expects, and its classes; CheckpointError for any other file."""
    try:
        with safe_open(file, "pt") as opened:
            header: Any = parse((opened.metadata() or {}).get(HEADER, "{}").encode())
            weights = {f"network/{name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
    if wrong := misfit(header, _Header, "its header"):
        raise CheckpointError(f"{file} holds no network of this package ({wrong}): train again")
    try:
        network, inputs = _network_of(header, space), recorded_inputs(header["inputs"])
        load_weights(network, weights)
    except (MamlTheoryError, TypeError) as error:
        raise CheckpointError(f"{file} holds no network of this package: {error}") from None
    return network, inputs, header["classes"]


def _network_of(header: Any, space: Space) -> nn.Module:
    if header["genotype"] is None or header["size"] is None:
        return resnet12(len(header["classes"]), 0)
    genotype = Genotype.from_json(header["genotype"], space)
    return derived_network(genotype, NetworkSettings(**header["size"]), 0)


def network_path(path: object) -> Path:
    """The file of a trained network.

    Args:
        path: the file, or the folder of a training.

    Returns:
        The file.

    Raises:
        CheckpointError: there is none; the message says what is there.
    """
    if not isinstance(path, str | Path):
        raise CheckpointError(f"the path is a {type(path).__name__}: expected a run folder or a file")
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        raise CheckpointError(f"{path} is a JSON file and holds no weights: {_train_first(path)}")
    file = path / NETWORK_FILE if path.is_dir() else path
    if file.is_file():
        return file
    if (path / "train" / NETWORK_FILE).is_file():
        raise CheckpointError(f"{path} is the folder of a search: load {path / 'train'}, which it trained")
    if (path / "search.json").is_file():
        raise CheckpointError(
            f"{path} is the folder of a search, which holds cells without weights: {_train_first(path)}"
        )
    raise CheckpointError(
        f"there is no {file}: name the folder of a finished training, or a saved network; a training of an earlier "
        "version writes that file when its command is given again"
    )


def _train_first(path: Path) -> str:
    return (
        f"train a genotype first, as in mamltheory.fewshot.train(data, {str(path)!r}), and load what it saved"
    )


def write_network(path: object, content: bytes) -> Path:
    """Write the file of a network, whole or not at all, over an older network but over no other file.

    Args:
        path: the file, or a folder, in which it is called ``network.safetensors``.
        content: its bytes.

    Returns:
        The file.

    Raises:
        ConfigurationError: something other than a path, another file, or a place that cannot be written.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"the path is a {type(path).__name__}: expected a file or a folder")
    path = Path(path)
    file = path / NETWORK_FILE if path.is_dir() else path
    if file.exists() and not _is_network(file):
        raise ConfigurationError(
            f"{file} is there already and holds no network of this package: remove it, or name another file"
        )
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    except OSError as error:
        raise ConfigurationError(f"cannot write {file}: {reason(error)}; name another file") from None
    return file


def _is_network(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            return HEADER in (opened.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False
