"""Train, evaluate, save and load networks for few-shot learning."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from mamltheory.arguments import (
    check_choice,
    check_function,
    check_kind,
    check_positive,
    check_seed,
    check_whole,
    checked_device,
)
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.augment import Augmentation
from mamltheory.fewshot.counts import TaskCounts, shortage_of
from mamltheory.fewshot.datasets import Data, data_from
from mamltheory.fewshot.evaluation import (
    Evaluation,
    EvaluationConfig,
    Predictions,
    batches,
    evaluate_network,
    predict,
)
from mamltheory.fewshot.given_images import Given, given_labels, images_of_side
from mamltheory.fewshot.heads import Head
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.network_file import (
    network_bytes,
    network_path,
    read_network,
    write_network,
)
from mamltheory.fewshot.resnet import resnet12
from mamltheory.fewshot.training import EpochMetrics, TrainConfig, start_training, trained_to
from mamltheory.fewshot.training_state import Inputs, inputs_of
from mamltheory.fewshot.uploads import normalise
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import Network, NetworkSettings, derived_network
from mamltheory.nas.space import PAPER, Space, checked_space
from mamltheory.notebook import shown_progress
from mamltheory.rng import derived_seed

BATCH = 256


class TrainedNetwork(nn.Module):
    """A trained network, in evaluation mode, with what is needed to use it.

    Called with images n×3×h×w as :meth:`normalised` returns them, it gives the logits of the training classes.

    Attributes:
        network: the network itself.
        inputs: the images that it expects: their size, channel means and standard deviations.
        classes: names of the training classes, in the order of the logits.

    Example:
        >>> from mamltheory.fewshot import TrainConfig, load, train
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> from mamltheory.nas import NetworkSettings, published_genotypes
        >>> data = glyph_data(16, 3, 2, 2, samples_per_class=4)
        >>> config = TrainConfig(epochs=1, batch_size=4, milestones=(), flip=False)
        >>> size = NetworkSettings(channels=2, cells=3, stem_stride=4)
        >>> network = train(data, published_genotypes()[0].genotype, config, size=size)
        >>> network.training, len(network.classes)
        (False, 3)
        >>> network.predict(data.train.images[:2]).labels.shape
        (2,)
    """

    def __init__(self, network: nn.Module, inputs: Inputs, classes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.inputs, self.classes = network, inputs, tuple(classes)
        self.eval()

    @property
    def genotype(self) -> Genotype | None:
        """The cells of the network; None for ResNet-12 and networks of a user."""
        return self.network.candidates.genotype() if isinstance(self.network, Network) else None

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters())
        what = type(self.network).__name__ if self.genotype is None else repr(self.genotype)
        side = self.inputs.image_size
        return f"TrainedNetwork({len(self.classes)} classes, images of {side}×{side}, {numbers:,} parameters, {what})"

    def _repr_html_(self) -> str:
        cells = "" if self.genotype is None else self.genotype._repr_html_()
        return f"<div>{escape(repr(self))}</div>{cells}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the training classes."""
        _check_input(x)
        return self.network(x)

    def features(self, x: Tensor) -> Tensor:
        """What the few-shot heads work on."""
        _check_input(x)
        return self.network.features(x)  # type: ignore[operator]

    def normalised(self, images: Given) -> Tensor:
        """The network's input n×3×h×w for images in any form that :meth:`predict` takes."""
        images = images_of_side(self.inputs.image_size, "images", images)
        return normalise(torch.from_numpy(np.ascontiguousarray(images)), self.inputs.mean, self.inputs.std)

    def predict(
        self,
        images: Given,
        support: Given | None = None,
        labels: Sequence[int] | Sequence[str] | np.ndarray | Tensor | None = None,
        *,
        head: Head = "logistic",
        C: float = 1.0,
        copies: int = 5,
        seed: int = 0,
    ) -> Predictions:
        """The classes of images: training classes, or new ones of which a few labelled images are given.

        Args:
            images: one or several: an array or tensor uint8 n×h×w×3 of the size that the network expects; or Pillow
                images, image files or a folder of them, which are brought to it.
            support: labelled images of new classes, likewise; None for the training classes.
            labels: their classes, whole numbers or names, at least two different ones.
            head: the classifier of new classes, see :class:`mamltheory.fewshot.EvaluationConfig`.
            C: inverse of its ℓ2 penalty.
            copies: augmented versions of every labelled image; 0 takes them as they are.
            seed: seed of the augmentation.

        Returns:
            Labels and their confidence. Labels are numbers of training classes, see :attr:`classes`, with their
            probabilities, or some of ``labels``.

        Raises:
            DataError: images of another form or size, or labels that do not fit the labelled images.
        """
        _check_heads(head, C, copies, seed)
        query, device = (
            images_of_side(self.inputs.image_size, "images", images),
            next(self.network.parameters()).device,
        )
        if support is None and labels is not None:
            raise DataError("labels are given without images: give the labelled images as well, by support")
        if support is None:
            return self._trained_classes(query, device)
        few = images_of_side(self.inputs.image_size, "support", support)
        names, numbers = np.unique(given_labels(labels, len(few)), return_inverse=True)
        found = predict(
            self.network,
            few,
            numbers,
            query,
            self.inputs.mean,
            self.inputs.std,
            head=head,
            C=C,
            copies=copies,
            augmentation=Augmentation(flip=self.inputs.mirrors),
            seed=seed,
            device=device,
        )
        return dataclasses.replace(found, labels=names[found.labels])

    def save(self, path: str | Path) -> Path:
        """Write one file that :func:`load` reads, whole or not at all; a file of another kind is kept.

        Args:
            path: the file, or a folder, in which it is called ``network.safetensors``.

        Returns:
            The file. UnsupportedModelError is raised for a network of a user, whose ``state_dict`` torch can save;
            ConfigurationError where another file is, or nothing can be written.
        """
        return write_network(path, network_bytes(self.network, self.inputs, self.classes))

    def _trained_classes(self, images: np.ndarray, device: torch.device) -> Predictions:
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                x = self.normalised(images[start : start + BATCH]).to(device)
                parts.append(self.network(x).softmax(1).max(1))
        labels = np.concatenate([part.indices.cpu().numpy() for part in parts])
        return Predictions(labels, np.concatenate([part.values.cpu().numpy() for part in parts]), True)


