"""The settings of the studies of scores: do they predict accuracy, and are they reproducible?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..requirements import require, require_at_least
from ..settings import ShortTraining, SmallNetworkSettings, limits_of

WAYS = 5
"""Classes per task, in scores and in accuracies."""
POOL_IMAGES = 6
"""Images per class of a pool of ``tabulate``."""


@dataclass(frozen=True)
class Correlation(ShortTraining):
    """Do the training-free scores predict accuracy? Random networks, trained and scored, against their size."""

    networks: int = 40
    """Random genotypes; differences of tau below 0.2 need about 100."""
    repeated: int = 10
    """Networks trained a second time, for the noise ceiling."""
    parameters: str | None = None
    """A band: fewest and most parameters of the random networks, as in 36000:42000."""
    table: str | None = None
    """"glyphs" (embedded) or a file of ``tabulate``: report what predicts accuracy among its cells, and train none."""
    inputs: Literal["two", "all"] = "two"
    """Inputs of a node: two (the paper's random cells) or all edges."""
    test_tasks: int = 200
    """Few-shot tasks for every accuracy, the same for all networks."""
    pools: int = 4
    """Disjoint pools of base classes on which the scores are computed."""
    pool_images: int = 6
    """Images per class of a pool; a regression task takes one as support and the others as queries."""
    initialisations: int = 3
    """Networks drawn for every pool."""
    joint_tasks: int = 3
    """Tasks whose MetaNTK is taken jointly."""
    batches: int = 24
    """Batches of joint tasks cut from every pool."""
    regression_tasks: int = 200
    """Tasks of kernel regression cut from every pool."""
    patches: int = 3000
    """Inputs of the count of linear regions."""
    outputs: Literal["full", "sum"] = "sum"
    """Kernel of all outputs (kn × kn), or of their sum (n × n; the released code)."""
    draws: int = 1000
    """Bootstrap draws of networks and pools."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    out: Path = Path("runs/correlation")
    """Folder for the figure, its numbers and the table."""
    runs: Path = Path("runs/correlation")
    """Folder for the networks that are done; a stopped study continues from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 4, ("networks",))
        require_at_least(self, 3, ("repeated",))
        require_at_least(self, 2, ("pool_images", "test_tasks"))
        counts = ("pools", "initialisations", "joint_tasks", "batches")
        require_at_least(self, 1, (*counts, "regression_tasks", "patches", "draws", "jobs"))
        if self.parameters is not None:
            limits_of(self.parameters)
            both = (
                "parameters and table are both given: the cells of a table have a band already; leave one out"
            )
            require(self.table is None, both)
        fewer = self.repeated <= self.networks
        require(fewer, f"repeated is {self.repeated}: expected at most the {self.networks} networks")

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {} if self.parameters else {"parameters": "networks of all sizes"}


@dataclass(frozen=True)
class Tabulate(ShortTraining):
    """A table of cells of one size, trained and scored, on which search methods are tried in seconds."""

    parameters: str = "36000:42000"
    """The band: fewest and most parameters of a network."""
    networks: int = 150
    """Random genotypes in the band."""
    trainings: int = 2
    """Trainings of each, with other weights, order and augmentation."""
    doubled: int = 60
    """Genotypes, the first ones, that are trained once more at twice the width and twice the epochs."""
    scored: int = 75
    """Genotypes, the first ones, that are scored again after some epochs of their first training."""
    inputs: Literal["two", "all"] = "two"
    """Inputs of a node: two (the paper's random cells) or all edges."""
    checkpoints: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    """Epochs after which loss and few-shot accuracies are recorded; a training ends at the last."""
    scored_epochs: tuple[int, ...] = (0, 2, 4)
    """Epochs after which the kernels of a network in training are scored."""
    tasks: int = 400
    """Few-shot tasks of the accuracies by prototypes, the same for all networks."""
    test_tasks: int = 200
    """Few-shot tasks of the final accuracies by a logistic head."""
    pools: int = 4
    """Disjoint pools of base classes on which the scores at initialisation are computed."""
    initialisations: int = 3
    """Networks drawn for every pool."""
    draws: int = 1000
    """Bootstrap draws of cells, and searches per method in the report on the table."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    out: Path = Path("runs/tabulate")
    """Folder for the measurements and the table; a stopped command continues from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits_of(self.parameters)
        require_at_least(self, 1, ("networks", "trainings", "pools", "initialisations", "draws", "jobs"))
        require_at_least(self, 0, ("doubled", "scored"))
        require_at_least(self, 2, ("tasks", "test_tasks"))
        for name in ("doubled", "scored"):
            few = getattr(self, name) <= self.networks
            require(few, f"{name} is {getattr(self, name)}: expected at most the {self.networks} networks")
        for name in ("checkpoints", "scored_epochs"):
            epochs = getattr(self, name)
            increasing = list(epochs) == sorted(set(epochs)) and all(0 <= e <= self.epochs for e in epochs)
            require(increasing, f"{name} is {epochs}: give epochs up to {self.epochs}, increasing, each once")
        last = self.checkpoints[-1:] == (self.epochs,) and self.checkpoints[0] > 0
        require(last, f"checkpoints is {self.checkpoints}: expected 1 or more first and {self.epochs} last")


