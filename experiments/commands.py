"""The list of commands. A new one is a dataclass in the ``settings`` of its folder, a function, and a line here.

Nothing here imports torch, so that help and mistakes answer at once.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from experiments.benchmarks.settings import Benchmark
from experiments.data.settings import Data, Glyphs
from experiments.search.settings import SEARCH, Protocols, Search
from experiments.settings import Demo, Doctor, PublishedCells
from experiments.studies.settings import CORRELATION, STABILITY, Correlation, Stability
from experiments.tables.settings import TABLE, Table
from experiments.theory.settings import (
    CONVERGENCE,
    DRIFT,
    EQUIVALENCE,
    Bounds,
    Convergence,
    Drift,
    Equivalence,
    Lipschitz,
    Plateau,
)
from experiments.training.evaluation_settings import EVALUATE, Evaluate, Predict
from experiments.training.settings import META_TRAIN, TRAIN, MetaTrain, Train


@dataclass(frozen=True)
class Command:
    """A command: its settings, the function "module:name" that runs them, and its named settings.

    The function takes the settings and returns an exit code or None; its module is imported only when the
    command runs. ranks: it spreads over the processes of torchrun, where rank 0 alone calls the function.
    positional: the setting that the first word after the command may give without its flag.
    verb: a word that may stand before it. folders: settings that name what it writes to. results: those of them in
    which it has no run, but figures and tables that it may share with other commands.
    """

    settings: type
    function: str
    group: str
    presets: Mapping[str, object] = field(default_factory=dict)
    ranks: bool = False
    positional: str | None = None
    verb: str | None = None
    folders: tuple[str, ...] = ("out", "runs", "work", "prepare")
    results: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the settings' docstring."""
        return (self.settings.__doc__ or "").strip().splitlines()[0]

    def load(self) -> Callable[[object], int | None]:
        """Import the function that runs this command."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)


START, THEORY, CELLS = "Start here", "The theory, verified", "Cells: search, train, evaluate"
SPEED = "How fast"
OUT = ("out",)

COMMANDS = {
    "demo": Command(Demo, "experiments.demo:run", START, results=OUT),
    "doctor": Command(Doctor, "experiments.doctor:run", START),
    "convergence": Command(
        Convergence, "experiments.theory.convergence:run", THEORY, CONVERGENCE, results=OUT
    ),
    "bounds": Command(Bounds, "experiments.theory.bounds:run", THEORY, results=OUT),
    "drift": Command(Drift, "experiments.theory.drift:run", THEORY, DRIFT, results=OUT),
    "lipschitz": Command(Lipschitz, "experiments.theory.lipschitz:run", THEORY, results=OUT),
    "equivalence": Command(
        Equivalence, "experiments.theory.equivalence:run", THEORY, EQUIVALENCE, results=OUT
    ),
    "plateau": Command(Plateau, "experiments.theory.plateau:run", THEORY, results=OUT),
    "benchmark": Command(Benchmark, "experiments.benchmarks.run:run", SPEED, results=("out", "runs")),
    "search": Command(Search, "experiments.search.run:run", CELLS, SEARCH, ranks=True),
    "protocols": Command(Protocols, "experiments.search.comparison:run", CELLS, results=OUT),
    "cell": Command(PublishedCells, "experiments.genotypes:run", CELLS, positional="name", folders=()),
    "train": Command(Train, "experiments.training.train:run", CELLS, TRAIN),
    "meta-train": Command(MetaTrain, "experiments.training.meta_train:run", CELLS, META_TRAIN),
    "evaluate": Command(Evaluate, "experiments.training.evaluate:run", CELLS, EVALUATE),
    "predict": Command(Predict, "experiments.training.predict:run", CELLS),
    "table": Command(Table, "experiments.tables.table:run", CELLS, TABLE, results=OUT),
    "correlation": Command(
        Correlation, "experiments.studies.correlation:run", CELLS, CORRELATION, results=OUT
    ),
    "stability": Command(Stability, "experiments.studies.stability:run", CELLS, STABILITY, results=OUT),
    "data": Command(Data, "experiments.data.check:run", CELLS, positional="path", verb="check", results=OUT),
    "glyphs": Command(Glyphs, "experiments.data.glyph_sheet:run", CELLS, results=OUT),
}
