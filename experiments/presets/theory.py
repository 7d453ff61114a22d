"""Named settings of the theory's commands: wide networks."""

from pathlib import Path

from experiments.settings import Convergence, Drift, Equivalence

# Wide networks: the factored fast weights hold one copy of the parameters, 0.5 GB at l = 8192, whatever the tasks.
_WIDE = {"widths": (64, 256, 1024, 4096, 8192), "seeds": 3, "steps": 50}
CONVERGENCE = {"wide": Convergence(**_WIDE, out=Path("runs/convergence-wide"))}
DRIFT = {"wide": Drift(**_WIDE, out=Path("runs/drift-wide"))}
EQUIVALENCE = {"wide": Equivalence(**_WIDE, out=Path("runs/equivalence-wide"))}
