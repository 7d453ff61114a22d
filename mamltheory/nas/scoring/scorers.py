"""The scorers of Algorithm 1 by leave-one-out, with common or with independent random numbers.

All random numbers of a score (weights, head, tasks, patches) follow from the seed and from its job. No score depends on
the order, the chunks or the process in which scores are computed. The scorer by gradient is
:class:`mamltheory.nas.scoring.operator_gradient.GradientScorer`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, supernet
from mamltheory.nas.operations import Head
from mamltheory.nas.scoring.condition_number import candidate_conditions, own_conditions
from mamltheory.nas.scoring.linear_regions import region_counts
from mamltheory.nas.scoring.own_score import OwnScore, own_scores
from mamltheory.nas.scoring.score import Failure, Job, Score, ScoreSettings, jobs_by_repeat
from mamltheory.nas.space import Space
from mamltheory.nas.weights import initialise_layer
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task

Conditions = Iterable[tuple[float, Failure | None]]


@dataclass(frozen=True)
class CellScorer:
    """Leave-one-out with common random numbers: supernet and candidates of one repeat share all draws.

    Attributes:
        network: size of the supernet; its ``classes`` are the ways of the tasks.
        seed: of all draws.
        tasks: draws the tasks of one repeat from a generator. They should not share images: a repeated image makes the
            NTK singular.
        patches: draws the inputs of the region count. Tasks and patches must be functions defined at the top level of
            a module (or ``functools.partial`` of one), so that worker processes can receive them. Either may be None
            when the search does not use the criterion; the score is then constant.
        settings: how a kernel is built and read.
        device: where the networks are run.
        memory: bytes that a batch of candidates, or the graph of a gradient, may hold; None for what fits a CPU or the
            free memory of a GPU (:func:`mamltheory.accelerator.memory_budget`). On a GPU the last bits of scores
            depend on it: a search takes one number for all of its scores.
        own: a user's score in place of the condition number, of the same networks on the same tasks.
    """

    network: NetworkSettings
    seed: int
    tasks: Callable[[torch.Generator], Sequence[Task]] | None = None
    patches: Callable[[torch.Generator], Tensor] | None = None
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    device: str = "cpu"
    memory: int | None = None
    own: OwnScore | None = None

    def __call__(self, candidates: Candidates, jobs: Sequence[Job]) -> dict[Job, Score]:
        """The scores of jobs; see :class:`mamltheory.nas.scoring.score.Scorer`."""
        found: dict[Job, Score] = {}
        for index, asked in jobs_by_repeat(jobs).items():
            scores = self.scores([job.network(candidates) for job in asked], *index)
            found |= zip(asked, scores, strict=True)
        return found

    def scores(self, networks: Sequence[Candidates], round_index: int, repeat: int) -> list[Score]:
        """The scores of several networks on the same draws, in few passes; up to rounding those of each alone.

        Args:
            networks: the networks, as the operations that are alive in each.
            round_index: with ``repeat``, what the draws follow from besides the seed.
            repeat: see ``round_index``.

        Returns:
            One score per network.
        """
        index = (round_index, repeat)
        conditions: Conditions = [(1.0, None)] * len(networks)
        halved: list[None] = []
        with _beside(self.device, partial(self._regions, networks, index)) as regions:
            if self.tasks is not None:
                seed = derived_seed(self.seed, "score-weights", *index)
                tasks = self.tasks(generator(self.seed, "score-tasks", *index))
                if self.own is not None:
                    found = own_scores(self.own, _supernets(networks, self.network, seed), tasks, self.device)
                    return _scores([(each, None) for each in found], regions(), 0)
                network = _whole_supernet(self.network, seed, self.device, networks[0].space)
                conditions = candidate_conditions(
                    network, networks, tasks, self.settings, self.memory, partial(halved.append, None)
                )
            return _scores(conditions, regions(), len(halved))

    def _regions(self, networks: Sequence[Candidates], index: tuple[int, int]) -> list[int]:
        if self.patches is None:
            return [1] * len(networks)
        patches = self.patches(generator(self.seed, "score-patches", *index))
        return region_counts(networks, patches, derived_seed(self.seed, "thin-weights", *index))


@dataclass(frozen=True)
class IndependentDraws:
    """Leave-one-out with independent random numbers: each candidate and its supernet are a pair with its own draws.

    Both networks of a pair share tasks and patches and have a head each; the weights are those of the round.

    Attributes:
        scorer: size, settings and samplers.
    """

    scorer: CellScorer

    def __call__(self, candidates: Candidates, jobs: Sequence[Job]) -> dict[Job, Score]:
        """The scores of jobs of one round, in few passes; see :class:`mamltheory.nas.scoring.score.Scorer`."""
        if len(rounds := sorted({job.round_index for job in jobs})) > 1:
            raise ConfigurationError(
                f"the jobs are of rounds {rounds}, which have different weights: ask for each round separately"
            )
        if self.scorer.own is not None:
            raise ConfigurationError(
                "an own score has common random numbers: leave common_random_numbers True"
            )
        networks = [job.network(candidates) for job in jobs]
        halved: list[None] = []
        with _beside(self.scorer.device, partial(self._regions, networks, jobs)) as regions:
            conditions = self._conditions(networks, jobs, partial(halved.append, None))
            scores = _scores(conditions, regions(), len(halved))
        return dict(zip(jobs, scores, strict=True))

    def _conditions(
        self, networks: Sequence[Candidates], jobs: Sequence[Job], halved: Callable[[], None]
    ) -> Conditions:
        scorer = self.scorer
        if scorer.tasks is None:
            return [(1.0, None)] * len(jobs)
        space = networks[0].space
        pairs = [_pair(job, space) for job in jobs]
        drawn = {pair: scorer.tasks(generator(scorer.seed, "own tasks", *pair)) for pair in set(pairs)}
        seed = derived_seed(scorer.seed, "score-weights", jobs[0].round_index)
        network = _whole_supernet(scorer.network, seed, scorer.device, space)
        heads = [self._head(job, pair, network.classifier) for job, pair in zip(jobs, pairs, strict=True)]
        tasks = [drawn[pair] for pair in pairs]
        return own_conditions(network, networks, tasks, heads, scorer.settings, scorer.memory, halved)

    def _head(self, job: Job, pair: tuple[int, int, int], like: nn.Linear) -> nn.Linear:
        """The head of the supernet, or of the candidate, of a pair."""
        which = "supernet" if job.removed is None else "candidate"
        head = Head(like.in_features, like.out_features)
        stream = generator(self.scorer.seed, f"head of the {which}", *pair)
        initialise_layer(head, self.scorer.network.initialisation, stream)
        return head

    def _regions(self, networks: Sequence[Candidates], jobs: Sequence[Job]) -> list[int]:
        scorer, counts = self.scorer, [1] * len(jobs)
        if scorer.patches is None:
            return counts
        members: dict[tuple[int, int, int], list[int]] = {}
        for place, job in enumerate(jobs):
            members.setdefault(_pair(job, networks[0].space), []).append(place)
        for pair, places in members.items():
            patches = scorer.patches(generator(scorer.seed, "own patches", *pair))
            thin = derived_seed(scorer.seed, "own thin weights", *pair)
            found = region_counts([networks[place] for place in places], patches, thin)
            for place, count in zip(places, found, strict=True):
                counts[place] = count
        return counts


@contextmanager
def _beside(device: str, work: Callable[[], list[int]]) -> Iterator[Callable[[], list[int]]]:
    """A function that returns the result of work on the CPU, which a thread does while a GPU is busy."""
    if torch.device(device).type != "cuda":
        yield work
        return
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work).result


def _pair(job: Job, space: Space) -> tuple[int, int, int]:
    """What the draws of a pair follow from: round, repeat, and the candidate's number."""
    if job.pair is None:
        raise ConfigurationError(f"{job} names no pair: give Job.pair, or use CellScorer")
    return job.round_index, job.repeat, Candidates.of(space).operators().index(job.pair)


def _scores(conditions: Conditions, regions: Iterable[int], halvings: int) -> list[Score]:
    """One score per network; the first one says how often the batch was halved."""
    rows = enumerate(zip(conditions, regions, strict=True))
    return [Score(c, float(r), why, halvings if i == 0 else 0) for i, ((c, why), r) in rows]


def _supernets(networks: Sequence[Candidates], size: NetworkSettings, seed: int) -> Iterator[Network]:
    """Each of the networks with no other operations than its own, built when it is asked for."""
    return (supernet(each, size, seed) for each in networks)


@lru_cache(maxsize=2)
def _whole_supernet(settings: NetworkSettings, seed: int, device: str, space: Space) -> Network:
    """The supernet of all operations, kept for the other networks that have the same weights."""
    return supernet(Candidates.of(space), settings, seed).to(device, non_blocking=True)
