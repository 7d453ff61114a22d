"""The settings of the comparison of search protocols."""

from dataclasses import dataclass
from pathlib import Path

from experiments.requirements import require, require_at_least
from experiments.settings.network import Network
from experiments.settings.search import Search


@dataclass(frozen=True)
class Protocols(Network):
    """Do independent searches find the same cell? Whole searches by every protocol, and what they cost."""

    channels: int = 8
    """Channels C of the first cells; doubled at each reduction."""
    cells: int = 3
    """Number of stacked cells; reductions at one and two thirds."""
    stem_stride: int = 2
    """Stride of the stem convolution; 2 halves the image first and costs a quarter."""
    seed: int = 1
    """Seed of the first search of each protocol; the others follow."""
    paper: int = 2
    """Searches by the protocol paper, with the kernel of summed outputs."""
    released: int = 2
    """Searches by the protocol released."""
    stable: int = 4
    """Searches by the protocol stable."""
    measure: bool = True
    """Run the searches that are missing; without, report on the rounds that lie in the run folders."""
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
        """The searches of every protocol that has some; they differ in their seeds alone."""
        size = {
            name: getattr(self, name)
            for name in (
                "data",
                "split",
                "split_seed",
                "image_size",
                "channels",
                "cells",
                "stem_stride",
                "device",
                "jobs",
            )
        }
        return {
            name: [
                Search(protocol=name, outputs="sum", seed=seed, out=self.runs / f"{name}-{seed}", **size)
                for seed in range(self.seed, self.seed + getattr(self, name))
            ]
            for name in ("paper", "released", "stable")
            if getattr(self, name)
        }
