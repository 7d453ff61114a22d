"""The file of a trained network: weights as safetensors, and in its header all that is needed to build it again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import nn

from mamltheory.errors import CheckpointError, MamlTheoryError, UnsupportedModelError
from mamltheory.fewshot.resnet import ResNet12, resnet12
from mamltheory.fewshot.training_state import Inputs, load_weights, recorded_inputs
from mamltheory.files import reason
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import Network, NetworkSettings, derived_network
from mamltheory.nas.space import PAPER, Space
from mamltheory.strict_json import misfit, parse

HEADER, FORMAT = "mamltheory", 1


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
