"""Scores without common random numbers, as the authors' program takes them.

Every candidate, in every repeat, gets a batch of tasks of its own, and the supernet is scored anew beside it, with
another random head; weights stay those of the round. Its linear regions are counted in thin networks and on patches
that it shares with the supernet and with no other candidate. The difference of a pair then contains the noise of two
heads, and the differences of two candidates that of two batches.

Draws follow from (seed, round, repeat, candidate). Pairs that are asked for together go through the network together,
each network with its own images and head, and the two of a pair are counted in one thin network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from torch import nn

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, initialise_layer, supernet
from mamltheory.nas.operations import Head
from mamltheory.nas.regions import region_counts
from mamltheory.nas.scorer import CellScorer
from mamltheory.nas.scores import Failure, Score, own_conditions
from mamltheory.nas.search_state import Job
from mamltheory.rng import derived_seed, generator


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
