"""Stages on what the host does for the device: waits, and batches that do not fit the memory."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mamltheory.fewshot.execution import Precision
from mamltheory.fewshot.training import start_training, train_epoch
from mamltheory.nas.scoring.condition_number import candidate_conditions
from mamltheory.nas.scoring.operator_gradient import GradientScorer

from .machine import Line, Machine, attempt, largest_difference
from .problems import HARMONIC, TRAINING, cell_network, cell_problem, noise_images

NO_LIMIT = 1 << 50
"""A budget beyond any memory: the device says what fits."""


def check_waits(machine: Machine) -> Iterator[Line]:
    """Waits of a training step, of which there should be none, and of a scored batch, which should wait once."""
    for precision in ("fp32", "tf32", "bf16"):
        what = f"steps of training in {precision}"
        yield attempt(what, partial(training_without_waits, machine, what, precision))
    yield from waits_of_scores(machine)


def training_without_waits(machine: Machine, what: str, precision: Precision) -> Line:
    """Two steps in which torch refuses to wait, after two in which libraries are loaded."""
    network, config = cell_network(2 if machine.fake else 16), replace(TRAINING, precision=precision)
    state = start_training(network, noise_images(16, 3, 16), config, machine.name)
    with ExitStack() as block:

        def stop(step: int, _: int) -> bool:
            if step == 2:
                block.enter_context(refused_waits(machine))
            if step == 4:
                block.close()
            return step == 4

        train_epoch(state, stop)
    return Line(what, "no wait", "", good=True)


def waits_of_scores(machine: Machine) -> Iterator[Line]:
    """Waits of calls with a few candidates and with more: a batch may wait once, whatever its size."""
    problem = cell_problem(machine, 16)
    network, tasks, few, more = problem.network(machine.name), problem.tasks(), 3, 5

    def waits(count: int) -> Counter[str]:
        call = partial(candidate_conditions, network, problem.candidates(count), tasks, HARMONIC, NO_LIMIT)
        call()
        with counted_waits(machine) as found:
            call()
        return found

    one, other = waits(few), waits(more)
    places = ", ".join(f"{count} at {place}" for place, count in other.most_common(5))
    yield Line(f"waits of a call with {few} candidates", one.total())
    yield Line(f"waits of a call with {more} candidates", other.total(), places)
    each = (other.total() - one.total()) / (more - few)
    yield Line("waits for each further candidate", each, "where none is needed", each == 0)


@contextmanager
def refused_waits(machine: Machine) -> Iterator[None]:
    """A block in which a wait of the host is an error; torch names the line, a rehearsal does so at the end."""
    if machine.fake is None:
        with sync_debug_mode("error"):
            yield
        return
    with counted_waits(machine) as found:
        yield
    if found:
        raise RuntimeError(f"the host waits for the device at {', '.join(found)}")


@contextmanager
def counted_waits(machine: Machine) -> Iterator[Counter[str]]:
    """Counts the waits of the host within the block by the line that causes them.

    On a real device a copy to it that is not asynchronous is a wait, too; a rehearsal does not count it.

    Args:
        machine: The device.

    Yields:
        The counts, which are there after the block.
    """
    found: Counter[str] = Counter()
    if machine.fake:
        before = machine.fake.waits.copy()
        yield found
        found.update({place: count for (_, place), count in (machine.fake.waits - before).items()})
        return
    with warnings.catch_warnings(record=True) as told, sync_debug_mode("warn"):
        warnings.simplefilter("always")
        yield found
    told = [each for each in told if "synchronizing CUDA operation" in str(each.message)]
    found.update(f"{'/'.join(Path(each.filename).parts[-3:])}:{each.lineno}" for each in told)


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    """A block in which torch warns of waits ("warn") or refuses them ("error")."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def check_memory(machine: Machine) -> Iterator[Line]:
    """Whether scores halve what they compute together when the memory is full, and find the same numbers."""
    problem = cell_problem(machine, 16)
    network, candidates, tasks = (
        problem.network(machine.name, torch.float64),
        problem.candidates(8),
        problem.tasks(),
    )
    samples = problem.count * problem.ways * 2
    scorer = GradientScorer(problem.scorer(machine.name), chunk=samples)

    def batch() -> tuple[list[float], int]:
        halved: list[None] = []
        args = (network, candidates, tasks, HARMONIC, NO_LIMIT, partial(halved.append, None))
        return [value for value, _ in candidate_conditions(*args)], len(halved)

    def gradient() -> tuple[list[float], int]:
        found = scorer.scores(problem.whole, 0, 0)
        return [math.log(score.condition) for score in found.values()], found[None].halvings

    yield from halved_runs(machine, "a batch of 8 candidates", batch)
    yield from halved_runs(machine, f"a gradient of {samples} samples", gradient)


def halved_runs(machine: Machine, what: str, call: Callable[[], tuple[list[float], int]]) -> Iterator[Line]:
    """A call with all memory, with 60 % of what it needs, and with all again.

    Args:
        machine: The device.
        what: What the call computes.
        call: Returns numbers, and how often it halved what it computes together.

    Yields:
        The lines.
    """
    (usual, before), need = call(), machine.peak(call)
    yield machine.figure(f"{what}: memory", need / 2**30, "GiB")
    kept: list[tuple[str, list[float]]] = []

    def tight() -> Line:
        with machine.only(int(0.6 * need)):
            numbers, halvings = call()
        kept.append(("with little memory", numbers))
        return Line(f"{what}: halvings in 60 % of that", halvings, f"{before} usually", halvings > before)

    yield attempt(f"{what}: halvings in 60 % of that", tight)
    numbers, halvings = call()
    yield Line(f"{what}: halvings with all memory again", halvings, f"{before} usually", halvings == before)
    for when, found in (*kept, ("with all memory again", numbers)):
        gap = largest_difference(found, usual)
        yield Line(f"{what}: numbers {when}", gap, "from the usual ones, at most 0.01", gap <= 0.01)
