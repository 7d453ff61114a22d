"""The settings of the cell search."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from mamltheory.nas.protocols import (
    KERNELS,
    METHODS,
    OWN_SCORE,
    PROTOCOLS,
    Criteria,
    Method,
    Protocol,
    criteria,
)

from ..requirements import require, require_at_least
from ..settings import (
    GLYPHS_MINI,
    MINI,
    TIERED,
    ExperimentSettings,
    SmallNetworkSettings,
)
from .one_size_settings import OneSize

ONLY_HALVING = ("warm_start", "confirm", "anyway", "then_train")
ONLY_HALVING += tuple(f"search_{name}" for name in ("channels", "cells", "image_size", "stem_stride"))


@dataclass(frozen=True)
class Search(OneSize):
    """Search a cell: MetaNTK-NAS without training (Algorithm 1), or successive halving of short trainings."""

    RETIRED: ClassVar[Mapping[str, Any]] = {"heads": 1, "precision": "fp32", "shard": None}
    """Settings that earlier versions recorded and this one lacks, each with the only value that it still takes."""

    protocol: Protocol = "paper"
    """Algorithm 1 as printed, the computation of the released code, or the reproducible variant. It decides the
    settings below that no flag gives (see mamltheory/nas/protocols.py)."""
    method: Method = "metantk-nas"
    """The criteria: MetaNTK and linear regions, the plain NTK and linear regions (TE-NAS), linear regions alone, or
    chance; like a protocol, they decide settings below that no flag gives (see mamltheory/nas/protocols.py).
    Or halving: train random cells of one size a little, keep the best, train those further. At equal size, on glyphs,
    a small C_N is no better than chance, the best of 16 cells by C_N + R_N gains 0.8 points [−0.6, 2.2] over a random
    one, and halving 6.6 ± 3.8 (figures/equal_size.md, figures/table_glyphs_halving.md)."""
    space: str | None = None
    """MODULE:NAME of your own search space, a mamltheory.nas.Space, as in experiments/examples/own_space.py."""
    score: str | None = None
    """MODULE:NAME of your own score, a function of network and tasks or a mamltheory.nas.OwnScore, as in
    experiments/examples/own_score.py. It takes the place of the condition number; --regions adds ranks of R_N."""
    kernel: Literal["maml", "anil", "ntk"] = "maml"
    """Kernel whose condition number ranks the cells: MetaNTK of MAML or ANIL, or the plain NTK (TE-NAS)."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support samples per class."""
    queries: int = 1
    """Query samples per class."""
    inner_time: float = math.inf
    """λτ of the inner loop in the kernel; inf is the limit of full adaptation."""
    ridge: float = 1e-3
    """Ridge inside the inverse of the support kernel at λτ = inf; a finite λτ needs none and ignores it."""
    metric: Literal["condition", "harmonic"] | None = None
    """σ_max/σ_min of the kernel, or tr · tr of the inverse / n², which is less noisy."""
    estimator: Literal["leave-one-out", "gradient"] | None = None
    """One kernel per left-out operator, or one gradient per repeat for all operators."""
    regions: bool | None = None
    """Add the ranks of the number of linear regions."""
    outputs: Literal["full", "sum"] | None = None
    """Kernel of all outputs (kn × kn), or of their sum (n × n), about four times cheaper."""
    tasks: int | None = None
    """Tasks per kernel."""
    repeats: int | None = None
    """Independent draws of weights, head and tasks to average (the most, with stopping)."""
    stopping: bool | None = None
    """End a round once its repeats agree on the operators to prune, or an error costs little."""
    least_repeats: int | None = None
    """Repeats before a round may stop."""
    shrinkage: bool | None = None
    """Shrink scores towards the mean of (cell type × operation); that mean, or the size, decides edges without a
    clear choice and rounds without signal."""
    difference: Literal["log", "relative", "absolute"] | None = None
    """How condition numbers are compared: difference of logarithms, relative, or absolute."""
    ties: Literal["min", "dense", "index"] | None = None
    """Ranks of equal scores: the better rank, the same without gaps after it, or by position."""
    initialisation: Literal["kaiming", "default"] | None = None
    """Kaiming-normal weights, or PyTorch's default ones."""
    common_random_numbers: bool | None = None
    """All networks in one repeat share weights, head and tasks."""
    two_inputs: bool | None = None
    """Keep the best two inputs per node at the end (not in Algorithm 1). With --parameters: draw cells with two inputs
    per node."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    verbose: bool = False
    """Print the reliability of every round and the operations on every edge as codes, of halving all ranked cells;
    search.json has the numbers in any case."""
    out: Path = Path("runs/search")
    """Run folder; a stopped run continues from there."""
    tensorboard: bool = False
    """Also write the numbers of metrics.jsonl for TensorBoard, into OUT/tensorboard (the extra tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, ("ways",))
        require_at_least(self, 1, ("shots", "queries", "jobs"))
        require_at_least(self, 0, ("inner_time", "ridge"))
        require(
            self.parameters is None or self.method in ("halving", "metantk-nas"),
            f"method {self.method} takes no --parameters: leave it out, or choose halving or metantk-nas",
        )
        foreign = [name for name in ONLY_HALVING if getattr(self, name) != getattr(Search, name)]
        require(
            self.method == "halving" or not foreign,
            f"method {self.method} does not use {', '.join(foreign)}: leave that out, or choose halving",
        )
        require(
            not self.tensorboard or (self.parameters is None and self.method != "halving"),
            "a search at one size has no rounds to log: leave out --tensorboard, or give it to the training",
        )
        self._check_own()
        require(self.value("least_repeats") >= 2, "least_repeats is below 2: agreement needs two repeats")
        require_at_least(self, 1, [name for name in ("tasks", "repeats") if getattr(self, name) is not None])
        require(math.isfinite(self.ridge), f"ridge is {self.ridge}: expected a finite number")
        plain = self.kernel == "ntk" and not (self.inner_time == math.inf and self.ridge == 1e-3)
        require(
            not plain,
            "kernel ntk has no inner loop: leave out --inner-time and --ridge, or choose maml or anil",
        )
        gradient = self.value("estimator") == "gradient"
        require(
            not (gradient and self.value("regions")),
            "the gradient scores condition numbers alone: give --no-regions with it",
        )
        require(
            not (gradient and not self.value("common_random_numbers")),
            "one gradient serves all networks in one repeat: give --common-random-numbers with it",
        )

    def _check_own(self) -> None:
        """Raise ConfigurationError for names of an own space or score that cannot be, or flags that exclude them."""
        for name in ("space", "score"):
            text = getattr(self, name)
            require(
                text is None or re.fullmatch(r"[\w.]+:\w+", text) is not None,
                f"{name} is '{text}': expected MODULE:NAME, as in experiments.examples.own_{name}:{name}",
            )
        require(
            self.space is None or self.warm_start is None,
            "the tables of --warm-start are of the paper's space: leave it out with --space",
        )
        if self.score is None:
            return
        require(
            self.method == "metantk-nas",
            f"method {self.method} takes no --score, which is for metantk-nas: leave one of them out",
        )
        for name in ("estimator", "difference", "common_random_numbers"):
            given, only = getattr(self, name), OWN_SCORE[name]
            require(
                given in (None, only),
                f"{name} is {_shown(given)}: with --score it is {_shown(only)}, leave it out",
            )

    def value(self, name: str) -> Any:
        """The value of a setting; for None that of the method or the protocol."""
        given, usual = getattr(self, name), {**PROTOCOLS[self.protocol], **METHODS[self.method]}
        usual |= OWN_SCORE if self.score else {}
        if self.parameters is not None or self.method == "halving":
            usual["two_inputs"] = True
        return usual.get(name) if given is None else given

    def default_words(self) -> dict[str, str]:
        """What the settings that no flag gave stand for, with the protocols and methods that differ."""
        words = {
            name: deciding_words(self, name)
            for name in PROTOCOLS[self.protocol]
            if getattr(self, name) is None
        }
        words |= {name: deciding_words(self, name) for name in KERNELS["te-nas"]}
        scale = [name for name in vars(self) if name.startswith("search_") and getattr(self, name) is None]
        return words | {name: f"that of --{name[7:].replace('_', '-')}" for name in scale}

    @property
    def criteria(self) -> Criteria:
        """The criteria of the ranking; none for the random cell."""
        return criteria(self.method, bool(self.value("regions")))

    def resolved(self) -> "Search":
        """The settings with the values of the protocol and the method, as a run records them."""
        filled = {name: self.value(name) for name in PROTOCOLS[self.protocol]}
        return dataclasses.replace(self, **filled, **KERNELS.get(self.method, {}))

    def before(self) -> dict[str, Any]:
        """Values of settings that a record of another version lacks: defaults, the protocol's, and retired ones."""
        usual = Search(protocol=self.protocol, method=self.method).resolved()
        usual = dataclasses.replace(usual, protocol=Search.protocol, method=Search.method)
        return {**self.RETIRED, **vars(usual)}