def train(
    data: Data,
    network: Genotype | nn.Module | str | Path,
    config: TrainConfig | None = None,
    *,
    size: NetworkSettings | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[EpochMetrics], None] | None = None,
) -> TrainedNetwork:
    """Train a network on the training classes, as RFS does (Section 6.1); for a run that can be stopped, the command.

    Args:
        data: the images.
        network: the cells to stack, the file of a genotype or the folder of a search; or a module with a method
            ``features`` and one logit per training class, which is copied.
        config: the recipe; None for the paper's 100 epochs, with mirrored images unless the data are characters.
        size: channels and number of the stacked cells; the classes are those of the data.
        image_size: side of images that are read, in pixels; None for the stored size.
        seed: seed of the weights of stacked cells, and of the training without ``config``.
        device: where to compute.
        progress: is called after every epoch; by default a terminal shows lines, and a notebook a bar.

    Returns:
        The trained network, on the device. Errors are raised as by
        :func:`mamltheory.fewshot.training.start_training`.

    Raises:
        ConfigurationError: something other than a genotype or such a module.

    Example:
        See :class:`TrainedNetwork`.
    """
    check_seed(seed)
    check_kind(TrainConfig, config=config)
    check_kind(NetworkSettings, size=size)
    check_function(progress=progress)
    data, device = data_from(data, image_size), checked_device(device)
    inputs = inputs_of(data)
    if isinstance(network, str | Path):
        network = Genotype.load(network)
    if isinstance(network, Genotype):
        stacked = dataclasses.replace(size or NetworkSettings(), classes=inputs.classes)
        network = untrained_network(network, stacked, seed)
    elif isinstance(network, nn.Module) and callable(getattr(network, "features", None)):
        network = copy.deepcopy(network)
    else:
        raise ConfigurationError(
            f"the network is a {type(network).__name__}: expected a Genotype, the file of one, or a torch.nn.Module "
            "with a method features"
        )
    state = start_training(network, data, config or TrainConfig(flip=data.mirrors, seed=seed), device)
    with shown_progress("train, epochs", state.config.epochs, quiet=progress is not None) as advance:
        for _, metrics in trained_to(state, state.config.epochs):  # which updates the network in place
            advance(note="" if metrics is None else f"loss {metrics.loss:.3f}")
            if progress is not None and metrics is not None:
                progress(metrics)
    trained = state.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return TrainedNetwork(trained, inputs, data.train.class_names)


def untrained_network(genotype: Genotype | None, size: NetworkSettings, seed: int) -> nn.Module:
    """The untrained network of a training, stacked cells or ResNet-12 for None; the seed alone decides its weights."""
    weights = derived_seed(seed, "training weights")
    return resnet12(size.classes, weights) if genotype is None else derived_network(genotype, size, weights)


