"""The scorer of the search: (candidates, round, repeat) -> C_N and R_N, as Algorithm 1 asks for them.

All random numbers of a score (weights, head, tasks, patches) depend on (seed, round, repeat) and not on the
candidate: supernet and candidates are compared on the same draws, and no score depends on the order, the chunks or
the process in which scores are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, initialise_layer, supernet
from mamltheory.nas.operations import Head
from mamltheory.nas.scoring.candidate_batch import MEMORY
from mamltheory.nas.scoring.condition_number import candidate_conditions, own_conditions
from mamltheory.nas.scoring.linear_regions import region_counts
from mamltheory.nas.scoring.score import Failure, Job, Score, ScoreSettings
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task


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


@dataclass(frozen=True)
class OwnDraws:
    """(network, job) -> Score on the draws of the job's pair: supernet and candidate, of one repeat."""

    scorer: CellScorer

    def __call__(self, network: Candidates, job: Job) -> Score:
        """Score of the supernet, or of the candidate, of one pair."""
        return self.batch([network], [job])[0]

    def batch(self, networks: Sequence[Candidates], jobs: Sequence[Job]) -> list[Score]:
        """Scores for many jobs of one round, in a few passes; the same as one by one up to rounding.

        Raises ConfigurationError for jobs of several rounds, whose weights differ.
        """
        if len(rounds := sorted({job.round_index for job in jobs})) > 1:
            raise ConfigurationError(
                f"the jobs are of rounds {rounds}: a batch shares the weights of one round; ask for each by itself"
            )
        halved: list[None] = []
        conditions = self._conditions(networks, jobs, halved)
        scored = zip(conditions, self._regions(networks, jobs), strict=True)
        return [
            Score(c, float(r), why, len(halved) if i == 0 else 0) for i, ((c, why), r) in enumerate(scored)
        ]

    def _conditions(
        self, networks: Sequence[Candidates], jobs: Sequence[Job], halved: list[None]
    ) -> list[tuple[float, Failure | None]]:
        scorer = self.scorer
        if scorer.tasks is None:
            return [(1.0, None)] * len(jobs)
        pairs = [_pair(job) for job in jobs]
        drawn = {pair: scorer.tasks(generator(scorer.seed, "own tasks", *pair)) for pair in set(pairs)}
        seed = derived_seed(scorer.seed, "score-weights", jobs[0].round_index)
        network = _round_network(scorer.network, seed, scorer.device)
        return own_conditions(
            network,
            networks,
            [drawn[pair] for pair in pairs],
            [self._head(job, network.classifier) for job in jobs],
            scorer.settings,
            scorer.memory,
            partial(halved.append, None),
        )

    def _head(self, job: Job, like: nn.Linear) -> nn.Linear:
        """The head of the supernet, or of the candidate, of a pair."""
        which = "supernet" if job.removed is None else "candidate"
        head = Head(like.in_features, like.out_features)
        stream = generator(self.scorer.seed, f"head of the {which}", *_pair(job))
        initialise_layer(head, self.scorer.network.initialisation, stream)
        return head.to(like.weight.device)

    def _regions(self, networks: Sequence[Candidates], jobs: Sequence[Job]) -> list[int]:
        scorer, counts = self.scorer, [1] * len(jobs)
        if scorer.patches is None:
            return counts
        members: dict[tuple[int, int, int], list[int]] = {}
        for place, job in enumerate(jobs):
            members.setdefault(_pair(job), []).append(place)
        for pair, places in members.items():
            patches = scorer.patches(generator(scorer.seed, "own patches", *pair))
            thin = derived_seed(scorer.seed, "own thin weights", *pair)
            found = region_counts([networks[place] for place in places], patches, thin)
            for place, count in zip(places, found, strict=True):
                counts[place] = count
        return counts


def _pair(job: Job) -> tuple[int, int, int]:
    """What the draws of a pair follow from: round, repeat, and the candidate's number."""
    return job.round_index, job.repeat, Candidates().operators().index(job.beside)


@lru_cache(maxsize=1)
def _round_network(settings: NetworkSettings, seed: int, device: str) -> Network:
    """The supernet of all operations, kept for the pairs of the round."""
    return supernet(Candidates(), settings, seed).to(device)
