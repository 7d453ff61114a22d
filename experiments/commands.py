"""The list of commands. A new one is a dataclass in the ``settings`` of its folder, a function, and a line here.

Nothing here imports torch, so that help and mistakes answer at once.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .benchmarks.settings import Benchmark
from .data.settings import Data, Glyphs
from .gpu_check.settings import GpuCheck
from .pages.settings import RunReport
from .program import PACKAGE
from .search.settings import SEARCH, Protocols, Search
from .settings import Demo, Doctor, PublishedCells
from .studies.settings import CORRELATION, STABILITY, TABULATE, Correlation, Stability, Tabulate
from .tables.settings import TABLE, Table
from .theory.settings import (
    CONVERGENCE,
    DRIFT,
    EQUIVALENCE,
    Bounds,
    Convergence,
    Drift,
    Ensemble,
    Equivalence,
    Laziness,
    Lipschitz,
    Plateau,
    Verify,
)
from .training.settings import EVALUATE, META_TRAIN, TRAIN, Evaluate, MetaTrain, Predict, Train


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        settings: The dataclass of its settings.
        function: "module:name" of the function, below this package, that takes the settings and returns an exit code
            or None; the module is imported only when the command runs.
        group: The heading in the overview.
        presets: Settings by name.
        ranks: Whether the command uses the processes of torchrun; rank 0 alone calls the function.
        positional: The setting that the first word after the command gives without a flag.
        verb: A word that is allowed before it.
        folders: The settings that name folders that the command writes to.
        results: Those of ``folders`` that hold figures and tables and no run; commands may share them.
    """

    settings: type
    function: str
    group: str
    presets: Mapping[str, Any] = field(default_factory=dict)
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
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


START, THEORY, CELLS = "Start here", "The theory, verified", "Cells: search, train, evaluate"
SPEED = "How fast"
OUT = ("out",)

COMMANDS = {
    "demo": Command(Demo, "demo:run_demo", START, results=OUT),
    "doctor": Command(Doctor, "doctor:print_environment", START),
    "convergence": Command(
        Convergence, "theory.convergence:plot_convergence", THEORY, CONVERGENCE, results=OUT
    ),
    "bounds": Command(Bounds, "theory.bounds:plot_bounds", THEORY, results=OUT),
    "drift": Command(Drift, "theory.drift:plot_drift", THEORY, DRIFT, results=OUT),
    "lipschitz": Command(Lipschitz, "theory.lipschitz:plot_lipschitz", THEORY, results=OUT),
    "equivalence": Command(
        Equivalence, "theory.equivalence:plot_equivalence", THEORY, EQUIVALENCE, results=OUT
    ),
    "plateau": Command(Plateau, "theory.plateau:plot_plateau", THEORY, results=OUT),
    "ensemble": Command(Ensemble, "theory.ensemble:plot_ensemble", THEORY, results=OUT),
    "laziness": Command(Laziness, "theory.laziness:plot_laziness", THEORY, results=OUT),
    "verify": Command(Verify, "theory.verify:verify_network", THEORY, positional="network", results=OUT),
    "benchmark": Command(Benchmark, "benchmarks.benchmark:run_benchmark", SPEED, results=("out", "runs")),
    "gpu-check": Command(GpuCheck, "gpu_check.check:run_gpu_check", SPEED, results=OUT),
    "search": Command(Search, "search.search:search_and_draw", CELLS, SEARCH, ranks=True),
    "protocols": Command(Protocols, "search.comparison:compare_protocols", CELLS, results=OUT),
    "cell": Command(PublishedCells, "genotypes:write_published_cell", CELLS, positional="name", folders=()),
    "train": Command(Train, "training.train:train_and_draw", CELLS, TRAIN),
    "meta-train": Command(MetaTrain, "training.meta_train:meta_train", CELLS, META_TRAIN),
    "evaluate": Command(Evaluate, "training.evaluate:print_evaluation", CELLS, EVALUATE),
    "predict": Command(Predict, "training.predict:write_predictions", CELLS),
    "table": Command(Table, "tables.table:make_table", CELLS, TABLE, results=OUT),
    "correlation": Command(
        Correlation, "studies.correlation:study_correlation", CELLS, CORRELATION, results=OUT
    ),
    "tabulate": Command(Tabulate, "studies.tabulate:tabulate_cells", CELLS, TABULATE, ranks=True),
    "stability": Command(Stability, "studies.stability:study_stability", CELLS, STABILITY, results=OUT),
    "report": Command(RunReport, "pages.report:write_page", CELLS, positional="runs", folders=()),
    "data": Command(Data, "data.check:check_data", CELLS, positional="path", verb="check", results=OUT),
    "glyphs": Command(Glyphs, "data.check:draw_glyphs", CELLS, results=OUT),
}
