"""The settings of training, evaluation and prediction."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..requirements import require, require_at_least
from ..settings import EMBEDDED_DATA, GLYPHS_MINI, MINI, TIERED, ExperimentSettings, shares_of


@dataclass(frozen=True)
class Train(ExperimentSettings):
    """Train a network of searched cells, or ResNet-12, on the base classes, as RFS does (Section 6.1)."""

    IGNORED: ClassVar[Collection[str]] = ("compile",)
    """Settings that earlier versions recorded and this one lacks, and that changed no number."""

    network: Literal["cells", "resnet12"] = "cells"
    """A stack of the genotype's cells, or the ResNet-12 of RFS, which ignores genotype and channels."""
    genotype: Path = Path("runs/search/genotype.json")
    """The searched cell."""
    epochs: int = 100
    """Passes over the base classes."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    learning_rate: float = 0.02
    """Initial learning rate of SGD."""
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate falls by a factor of ten."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """ℓ2 penalty on the weights."""
    drop_path: float = 0.2
    """Probability of leaving out an operation at the end of training; it grows linearly from zero."""
    validate_every: int = 0
    """Epochs between measurements of the few-shot accuracy on the validation classes; 0 for none (the paper)."""
    validation_tasks: int = 200
    """Tasks of a validation: up to 5 ways, 1 shot, nearest centroid."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Number format of products and activations; weights, statistics and the loss stay in float32."""
    channels_last: bool = True
    """Keep channels together in memory: faster convolutions on CPU and GPU."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; the end of an epoch and a stop save a checkpoint as well."""
    out: Path = Path("runs/train")
    """Run folder; a stopped run continues from there."""
    tensorboard: bool = False
    """Also write the numbers of metrics.jsonl for TensorBoard, into OUT/tensorboard (the extra tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("epochs", "batch_size"))
        require_at_least(self, 2, ("validation_tasks",))
        require_at_least(self, 0, ("momentum", "weight_decay", "drop_path", "validate_every", "save_minutes"))
        positive = 0 < self.learning_rate < math.inf
        require(positive, f"learning_rate is {self.learning_rate}: expected a positive finite number")
        require(self.momentum < 1, f"momentum is {self.momentum}: expected less than 1")
        require(self.drop_path < 1, f"drop_path is {self.drop_path}: expected less than 1")
        late = [epoch for epoch in self.milestones if not 0 < epoch < self.epochs]
        require(
            not late,
            f"milestones {late} lie outside the {self.epochs} epochs: change --epochs, or give {self._milestones()}",
        )
        ordered = list(self.milestones) == sorted(set(self.milestones))
        require(ordered, f"milestones is {self.milestones}: give them in increasing order, each once")

    def _milestones(self) -> str:
        """The flag with the usual milestones, as shares of the epochs."""
        usual = sorted({self.epochs * each // Train.epochs for each in Train.milestones} - {0})
        return " ".join(("--milestones", *map(str, usual)))


@dataclass(frozen=True)
class MetaTrain:
    """Train Conv4 by second-order MAML or ANIL with the code of the theory, and test it on unseen classes."""

    data: str = EMBEDDED_DATA
    """"glyphs", "glyphs-mini" or "pictures" (embedded, no download), or a folder: {train,val,test}/CLASS/ with images,
    CLASS/ alone with --class-split, or a public set; `data check FOLDER` says what it is."""
    class_split: str | None = None
    """For folders CLASS/* without splits: shares of the classes for training, validation and test, as in 60/20/20
    (--split of other commands)."""
    split_seed: int = 0
    """Seed for this split, the same in every command whatever the seed of the run."""
    image_size: int = 28
    """Side of the square images in pixels, at least 16."""
    channels: int = 32
    """Channels of each of the four blocks."""
    algorithm: Literal["maml", "anil"] = "maml"
    """What the inner loop adapts: all parameters, or the last linear layer."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support samples per class."""
    queries: int = 5
    """Query samples per class in training; 15 in evaluation."""
    tasks: int = 4
    """Tasks in an outer step."""
    steps: int = 2000
    """Outer steps."""
    inner_steps: int = 1
    """Gradient steps on a task's support samples, τ."""
    inner_rate: float = 0.1
    """Learning rate λ of the inner steps, for the loss summed over the support samples. It must be smaller for
    more features of Conv4, which are channels · (image_size // 16)²."""
    learning_rate: float = 3e-3
    """Learning rate of Adam in the outer steps."""
    report_every: int = 100
    """Outer steps between two lines of the learning curve, with accuracy on the validation classes."""
    validation_tasks: int = 50
    """Tasks of a validation."""
    test_tasks: int = 600
    """Tasks of the evaluation at the end, and once before the first step."""
    split: Literal["val", "test"] = "test"
    """Classes of that evaluation: "val" to choose settings, "test" to report results."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    save_minutes: float = 5.0
    """Minutes between checkpoints; the end and a stop save a checkpoint as well."""
    out: Path = Path("runs/meta-train")
    """Run folder; a stopped run continues from there."""
    tensorboard: bool = False
    """Also write the numbers of metrics.jsonl for TensorBoard, into OUT/tensorboard (the extra tensorboard)."""

    def __post_init__(self) -> None:
        require(bool(self.data), 'data is empty: expected "glyphs" or a folder')
        require_at_least(self, 16, ("image_size",))
        require_at_least(self, 2, ("channels", "ways", "validation_tasks", "test_tasks"))
        require_at_least(self, 1, ("shots", "queries", "tasks", "steps", "inner_steps", "report_every"))
        require_at_least(self, 0, ("seed", "split_seed", "save_minutes"))
        shares_of(self.class_split)
        for name in ("inner_rate", "learning_rate"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}: expected a positive finite number")


def _train(name: str, data: str, cells: int, batch_size: int) -> Train:
    schedule: dict[str, Any]
    if data in (MINI, GLYPHS_MINI):
        # [6.1] 100 epochs from 0.02, decayed at 60 and 80; [E] dropout 0.2.
        schedule = {"epochs": 100, "learning_rate": 0.02, "milestones": (60, 80), "drop_path": 0.2}
    else:
        # [6.1] 60 epochs from 0.01, decayed at 30, 40 and 50; [E] dropout 0.1.
        schedule = {"epochs": 60, "learning_rate": 0.01, "milestones": (30, 40, 50), "drop_path": 0.1}
    folder = Path(f"runs/{name}")
    # [6.1] momentum 0.9 and weight decay 5e-4 are the settings' defaults; [code] 84 × 84 pixels, 48 channels.
    return Train(
        data=data, cells=cells, batch_size=batch_size, channels=48, image_size=84, **schedule,
        genotype=folder / "search/genotype.json", out=folder / "train",
    )  # fmt: skip


# fmt: off
# [E] batch size 64 for 5 cells; 40 (miniImageNet) and 56 (tieredImageNet) for 8 cells.
TRAIN = {
    "glyph-smoke": Train(
        genotype=Path("runs/glyph-smoke/search/genotype.json"), channels=8, cells=3, stem_stride=2, epochs=3,
        milestones=(2,), drop_path=0.0, out=Path("runs/glyph-smoke/train"),
    ),
    "glyph-84": _train("glyph-84", GLYPHS_MINI, 5, 64),
    "mini-5": _train("mini-5", MINI, 5, 64),
    "mini-8": _train("mini-8", MINI, 8, 40),
    "tiered-5": _train("tiered-5", TIERED, 5, 64),
    "tiered-8": _train("tiered-8", TIERED, 8, 56),
}
# fmt: on


META_TRAIN = {
    "glyph-smoke": MetaTrain(
        image_size=16, channels=16, algorithm="anil", inner_rate=0.1, steps=1000, test_tasks=200,
        out=Path("runs/glyph-smoke/meta-train"),
    ),
    "mini-conv4": MetaTrain(
        data=MINI, image_size=84, queries=15, inner_steps=5, inner_rate=3e-4, learning_rate=1e-3, steps=60_000,
        report_every=1000, test_tasks=1000, out=Path("runs/mini-conv4/meta-train"),
    ),
}  # fmt: skip


Head = Literal["logistic", "svc", "svc-scaled", "nearest-centroid"]


@dataclass(frozen=True)
class LastLayer:
    """A classifier of few-shot tasks: a frozen trained network with a new last layer for every task."""

    checkpoint: Path = Path("runs/train")
    """Run folder of the training."""
    head: Head = "logistic"
    """Last-layer classifier: logistic regression, linear SVC, SVC after scaling (the code of RFS), or centroids."""
    C: float = 1.0
    """1 / ℓ2 penalty of the last-layer classifier; unused by centroids."""
    augment: int = 5
    """Augmented copies of each support image; 0 for the images without augmentation."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, ("augment", "seed"))
        require(0 < self.C < math.inf, f"C is {self.C}: expected a positive finite number")


@dataclass(frozen=True)
class Evaluate(LastLayer):
    """Accuracy of a trained network on few-shot test tasks, with its confidence interval (Table 1)."""

    data: str | None = None
    """The data. Another place than that of the training, by name or folder, must hold the same training images; its
    validation and test classes may differ."""
    split: Literal["val", "test"] = "test"
    """Classes to draw the tasks from."""
    ways: int = 5
    """Classes per task."""
    shots: int = 5
    """Support images per class."""
    queries: int = 15
    """Query images per class."""
    tasks: int = 1000
    """Number of test tasks."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    out: Path = Path("runs/evaluate")
    """Run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, ("ways", "tasks"))
        require_at_least(self, 1, ("shots", "queries", "jobs"))

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {} if self.data else {"data": "that of the training"}


@dataclass(frozen=True)
class Predict(LastLayer):
    """Classes of your images from a few labelled ones, by a trained network (one few-shot task)."""

    images: Path = Path("images")
    """Folder with support/CLASS/*.png (or another image), a folder for every class, and query/*.png without labels."""
    out: Path = Path("runs/predict")
    """Run folder: predictions.csv and the record."""


def _evaluate(name: str, shots: int, head: Head, C: float) -> Evaluate:
    # [E] 5 augmented copies of the support; [6.2] 1000 tasks; [code] 15 queries per class.
    folder = Path(f"runs/{name}")
    train, out = folder / "train", folder / f"evaluate-{shots}-shot"
    return Evaluate(train, head, C, shots=shots, augment=5, tasks=1000, queries=15, out=out)


# [E] head and C of each of the eight numbers in Table 1.
EVALUATE = {
    "glyph-smoke": Evaluate(
        checkpoint=Path("runs/glyph-smoke/train"), tasks=50, augment=1, out=Path("runs/glyph-smoke/evaluate")
    ),
    "glyph-84-1-shot": _evaluate("glyph-84", 1, "svc", 0.2),
    "glyph-84-5-shot": _evaluate("glyph-84", 5, "logistic", 0.6),
    "mini-5-1-shot": _evaluate("mini-5", 1, "svc", 0.2),
    "mini-5-5-shot": _evaluate("mini-5", 5, "logistic", 0.6),
    "mini-8-1-shot": _evaluate("mini-8", 1, "svc", 0.35),
    "mini-8-5-shot": _evaluate("mini-8", 5, "logistic", 0.4),
    "tiered-5-1-shot": _evaluate("tiered-5", 1, "svc", 0.75),
    "tiered-5-5-shot": _evaluate("tiered-5", 5, "logistic", 0.8),
    "tiered-8-1-shot": _evaluate("tiered-8", 1, "logistic", 0.95),
    "tiered-8-5-shot": _evaluate("tiered-8", 5, "logistic", 0.5),
}
