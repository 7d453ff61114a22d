"""The settings of the cell search."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings.network import Network


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
