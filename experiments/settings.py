"""The settings of every command: frozen dataclasses whose docstrings are the command line's help.

Nothing here imports torch, so that help and mistakes answer at once. A wrong combination is refused when
the settings are made, before any computation. The numbers of a command depend on its settings alone.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.theory_settings import (  # noqa: F401 - the commands' settings all go by this module
    Bounds,
    Convergence,
    Drift,
    Equivalence,
    Lipschitz,
    Plateau,
    Theory,
    Widths,
)

EMBEDDED_DATA = "glyphs"


@dataclass(frozen=True)
class Network:
    """Where images come from and how the cells are stacked; search and training share it."""

    data: str = EMBEDDED_DATA
    """"glyphs" (embedded, no download), or the folder of mini- or tieredImageNet."""
    image_size: int = 32
    """Side of the square images in pixels."""
    channels: int = 48
    """Channels C of the first cells; doubled at each reduction."""
    cells: int = 5
    """Number of stacked cells; reductions at one and two thirds."""
    stem_stride: int = 1
    """Stride of the stem convolution; 2 halves the image first and costs a quarter."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        require(bool(self.data), 'data is empty: expected "glyphs" or a folder')
        require_at_least(self, 8, ("image_size",))
        require_at_least(self, 1, ("channels",))
        require_at_least(self, 3, ("cells",))
        require_at_least(self, 0, ("seed",))
        require(self.stem_stride in (1, 2, 4), f"stem_stride is {self.stem_stride}: expected 1, 2 or 4")


@dataclass(frozen=True)
class Search(Network):
    """MetaNTK-NAS: search a cell without training, by condition number and linear regions (Algorithm 1)."""

    kernel: Literal["maml", "anil", "ntk"] = "maml"
    """Kernel whose condition number ranks the cells: MetaNTK of MAML or ANIL, or the plain NTK (TE-NAS)."""
    outputs: Literal["full", "sum"] = "sum"
    """Kernel of all outputs (kn × kn), or of their sum (n × n; the released code)."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support samples per class."""
    queries: int = 1
    """Query samples per class."""
    tasks: int = 3
    """Tasks per kernel."""
    repeats: int = 3
    """Independent evaluations that are averaged per candidate."""
    inner_time: float = math.inf
    """λτ of the inner loop in the kernel; inf is the limit of full adaptation."""
    ridge: float = 1e-3
    """Ridge inside the inverse of the support kernel at λτ = inf; a finite λτ needs none and ignores it."""
    ties: Literal["min", "index"] = "min"
    """Equal scores share the better rank (min), or are told apart by their position (index)."""
    two_inputs: bool = False
    """Keep the best two inputs per node at the end (the released code; not in Algorithm 1)."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    out: Path = Path("runs/search")
    """Run folder; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, ("ways",))
        require_at_least(self, 1, ("shots", "queries", "tasks", "repeats", "jobs"))
        require_at_least(self, 0, ("inner_time", "ridge"))
        require(math.isfinite(self.ridge), f"ridge is {self.ridge}: expected a finite number")
        plain = self.kernel == "ntk" and not (self.inner_time == math.inf and self.ridge == 1e-3)
        require(
            not plain,
            "kernel ntk has no inner loop: leave out --inner-time and --ridge, or choose maml or anil",
        )