def deciding_words(settings: Search, name: str) -> str:
    """The value of a setting, and the protocols and methods by which it is another one."""
    here = settings.value(name)
    by_protocol = {protocol: values.get(name, here) for protocol, values in PROTOCOLS.items()}
    by_method = {method: {**METHODS[method], **KERNELS.get(method, {})}.get(name, here) for method in METHODS}
    parts = [_shown(here)]
    for kind, values in (("protocol", by_protocol), ("method", by_method)):
        for other in dict.fromkeys(value for value in values.values() if value != here):
            names = ", ".join(key for key, value in values.items() if value == other)
            parts.append(f"{kind} {names}: {_shown(other)}")
    return "; ".join(parts)


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


@dataclass(frozen=True)
class Protocols(SmallNetworkSettings):
    """Do independent searches find the same cell? Whole searches by every protocol, and what they cost."""

    seed: int = 1
    """Seed of the first search of each protocol; the others follow."""
    paper: int = 2
    """Searches by the protocol paper, with the kernel of summed outputs."""
    released: int = 2
    """Searches by the protocol released."""
    stable: int = 4
    """Searches by the protocol stable."""
    measure: bool = True
    """Run missing searches; otherwise report the rounds that are in the run folders."""
    jobs: int = 1
    """Worker processes of a search; CPU time is best measured with one."""
    runs: Path = Path("runs/protocols")
    """Folder of the searches' run folders; finished ones are taken from there."""
    out: Path = Path("runs/protocols")
    """Folder for the table, its numbers and the figure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 0, ("paper", "released", "stable"))
        require_at_least(self, 1, ("jobs",))
        counts = [getattr(self, name) for name in ("paper", "released", "stable")]
        require(max(counts) > 1, "nothing to compare: give a protocol at least 2 searches")

    def searches(self) -> dict[str, list[Search]]:
        """The searches of every protocol with at least one; they differ only in their seeds."""
        names = {field.name for field in dataclasses.fields(ExperimentSettings)} - {"seed"} | {"jobs"}
        size = {name: getattr(self, name) for name in names}
        return {
            name: [
                Search(protocol=name, outputs="sum", seed=seed, out=self.runs / f"{name}-{seed}", **size)
                for seed in range(self.seed, self.seed + getattr(self, name))
            ]
            for name in get_args(Protocol)
            if getattr(self, name)
        }


def _search(name: str, data: str, cells: int, **kernel: Any) -> Search:
    # [code] 48 channels, tasks of 5 ways, 1 shot and 1 query at 32 × 32 pixels, and summed outputs; with the
    # protocol paper also 3 tasks and 3 repeats.
    out = Path(f"runs/{name}/search")
    return Search(data, cells=cells, channels=48, image_size=32, outputs="sum", out=out, **kernel)


def _halving(name: str, data: str, cells: int, parameters: str, **rungs: Any) -> Search:
    """A search among small networks, whose epochs cost two percent of the full one's, and then the paper's training."""
    return Search(
        data, image_size=84, channels=48, cells=cells, method="halving", parameters=parameters, then_train=name,
        search_channels=16, search_cells=3, search_image_size=42, out=Path(f"runs/{name}-halving/search"), **rungs,
    )  # fmt: skip


SHORT: Mapping[str, Any] = {"rung_epochs": (1, 2, 6), "search_milestones": (4, 5)}
"""Rungs for the 450,000 images of tieredImageNet."""
# [E] λτ and ridge: ∞ and 1e-3, except 1 and 1e-5 for 8 cells on miniImageNet.
# [6.1] the MAML kernel for 5 cells, the ANIL kernel for 8.
SEARCH = {
    "glyph-smoke": Search(
        protocol="stable",
        channels=4,
        cells=3,
        stem_stride=2,
        tasks=8,
        repeats=6,
        least_repeats=4,
        out=Path("runs/glyph-smoke/search"),
    ),
    # Nine trainings of 12 epochs, in three to four CPU minutes.
    "glyphs-halving": Search(
        method="halving",
        parameters="36000:42000",
        channels=8,
        cells=3,
        stem_stride=2,
        out=Path("runs/glyphs-halving/search"),
    ),
    "halving-smoke": Search(
        method="halving",
        parameters="10000:13000",
        image_size=16,
        channels=4,
        cells=3,
        stem_stride=2,
        rungs=(4, 2),
        rung_epochs=(1, 2),
        rank_by=("accuracy", "loss"),
        search_milestones=(1,),
        search_batch_size=32,
        validation_tasks=50,
        anyway=True,
        out=Path("runs/halving-smoke/search"),
    ),
    "glyph-5": Search(protocol="stable", channels=8, cells=5, stem_stride=2, out=Path("runs/glyph-5/search")),
    "mini-5": _search("mini-5", MINI, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "mini-8": _search("mini-8", MINI, 8, kernel="anil", inner_time=1.0, ridge=1e-5),
    "tiered-5": _search("tiered-5", TIERED, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "tiered-8": _search("tiered-8", TIERED, 8, kernel="anil", inner_time=math.inf, ridge=1e-3),
    "glyph-84": _search("glyph-84", GLYPHS_MINI, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    # The sizes of published cells ± 8 %: mini-5-1, mini-8-1, tiered-5-1 and tiered-8-2.
    "mini-5-halving": _halving("mini-5", MINI, 5, "1620000:1900000"),
    "mini-8-halving": _halving("mini-8", MINI, 8, "2930000:3440000"),
    "tiered-5-halving": _halving("tiered-5", TIERED, 5, "2010000:2360000", **SHORT),
    "tiered-8-halving": _halving("tiered-8", TIERED, 8, "2890000:3390000", **SHORT),
}
