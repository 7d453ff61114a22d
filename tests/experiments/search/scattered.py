"""Made-up scores of a search: operations differ, and repeats scatter about them."""

import math

from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring.score import Score
from mamltheory.rng import numpy_generator
from tests.reference.nas_toy import repeat_by_repeat

SETTINGS = SearchSettings(criteria=("condition",), estimator="gradient", repeats=4, inputs="two")


@repeat_by_repeat
def scored(candidates, round_index, repeat):
    """Operations differ, and repeats scatter about them; one operator cannot be scored in round 2."""
    random = numpy_generator(0, "made-up scores", round_index, repeat)
    found = {None: Score(1.0, 1.0)}
    for operator in candidates.operators():
        size = 0.5 * OPERATIONS.index(operator.operation) + random.normal()
        found[operator] = Score(math.exp(-size), 1.0)
    if round_index == 1:
        found[candidates.operators()[0]] = Score(math.inf, 1.0)
    return found
