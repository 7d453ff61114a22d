"""The scorer of the search: (candidates, round, repeat) -> C_N and R_N, as Algorithm 1 asks for them.

All random numbers of a score (weights, head, tasks, patches) depend on (seed, round, repeat) and not on the
candidate: supernet and candidates are compared on the same draws, and no score depends on the order, the chunks or
the process in which scores are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor

from mamltheory.nas.batched import MEMORY
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, supernet
from mamltheory.nas.regions import region_counts
from mamltheory.nas.scores import Failure, Score, ScoreSettings, candidate_conditions
from mamltheory.rng import derived_seed, generator
from mamltheory.types import Task


@lru_cache(maxsize=2)
def _whole_supernet(settings: NetworkSettings, seed: int, device: str) -> Network:
    """The supernet of all operations, kept for the other candidates of the repeat."""
    return supernet(Candidates(), settings, seed).to(device)


@dataclass(frozen=True)
class CellScorer:
    """(candidates, round, repeat) -> Score: what Algorithm 1 asks for, as a value that can be sent to a
    process.

    network: size of the supernet; its ``classes`` are the ways of the tasks.
    tasks: draws the tasks of one repeat from a generator. patches: draws the inputs of the region count.
    Both must be functions defined at the top level of a module (or ``functools.partial`` of one), so that
    worker processes can receive them. Either may be None when the search does not use the criterion; the
    score is then constant. The tasks of a repeat should not share images: a repeated image makes the NTK
    singular.
    memory: bytes that a batch of candidates may hold.
    """

    network: NetworkSettings
    seed: int
    tasks: Callable[[torch.Generator], Sequence[Task]] | None = None
    patches: Callable[[torch.Generator], Tensor] | None = None
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    device: str = "cpu"
    memory: int = MEMORY

    def __call__(self, candidates: Candidates, round_index: int, repeat: int) -> Score:
        """Score of one supernet on the draws of (round, repeat)."""
        return self.batch([candidates], round_index, repeat)[0]

    def batch(self, candidates: Sequence[Candidates], round_index: int, repeat: int) -> list[Score]:
        """Scores of many supernets on the same draws, in a few passes; the same as one by one up to rounding."""
        index, count = (round_index, repeat), len(candidates)
        conditions: list[tuple[float, Failure | None]] = [(1.0, None)] * count
        halved: list[None] = []
        regions = [1] * count
        if self.tasks is not None:
            seed = derived_seed(self.seed, "score-weights", *index)
            network = _whole_supernet(self.network, seed, self.device)
            tasks = self.tasks(generator(self.seed, "score-tasks", *index))
            conditions = candidate_conditions(
                network, candidates, tasks, self.settings, self.memory, partial(halved.append, None)
            )
        if self.patches is not None:
            patches = self.patches(generator(self.seed, "score-patches", *index))
            seed = derived_seed(self.seed, "thin-weights", *index)
            regions = region_counts(candidates, patches, seed)
        times = (len(halved) if i == 0 else 0 for i in range(count))
        scored = zip(conditions, regions, times, strict=True)
        return [Score(c, float(r), why, again) for (c, why), r, again in scored]
