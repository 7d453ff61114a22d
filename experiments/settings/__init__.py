"""The settings of every command: frozen dataclasses whose docstrings are the command line's help.

Nothing here imports torch, so that help and mistakes answer at once. A wrong combination is refused when
the settings are made, before any computation. The numbers of a command depend on its settings alone.
"""

from experiments.settings.benchmark import Benchmark
from experiments.settings.cell import PublishedCells
from experiments.settings.comparison import Protocols
from experiments.settings.data import Data
from experiments.settings.evaluate import Evaluate
from experiments.settings.meta_train import MetaTrain
from experiments.settings.network import EMBEDDED_DATA, Network, shares_of
from experiments.settings.predict import Predict
from experiments.settings.search import Search
from experiments.settings.start import Demo, Doctor, Glyphs
from experiments.settings.studies import Correlation, Stability
from experiments.settings.table import Table
from experiments.settings.theory import (
    Bounds,
    Convergence,
    Drift,
    Equivalence,
    Lipschitz,
    Plateau,
    Theory,
    Widths,
)
from experiments.settings.train import Train
