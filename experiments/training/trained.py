"""A finished training in its run folder: the network, and the images that it expects."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mamltheory.errors import CheckpointError, DataError, GenotypeError
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.training_state import Inputs, inputs_of, load_weights, recorded_inputs, same_images
from mamltheory.nas.genotype import Genotype
from mamltheory.runtime.checkpoint import Checkpoint, check_state, load_state

from ..config import read_config, settings_from
from ..data.loading import data_of, is_without_splits
from ..genotypes import genotype_from
from ..requirements import require
from ..runs import continue_with
from .settings import Train
from .train import TrainingContent, new_network


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, the settings of its training, and its cell (None for ResNet-12)."""

    settings: Train
    genotype: Genotype | None
    network: torch.nn.Module
    inputs: Inputs
    state: Mapping[str, Any]
    """The numbers that were saved with the weights."""

    def data(self, place: str | None = None) -> ImageData:
        """The images of the training, or those at another place, with the statistics of the training.

        Args:
            place: Name or folder; None for the place that the training read.

        Returns:
            The images.

        Raises:
            DataError: The training images are others, or the data cannot be read.
        """
        data = self._read(place)
        if not same_images(self.state, data):
            raise DataError(
                f"the network was trained on {self.settings.data}, and {place} holds other training images: name the "
                "same data set with --data"
            )
        expected = self.inputs
        return dataclasses.replace(data, mean=expected.mean, std=expected.std, mirrors=expected.mirrors)

    def _read(self, place: str | None) -> ImageData:
        if place is None:
            try:
                return data_of(self.settings)
            except DataError as error:
                raise DataError(
                    f"{self.settings.out} was trained on the images in {self.settings.data}, which cannot be read "
                    f"from here ({error}): name their folder with --data"
                ) from None
        split = self.settings.split if is_without_splits(place) else None
        return data_of(dataclasses.replace(self.settings, data=place, split=split, mirrors=None))


def read_training(folder: Path) -> Trained:
    """The finished training in a run folder; raises ConfigurationError for other folders, else CheckpointError."""
    require(
        (folder / "run.json").is_file(), f"{folder} is no run folder: train first, or name another folder"
    )
    settings = dataclasses.replace(settings_from(Train, read_config(folder, "train")), out=folder)
    checkpoint = load_state(folder / "state", report=print)
    if checkpoint is not None:
        check_state(checkpoint, TrainingContent)
    state: Mapping[str, Any] = {"epoch": 0} if checkpoint is None else checkpoint.state
    if checkpoint is None or state["epoch"] < settings.epochs:
        raise CheckpointError(
            f"{folder} holds {state['epoch']} of {settings.epochs} epochs: finish it with "
            f"{continue_with('train', settings)}"
        )
    genotype = saved_genotype(checkpoint)
    if (genotype is None) != (settings.network == "resnet12"):
        raise CheckpointError(f"{checkpoint.path} does not hold a network of the kind that {folder} trains")
    inputs = _inputs(state, settings)
    network = new_network(settings, genotype, inputs.classes)
    load_weights(network, checkpoint.tensors)
    return Trained(settings, genotype, network, inputs, checkpoint.state)


def saved_genotype(checkpoint: Checkpoint) -> Genotype | None:
    """The cell of a saved training, None for ResNet-12; raises CheckpointError if the state holds neither."""
    saved: Any = checkpoint.state["genotype"]
    try:
        return None if saved is None else genotype_from(saved)
    except GenotypeError as error:
        raise CheckpointError(f"{checkpoint.path} holds no genotype: {error}") from None


def _inputs(state: Mapping[str, Any], settings: Train) -> Inputs:
    if "inputs" in state:
        return recorded_inputs(state["inputs"])
    lacking = f"{settings.out} does not say what images its network expects, as trainings of today do"
    try:
        data = data_of(settings)
    except DataError as error:
        raise DataError(f"{lacking}, and the data that it was trained on are not there: {error}") from None
    if not same_images(state, data):
        raise DataError(
            f"{lacking}, and {settings.data} holds other images than it was trained on: train again"
        )
    return inputs_of(data)
