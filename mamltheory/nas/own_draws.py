"""Scores without common random numbers, as the authors' program takes them.

Every candidate, in every repeat, gets a batch of tasks of its own, and the supernet is scored anew beside it, with
another random head; weights stay those of the round. Its linear regions are counted in thin networks and on patches
that it shares with the supernet and with no other candidate. The difference of a pair then contains the noise of two
heads, and the differences of two candidates that of two batches.
"""

from dataclasses import dataclass
from functools import lru_cache

from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, initialise_layer, supernet
from mamltheory.nas.regions import region_count
from mamltheory.nas.scores import CellScorer, Score, candidate_conditions
from mamltheory.nas.search_state import Job
from mamltheory.rng import derived_seed, generator


@dataclass(frozen=True)
class OwnDraws:
    """(network, job) -> Score on the draws of the job's pair: supernet and candidate, of one repeat."""

    scorer: CellScorer

    def __call__(self, network: Candidates, job: Job) -> Score:
        """Score of the supernet, or of the candidate, of one pair."""
        pair = job.round_index, job.repeat, Candidates().operators().index(job.beside)
        scorer, condition, why, regions = self.scorer, 1.0, None, 1.0
        if scorer.tasks is not None:
            built = self._with_head(job, pair)
            tasks = scorer.tasks(generator(scorer.seed, "own tasks", *pair))
            found = candidate_conditions(built, [network], tasks, scorer.settings, scorer.memory)
            [(condition, why)] = found
        if scorer.patches is not None:
            patches = scorer.patches(generator(scorer.seed, "own patches", *pair))
            thin = derived_seed(scorer.seed, "own thin weights", *pair)
            regions = float(region_count(network, patches, thin))
        return Score(condition, regions, why)

    def _with_head(self, job: Job, pair: tuple[int, int, int]) -> Network:
        """The round's network with the head of the supernet, or of the candidate, of this pair."""
        settings, which = self.scorer.network, "supernet" if job.removed is None else "candidate"
        seed = derived_seed(self.scorer.seed, "score-weights", job.round_index)
        network = _round_network(settings, seed, self.scorer.device)
        stream = generator(self.scorer.seed, f"head of the {which}", *pair)
        initialise_layer(network.classifier, settings.initialisation, stream)
        return network


@lru_cache(maxsize=1)
def _round_network(settings: NetworkSettings, seed: int, device: str) -> Network:
    """The supernet of all operations, kept for the pairs of the round."""
    return supernet(Candidates(), settings, seed).to(device)
