"""Stages on the device itself, and on the bits of equal runs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.execution import Precision
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    MetaTrainState,
    meta_state_tensors,
    meta_train_step,
    restore_meta_training,
    start_meta_training,
)
from mamltheory.fewshot.training import TrainState, start_training, train_epoch
from mamltheory.fewshot.training_state import restore, state_tensors
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.runtime.device import deterministic

from .machine import Line, Machine, attempt
from .problems import TRAINING, cell_network, cell_problem, noise_images

Numbers = Mapping[str, Any]
"""Tensors and numbers by name."""
Run = Callable[[], Numbers]


def describe_device(machine: Machine) -> Iterator[Line]:
    """Name, memory and libraries, and that a product and a convolution run."""
    if machine.fake is None:
        about = torch.cuda.get_device_properties(machine.device)
        yield Line("device", about.name)
        yield Line("compute capability", f"{about.major}.{about.minor}")
        yield Line("multiprocessors", about.multi_processor_count)
        yield Line("memory", about.total_memory / 2**30, "GiB")
        yield Line("memory that is free", machine.free() / 2**30, "GiB")
    yield Line("CUDA of torch", torch.version.cuda or "none")
    yield Line("cuDNN", torch.backends.cudnn.version() if machine.fake is None else "none")
    yield Line("bfloat16", "yes" if torch.cuda.is_bf16_supported() else "no")
    x = torch.ones(2, 3, 8, 8, device=machine.device)
    total = float((x @ x).sum() + torch.nn.functional.conv2d(x, x).sum())
    yield Line("a product and a convolution", total, "", total == 2 * 3 * 64 * 8 + 4 * 192)


def check_bits(machine: Machine) -> Iterator[Line]:
    """Whether equal runs have equal bits, with the deterministic algorithms that the search takes, and without them."""
    with deterministic(machine.device):
        for what, pair in equal_runs(machine).items():
            yield attempt(what, partial(compared_bits, what, *pair))
    what = "training in fp32, twice, without deterministic algorithms"
    usual = partial(trained, machine, "fp32")
    yield attempt(what, lambda: compared_bits(what, usual, usual)._replace(good=None))


def compared_bits(what: str, first: Run, second: Run) -> Line:
    """How many results of two runs differ in a bit."""
    ours, theirs = first(), second()
    other = [name for name, value in ours.items() if not equal_bits(value, theirs[name])]
    value = f"{len(other)} of {len(ours)} differ" if other else f"all {len(ours)} are equal"
    return Line(what, value, "", not other)


def equal_bits(one: Tensor | float, other: Tensor | float) -> bool:
    """Whether two tensors, or two numbers, are equal."""
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def equal_runs(machine: Machine) -> dict[str, tuple[Run, Run]]:
    """Pairs of runs whose results should have equal bits."""
    problem = cell_problem(machine, 16)
    scorer = problem.scorer(machine.name)

    def scores() -> Numbers:
        found = scorer.scores(problem.candidates(3), 0, 0)
        return {str(i): score.condition for i, score in enumerate(found)}

    def gradient() -> Numbers:
        found = GradientScorer(scorer).scores(problem.whole, 0, 0)
        return {str(operator): score.condition for operator, score in found.items()}

    pairs = {"scores of a batch, twice": (scores, scores), "scores by gradient, twice": (gradient, gradient)}
    for p in ("fp32", "tf32", "bf16", "fp16"):
        run, stopped = partial(trained, machine, p), partial(trained, machine, p, stop=True)
        pairs |= {
            f"training in {p}, twice": (run, run),
            f"training in {p}, stopped and resumed": (run, stopped),
        }
    meta, stopped = partial(meta_trained, machine), partial(meta_trained, machine, stop=True)
    return {
        **pairs,
        "meta-training, twice": (meta, meta),
        "meta-training, stopped and resumed": (meta, stopped),
    }


def trained(machine: Machine, precision: Precision, stop: bool = False) -> Numbers:
    """The state after two epochs, the second of which may be stopped, saved and taken up by another network."""

    def begin(seed: int) -> TrainState:
        config = replace(TRAINING, precision=precision)
        return start_training(
            cell_network(2 if machine.fake else 16, seed), noise_images(16, 3, 8), config, machine.name
        )

    state, _ = train_epoch(begin(0))
    if stop:
        state, _ = train_epoch(state, lambda step, _: step == 1)
        state = restore(begin(1), *state_tensors(state))
    return state_tensors(train_epoch(state)[0])[0]


def meta_trained(machine: Machine, stop: bool = False) -> Numbers:
    """The state after two steps of MAML, between which it may be saved and taken up by another network."""
    config = MetaTrainConfig(ways=2, queries=1, tasks=2, inner_rate=0.05)

    def begin(seed: int) -> MetaTrainState:
        return start_meta_training(
            conv4(2, 16, seed, channels=4), noise_images(16, 3, 8), config, machine.name
        )

    state, _ = meta_train_step(begin(0))
    if stop:
        state = restore_meta_training(begin(1), *meta_state_tensors(state))
    return meta_state_tensors(meta_train_step(state)[0])[0]