def evaluate(
    network: nn.Module,
    data: Data,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    tasks: int = 1000,
    split: str = "test",
    head: Head = "logistic",
    C: float = 1.0,
    copies: int = 5,
    seed: int = 0,
    jobs: int = 1,
) -> Evaluation:
    """The accuracy of a network on few-shot tasks of unseen classes, with its 95 % interval.

    A notebook shows a bar, a terminal lines.

    Args:
        network: a trained network, or a module with a method ``features``.
        data: the images.
        ways: classes of a task.
        shots: support images per class.
        queries: query images per class.
        tasks: number of tasks.
        split: the classes: "test", "val" or "train".
        head: the classifier, see :class:`mamltheory.fewshot.EvaluationConfig`.
        C: inverse of its ℓ2 penalty.
        copies: augmented versions of every support image; 0 takes them as they are.
        seed: seed of the tasks.
        jobs: processes that fit the classifiers.

    Returns:
        The evaluation, with ``interval``, ``accuracies`` of the tasks and ``describe()``. A ConfigurationError is
        raised for a module without features, for an unknown split, and for counts for which there are too few images;
        a DataError for images of another size than the network's.

    Example:
        See :func:`mamltheory.fewshot.load`.
    """
    _check_network(network)
    check_choice(("test", "val", "train"), split=split)
    check_whole(ways=ways, shots=shots, queries=queries, tasks=tasks, jobs=jobs)
    _check_heads(head, C, copies, seed)
    inputs = network.inputs if isinstance(network, TrainedNetwork) else None
    data = data_from(data, None if inputs is None else inputs.image_size)
    config = EvaluationConfig(ways, shots, queries, tasks, copies, head, C, flip=(inputs or data).mirrors)
    return evaluate_by(network, data, config, split, seed, jobs)


def evaluate_by(
    network: nn.Module,
    data: ImageData,
    config: EvaluationConfig,
    split: str,
    seed: int,
    jobs: int = 1,
    advance: Callable[[], None] | None = None,
) -> Evaluation:
    """What :func:`evaluate` does by these settings; ``advance`` (None: shown as there) is called a batch."""
    known = network.inputs if isinstance(network, TrainedNetwork) else inputs_of(data)
    wanted, side = known.image_size, data.train.images.shape[1]
    counts = {name: getattr(config, name) for name in ("ways", "shots", "queries")}
    wrong = shortage_of(data, counts, [TaskCounts(split)])
    if side != wanted:
        raise DataError(
            f"the images have {side} pixels a side, not {wanted}: load them with image_size={wanted}"
            + (f"; and {wrong.message()}" if wrong else "")
        )
    if wrong:
        raise ConfigurationError(wrong.message())
    part, device = getattr(data, split), next(network.parameters()).device
    total = batches(part, config, seed) if advance is None else 0
    with (
        shown_progress("evaluate, batches of images", total)
        if advance is None
        else nullcontext(advance) as shown
    ):
        return evaluate_network(
            network, part, known.mean, known.std, config, seed, device=device, jobs=jobs, advance=shown
        )


def _check_heads(head: object, C: object, copies: object, seed: object) -> None:
    check_choice(get_args(Head), head=head)
    check_positive(C=C)
    check_whole(least=0, copies=copies)
    check_seed(seed)


def _check_input(x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4 or x.shape[1] != 3:
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise DataError(
            f"the input is {what}: expected normalised images, floating-point n × 3 × height × width; call predict, or "
            "normalise uint8 images n × height × width × 3 by normalised"
        )


def _check_network(network: object) -> None:
    if not isinstance(network, nn.Module) or not callable(getattr(network, "features", None)):
        raise ConfigurationError(
            f"the network is a {type(network).__name__}: expected a torch.nn.Module with a method features"
        )


def load(path: str | Path, space: Space = PAPER) -> TrainedNetwork:
    """The trained network of a run of ``train`` or ``search --method halving``, or of :meth:`TrainedNetwork.save`.

    Args:
        path: the run folder, or the file.
        space: that the cells of the network are of.

    Returns:
        The network on the CPU, in evaluation mode. CheckpointError is raised where there is none.

    Example:
        >>> import tempfile
        >>> from mamltheory.fewshot import Inputs, TrainedNetwork, evaluate, load
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> from mamltheory.nas import published_genotypes
        >>> data = glyph_data(16, 3, 2, 2, samples_per_class=4)
        >>> network = published_genotypes()[0].genotype.to_module(channels=2, cells=3, classes=3)
        >>> inputs = Inputs(16, 3, data.mean, data.std, mirrors=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = TrainedNetwork(network, inputs, data.train.class_names).save(folder)
        ...     again = load(folder)
        >>> again.genotype == published_genotypes()[0].genotype
        True
        >>> evaluate(again, data, ways=2, queries=3, tasks=4).interval.half_width < 1
        True
    """
    return TrainedNetwork(*read_network(network_path(path), checked_space(space)))
