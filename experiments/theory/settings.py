"""The settings of the commands of the theory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..requirements import require, require_at_least, require_widths


@dataclass(frozen=True)
class Widths:
    """The settings of all measurements over widths."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Widths l of the hidden layers, increasing."""
    depth: int = 2
    """Number of hidden layers L."""
    seeds: int = 8
    """Independent initialisations per width, for the confidence intervals."""
    tau: int = 2
    """Inner-loop steps τ."""
    algorithm: Literal["maml", "anil"] = "maml"
    """Adapt all parameters (maml) or the last layer alone (anil)."""
    tasks: Literal["sphere", "glyphs"] = "sphere"
    """Tasks: points on the unit sphere, or 2-way 1-shot tasks of embedded glyph images, projected to it."""
    task_count: int = 3
    """Number of training tasks N; as many again are held out."""
    dimension: int = 8
    """Input dimension d."""
    out: Path = Path("runs/theory")
    """Folder for the figures and their numbers."""
    runs: Path = Path("runs/theory")
    """Folder for the measurements of every width and seed; a stopped run continues from there."""
    jobs: int = 2
    """Worker processes of one thread each; the result does not depend on it."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        require_widths("widths", self.widths)
        require_at_least(self, 2, ("seeds",))
        require_at_least(self, 1, ("depth", "tau", "task_count", "dimension", "jobs"))
        require_at_least(self, 0, ("seed",))


@dataclass(frozen=True)
class Theory(Widths):
    """The settings of the checks of Sections 4 and 5 on trained networks."""

    activation: Literal["relu", "erf", "tanh"] = "erf"
    """Activation of the fully connected network (16)."""
    steps: int = 100
    """Meta-training steps t."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("steps",))


@dataclass(frozen=True)
class Convergence(Theory):
    """Global convergence of MAML at a linear rate, and the rate's bound (Theorems 1 and 3)."""

    out: Path = Path("runs/convergence")
    """Folder for the figures and their numbers."""


@dataclass(frozen=True)
class Bounds(Theory):
    """Rate, path and kernel drift of networks of 1, 2 and 3 hidden layers against the bounds of Theorem 3."""

    out: Path = Path("runs/bounds")
    """Folder for the figures and their numbers."""

    widths: tuple[int, ...] = (16, 64, 256)
    """Widths l of the networks whose path, drift and Lipschitz constant are measured, increasing."""
    depth: int = 3
    """Largest number of hidden layers: a column of panels for each L = 1 … depth."""
    seeds: int = 6
    """Independent initialisations per width, for the confidence intervals."""
    steps: int = 60
    """Meta-training steps t."""
    task_count: int = 2
    """Number of training tasks N; as many again are held out."""
    share_widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Widths at which the share of initialisations within the bound (31) is counted, increasing."""
    batches: int = 4
    """Batches of 25 further initialisations per width, for that share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_widths("share_widths", self.share_widths)
        require_at_least(self, 2, ("batches",))


@dataclass(frozen=True)
class Drift(Theory):
    """Parameters and kernels move less the wider the network is (Lemmas 1-3, Theorem 3)."""

    out: Path = Path("runs/drift")
    """Folder for the figures and their numbers."""


@dataclass(frozen=True)
class Lipschitz(Widths):
    """The Lipschitz constant of MAML's Jacobian over widths, and a kink where there is none (Lemma 1)."""

    out: Path = Path("runs/lipschitz")
    """Folder for the figures and their numbers."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Widths l of the hidden layers, increasing."""
    depth: int = 2
    """Largest number of hidden layers: a panel for each L = 1 … depth."""
    seeds: int = 4
    """Independent initialisations per width, for the confidence intervals."""
    task_count: int = 2
    """Number of training tasks N."""
    activations: tuple[Literal["relu", "erf", "tanh"], ...] = ("erf", "tanh", "relu")
    """Activations to compare."""

    def __post_init__(self) -> None:
        super().__post_init__()
        distinct = 0 < len(self.activations) == len(set(self.activations))
        require(distinct, f"activations is {self.activations}: give at least one, each once")