@dataclass(frozen=True)
class Stability(SmallNetworkSettings):
    """Do two searches get the same scores? Reliability of operator scores and its price in CPU seconds."""

    kernel: Literal["maml", "anil", "ntk"] = "maml"
    """Kernel that is scored: MetaNTK of MAML or ANIL, or the plain NTK (TE-NAS)."""
    outputs: Literal["full", "sum"] = "sum"
    """Kernel of all outputs (kn × kn), or of their sum (n × n; the released code)."""
    gradient_tasks: tuple[int, ...] = (3, 6, 12)
    """Joint tasks T per kernel for scores of all operators by one gradient."""
    gradient_repeats: int = 12
    """Repeats of the gradient at every T: new weights, new tasks."""
    exact_tasks: int = 3
    """Joint tasks T per kernel for leave-one-out scores."""
    exact_repeats: int = 4
    """Repeats of the leave-one-out scores, or 0; they use the draws of the gradient."""
    region_repeats: int = 12
    """Repeats of the count of linear regions, or 0."""
    patches: int = 3000
    """Inputs of the count of linear regions."""
    chunk: int = 0
    """Most samples in one graph of the gradient, against a lack of memory; 0: as many as fit in about 2 GB."""
    draws: int = 200
    """Draws for intervals, null and halves."""
    jobs: int = 1
    """Worker processes; times are those of one process."""
    out: Path = Path("runs/stability")
    """Folder for the figure, its numbers and the table."""
    runs: Path = Path("runs/stability")
    """Folder for the repeats that are done; a stopped study continues from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 4, ("gradient_repeats",))
        require_at_least(
            self, 4, [name for name in ("exact_repeats", "region_repeats") if getattr(self, name)]
        )
        require_at_least(self, 1, ("exact_tasks", "patches", "draws", "jobs"))
        require_at_least(self, 0, ("chunk",))
        increasing = list(self.gradient_tasks) == sorted(set(self.gradient_tasks))
        require(
            bool(self.gradient_tasks) and increasing and self.gradient_tasks[0] > 0,
            f"gradient_tasks is {self.gradient_tasks}: give positive numbers in increasing order, each once",
        )


def _correlation(name: str, **values: Any) -> Correlation:
    folder = Path(f"runs/correlation-{name}")
    return Correlation(out=folder, runs=folder, **values)


def _stability(name: str, **values: Any) -> Stability:
    folder = Path(f"runs/stability-{name}")
    return Stability(out=folder, runs=folder, **values)


# fmt: off
CORRELATION = {
    "glyph": _correlation("glyph"),
    # A fifth of the computation: images of half the side, small batches; the same number of steps.
    "glyph-quick": _correlation(
        "glyph-quick", image_size=16, epochs=6, batch_size=32, milestones=(4,), repeated=16, test_tasks=150,
        initialisations=2, batches=16,
    ),
    "glyph-smoke": _correlation(
        "smoke", image_size=16, channels=4, networks=6, repeated=3, epochs=1, batch_size=32, milestones=(),
        test_tasks=10, pools=2, pool_images=3, initialisations=2, batches=2, regression_tasks=10, patches=200, draws=50,
    ),
    "wide": _correlation(
        "wide", channels=16, cells=5, stem_stride=1, networks=150, repeated=40, epochs=30, milestones=(18, 26),
        test_tasks=600, initialisations=6, jobs=4,
    ),
}
TABULATE = {
    "glyphs": Tabulate(out=Path("runs/tabulate-glyphs"), jobs=2),
    "pictures": Tabulate(data="pictures", out=Path("runs/tabulate-pictures"), networks=24, doubled=0, scored=0, jobs=2),
    "glyph-smoke": Tabulate(
        out=Path("runs/tabulate-smoke"), image_size=16, channels=4, parameters="10000:13000", networks=4, doubled=1,
        scored=1, epochs=2, checkpoints=(1, 2), scored_epochs=(0, 1), milestones=(1,), batch_size=32, tasks=20,
        test_tasks=4, pools=2, initialisations=1,
    ),
}
STABILITY = {
    "glyph": _stability("glyph", gradient_tasks=(3, 6, 12, 24), exact_repeats=12),
    # The network of the search with the same name.
    "glyph-5": _stability("glyph-5", cells=5, exact_repeats=0),
    # The width of the paper; the region count has a thin network instead.
    "glyph-48": _stability("glyph-48", channels=48, gradient_repeats=4, region_repeats=0),
    "wide": _stability(
        "wide", channels=48, cells=5, stem_stride=1, gradient_tasks=(3, 6, 12, 24), gradient_repeats=16,
        exact_repeats=8, chunk=60,
    ),
}
# fmt: on
