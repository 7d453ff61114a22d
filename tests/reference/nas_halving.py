"""Successive halving on a table of all measures: sort every rung, and cut it."""

import math


def halving_survivors(measures, count, rungs):
    """The candidates of every rung, the best first.

    measures: (candidate, epochs) -> Measured; count: number of candidates; rungs: as in the search.
    """
    alive, found = list(range(count)), []
    for rung in rungs:
        rows = []
        for place, candidate in enumerate(alive[: rung.candidates]):
            measured = measures[candidate, rung.epochs]
            value = measured.loss if rung.by == "loss" else -measured.accuracy
            lost = measured.diverged or not math.isfinite(value)
            rows.append((lost, 0.0 if lost else value, place, candidate))
        rows.sort()
        alive = [candidate for *_, candidate in rows]
        found.append(alive)
    return found