@dataclass(frozen=True)
class Equivalence(Theory):
    """MAML's outputs are those of kernel regression with the MetaNTK (Theorem 2, Corollary 3.1)."""

    out: Path = Path("runs/equivalence")
    """Folder for the figures and their numbers."""


@dataclass(frozen=True)
class Plateau(Theory):
    """The printed closed form stops short of wide trained networks, the discrete one does not (Theorem 2)."""

    out: Path = Path("runs/plateau")
    """Folder for the figures and their numbers."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    """Widths l of the hidden layers, increasing."""
    depth: int = 1
    """Number of hidden layers L."""
    tau: int = 1
    """Inner-loop steps τ."""
    taus: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of inner steps at which the two closed forms are compared, increasing; no training is needed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_widths("taus", self.taus)


@dataclass(frozen=True)
class Ensemble(Theory):
    """Trained networks over initialisations: their mean is Eq. (12), their covariance that of the NNGP kernel."""

    out: Path = Path("runs/ensemble")
    """Folder for the figures and their numbers."""

    widths: tuple[int, ...] = (16, 64, 256)
    """Widths l of the hidden layers, increasing."""
    depth: int = 1
    """Number of hidden layers L."""
    batches: int = 2
    """Batches of 25 networks in the ensemble of every width."""
    steps: int = 50
    """Meta-training steps t."""
    tau: int = 8
    """Inner-loop steps τ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, ("batches",))


@dataclass(frozen=True)
class Laziness(Theory):
    """Where the kernel moves: mean field and large rates at every width, small multipliers and weights if narrow."""

    out: Path = Path("runs/laziness")
    """Folder for the figures and their numbers."""

    widths: tuple[int, ...] = (64, 256, 1024)
    """Widths l of the hidden layers, increasing."""
    depth: int = 1
    """Number of hidden layers L."""
    seeds: int = 2
    """Independent initialisations per width."""
    steps: int = 30
    """Meta-training steps t."""


@dataclass(frozen=True)
class Verify:
    """The theorems for a network of your own, MODULE:FUNCTION of the width: rate, drift, K, kernel regression."""

    network: str = ""
    """MODULE:FUNCTION of the width that returns a module, the flag is optional: verify NETWORK."""
    widths: tuple[int, ...] = (8, 16, 32, 64)
    """Widths l of the networks, increasing."""
    seeds: int = 3
    """Independent initialisations per width, for the intervals of slopes."""
    steps: int = 30
    """Meta-training steps t."""
    tau: int = 1
    """Inner-loop steps τ."""
    algorithm: Literal["maml", "anil"] = "maml"
    """Adapt all parameters (maml) or the last layer alone (anil)."""
    shape: tuple[int, ...] = (1, 6, 6)
    """Shape of one sample; samples are random points on the unit sphere."""
    samples: int = 2
    """Query samples and support samples of a task."""
    task_count: int = 2
    """Number of training tasks N; as many again are held out."""
    tasks: str = ""
    """MODULE:FUNCTION that returns (training tasks, held-out tasks) in place of random points."""
    lipschitz: bool = True
    """Evaluate K of Lemma 1 and the bounds (29) and (30), which takes most of the time."""
    out: Path = Path("runs/verify")
    """Folder for the report and the figure."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        require_widths("widths", self.widths)
        require_at_least(self, 2, ("seeds",))
        require_at_least(self, 1, ("steps", "tau", "samples", "task_count"))
        require_at_least(self, 0, ("seed",))
        sizes = len(self.shape) > 0 and min(self.shape) >= 1
        require(sizes, f"shape is {self.shape}: expected whole numbers of at least 1")

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {
            name: word
            for name, word in {"network": "a convolutional example", "tasks": "random points"}.items()
            if not getattr(self, name)
        }


# Wide networks: the factored fast weights need one copy of the parameters for all tasks, 0.5 GB at l = 8192.
_WIDE: dict[str, Any] = {"widths": (64, 256, 1024, 4096, 8192), "seeds": 3, "steps": 50}
CONVERGENCE = {"wide": Convergence(**_WIDE, out=Path("runs/convergence-wide"))}
DRIFT = {"wide": Drift(**_WIDE, out=Path("runs/drift-wide"))}
EQUIVALENCE = {"wide": Equivalence(**_WIDE, out=Path("runs/equivalence-wide"))}
