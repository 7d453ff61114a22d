"""The list of commands. A new one is a dataclass in ``settings`` and a line here."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from experiments import presets, settings


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
    "demo": Command(settings.Demo, "experiments.demo:run", START, results=OUT),
    "doctor": Command(settings.Doctor, "experiments.doctor:run", START),
    "convergence": Command(
        settings.Convergence, "experiments.theory.convergence:run", THEORY, presets.CONVERGENCE, results=OUT
    ),
    "bounds": Command(settings.Bounds, "experiments.theory.bounds:run", THEORY, results=OUT),
    "drift": Command(settings.Drift, "experiments.theory.drift:run", THEORY, presets.DRIFT, results=OUT),
    "lipschitz": Command(settings.Lipschitz, "experiments.theory.lipschitz:run", THEORY, results=OUT),
    "equivalence": Command(
        settings.Equivalence, "experiments.theory.equivalence:run", THEORY, presets.EQUIVALENCE, results=OUT
    ),
    "plateau": Command(settings.Plateau, "experiments.theory.plateau:run", THEORY, results=OUT),
    "benchmark": Command(
        settings.Benchmark, "experiments.benchmarks.run:run", SPEED, results=("out", "runs")
    ),
    "search": Command(settings.Search, "experiments.search.run:run", CELLS, presets.SEARCH, ranks=True),
    "protocols": Command(settings.Protocols, "experiments.search.comparison:run", CELLS, results=OUT),
    "cell": Command(
        settings.PublishedCells, "experiments.genotypes:run", CELLS, positional="name", folders=()
    ),
    "train": Command(settings.Train, "experiments.training.train:run", CELLS, presets.TRAIN),
    "meta-train": Command(
        settings.MetaTrain, "experiments.training.meta_train:run", CELLS, presets.META_TRAIN
    ),
    "evaluate": Command(settings.Evaluate, "experiments.training.evaluate:run", CELLS, presets.EVALUATE),
    "predict": Command(settings.Predict, "experiments.training.predict:run", CELLS),
    "table": Command(settings.Table, "experiments.tables.table:run", CELLS, presets.TABLE, results=OUT),
    "correlation": Command(
        settings.Correlation, "experiments.studies.correlation:run", CELLS, presets.CORRELATION, results=OUT
    ),
    "stability": Command(
        settings.Stability, "experiments.studies.stability:run", CELLS, presets.STABILITY, results=OUT
    ),
    "data": Command(
        settings.Data, "experiments.data.check:run", CELLS, positional="path", verb="check", results=OUT
    ),
    "glyphs": Command(settings.Glyphs, "experiments.data.glyph_sheet:run", CELLS, results=OUT),
}