@dataclass(frozen=True)
class Train(Network):
    """Train a searched cell's network on the base classes, as RFS does (Section 6.1)."""

    genotype: Path = Path("runs/search/genotype.json")
    """The searched cell."""
    epochs: int = 100
    """Passes over the base classes."""
    batch_size: int = 64
    """Images per step."""
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
    out: Path = Path("runs/train")
    """Run folder; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("epochs", "batch_size"))
        require_at_least(self, 0, ("momentum", "weight_decay", "drop_path"))
        positive = 0 < self.learning_rate < math.inf
        require(positive, f"learning_rate is {self.learning_rate}: expected a positive finite number")
        require(self.momentum < 1, f"momentum is {self.momentum}: expected less than 1")
        require(self.drop_path < 1, f"drop_path is {self.drop_path}: expected less than 1")
        late = [epoch for epoch in self.milestones if not 0 < epoch < self.epochs]
        require(
            not late,
            f"milestones {late} lie outside the {self.epochs} epochs: change --milestones or --epochs",
        )
        ordered = list(self.milestones) == sorted(set(self.milestones))
        require(ordered, f"milestones is {self.milestones}: give them in increasing order, each once")


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a trained network on few-shot test tasks, with its confidence interval (Table 1)."""

    checkpoint: Path = Path("runs/train")
    """Run folder of the training."""
    data: str = EMBEDDED_DATA
    """"glyphs" (embedded, no download), or the folder of mini- or tieredImageNet."""
    split: Literal["val", "test"] = "test"
    """Classes to draw the tasks from."""
    ways: int = 5
    """Classes per task."""
    shots: int = 5
    """Support samples per class."""
    queries: int = 15
    """Query samples per class."""
    tasks: int = 1000
    """Number of test tasks."""
    head: Literal["logistic", "svc", "svc-scaled"] = "logistic"
    """Last-layer classifier: logistic regression, linear SVC, or SVC after scaling (the code of RFS)."""
    C: float = 1.0
    """1 / ℓ2 penalty of the last-layer classifier."""
    augment: int = 5
    """Augmented copies of each support sample; 0 takes the samples as they are."""
    seed: int = 0
    """Seed of tasks and augmentation."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    out: Path = Path("runs/evaluate")
    """Run folder."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, ("ways", "tasks"))
        require_at_least(self, 1, ("shots", "queries", "jobs"))
        require_at_least(self, 0, ("augment", "seed"))
        require(0 < self.C < math.inf, f"C is {self.C}: expected a positive finite number")


@dataclass(frozen=True)
class Demo:
    """Everything on the embedded data: theory figures, then search, train and evaluate."""

    seed: int = 0
    """Seed of every random draw."""
    out: Path = Path("figures")
    """Folder for figures, numbers and the table."""
    budget: float = 10.0
    """Minutes that the demonstration may take on two cores; it scales the work to them."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, ("seed",))
        require(0 < self.budget < math.inf, f"budget is {self.budget}: expected a positive number of minutes")


@dataclass(frozen=True)
class Glyphs:
    """Contact sheet of the embedded few-shot images, one row per class."""

    split: Literal["train", "val", "test"] = "train"
    """Which scripts to show."""
    classes: int = 10
    """Rows: randomly drawn classes."""
    samples: int = 10
    """Columns: samples of each class."""
    image_size: int = 32
    """Side of the square images in pixels."""
    seed: int = 0
    """Seed of every random draw."""
    out: Path = Path("figures")
    """Folder for the sheet."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("classes", "samples"))
        require_at_least(self, 8, ("image_size",))
        require_at_least(self, 0, ("seed",))


@dataclass(frozen=True)
class Doctor:
    """Versions, device with its reason, threads and data found: what to send with a question."""

    device: str = "auto"
    """Device to look for: auto, cpu, cuda or cuda:N."""
    data: Path | None = None
    """Folder of a data set to look into."""


@dataclass(frozen=True)
class Benchmark:
    """Time, memory and exactness of the fast routines, beside what a user would pick instead."""

    cases: tuple[str, ...] = ()
    """Beginnings of the names of the cases to measure; all if none is given."""
    rounds: int = 5
    """Rounds in which every method has its turn; medians are reported."""
    seconds: float = 8.0
    """CPU seconds of a method's rounds after which it sits out the rest."""
    quick: bool = False
    """Tiny problems in one process: shows that everything runs, its numbers mean nothing."""
    allocator: Literal["default", "tuned", "both"] = "default"
    """Settings of the C library's allocator; "both" repeats the cases in which it matters."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; time is the CPU's or that between events on the device."""
    neural_tangents_python: Path | None = None
    """Python in whose environment neural-tangents is installed."""
    again: bool = False
    """Measure finished cases again."""
    seed: int = 0
    """Seed of every random draw."""
    out: Path = Path("figures")
    """Folder for the table, the figure and its numbers."""
    runs: Path = Path("runs/benchmark")
    """Folder for the measurements of every case; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("rounds",))
        require_at_least(self, 0, ("seed",))
        require(0 < self.seconds < math.inf, f"seconds is {self.seconds}: expected a positive finite number")
        python = self.neural_tangents_python
        require(
            python is None or python.is_file(),
            f"neural-tangents-python is {python}: expected the program of a Python, such as env/bin/python",
        )
