"""Stages that measure: scores, convolutions, training, kernels of the device, and a whole search."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mamltheory.fewshot.execution import Precision
from mamltheory.fewshot.training import TrainConfig, TrainState, start_training, train_epoch
from mamltheory.kernels.layers import convolutions
from mamltheory.kernels.layers.rules import layer_gradients
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Candidates, published_genotypes
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.nas.scoring.condition_number import candidate_conditions
from mamltheory.nas.scoring.linear_regions import random_patches, region_counts
from mamltheory.nas.scoring.score import Job, Score, ScoreSettings
from mamltheory.nas.search_scorer import PATCH_IMAGES, PATCHES
from mamltheory.rng import generator

from ..search.search import CHUNK, rules_of, score_chunk, scorer_of
from ..search.settings import SEARCH
from ..training.settings import TRAIN
from .machine import Line, Machine, attempt
from .problems import TRAINING, cell_network, cell_problem, noise_images, noise_tasks

GOAL = 120.0
"""Seconds of a search on one GPU that the paper reports."""
TOP = 10
"""Kernels that are listed."""
LAYERS = ((48, 32, (1, 5)), (96, 16, (5, 1)), (64, 32, (3, 3)))
"""Channels, side of the images and kernel of dense convolutions: those of large cells, and one of a user's network."""
LATE = Line("more", "left out: too little time is left")
PAPER = ScoreSettings(outputs="sum")


def noise_patches(random: torch.Generator) -> torch.Tensor:
    """Inputs of the count of regions, as many as in the search."""
    return random_patches(torch.randn(PATCH_IMAGES, 3, 32, 32, generator=random), PATCHES, random)


def time_batches(machine: Machine) -> Iterator[Line]:
    """Milliseconds and memory of condition numbers by the candidates of a call, and of regions on the CPU."""
    problem, last = cell_problem(machine), 0.0
    network, tasks = problem.network(machine.name), problem.tasks()
    for count in (1, 2) if machine.fake else (1, 4, 16, 64):
        if 8 * last > machine.left:
            yield LATE
            break
        some, what = problem.candidates(count), f"a condition number, {count} in a call"
        call = partial(candidate_conditions, network, some, tasks, PAPER, machine.free() // 2)
        yield machine.figure(what, machine.peak(call) / 2**30, "GiB at most")
        last = machine.seconds_of(call)
        yield machine.figure(what, 1000 * last / count, "ms each")
    patches = noise_patches(generator(0, "gpu-check patches"))[: 50 if machine.fake else PATCHES]
    some = problem.candidates(2 if machine.fake else CHUNK)
    seconds = machine.seconds_of(lambda: region_counts(some, patches, 0))
    what = f"a count of regions on the CPU, {len(some)} in a call"
    yield machine.figure(what, 1000 * seconds / len(some), "ms each")


def time_convolutions(machine: Machine) -> Iterator[Line]:
    """Per-sample gradients of dense convolutions by groups and by taps, and the number that chooses between them."""
    most, limits = 0, convolutions.MOST_GROUPS
    for samples in (4, 8) if machine.fake else (4, 8, 16, 32, 64, 128, 256, 480):
        if machine.left < 0.2 * machine.seconds:
            yield LATE
            break
        calls = [layer_call(machine, samples, *layer) for layer in (LAYERS[:1] if machine.fake else LAYERS)]
        seconds = []
        for way, number in (("groups", math.inf), ("taps", 0)):
            with mock.patch.dict(limits, {"cuda": number}):
                seconds.append(sum(map(machine.typical_seconds, calls)))
            yield machine.figure(f"{samples} samples by {way}", 1000 * seconds[-1], "ms")
        most = samples if seconds[0] <= seconds[1] else most
    yield machine.figure("samples up to which groups are faster", most, f"MOST_GROUPS has {limits['cuda']}")


def layer_call(
    machine: Machine, samples: int, channels: int, side: int, kernel: tuple[int, int]
) -> Callable[[], object]:
    """A call for the per-sample gradients of a dense convolution on noise; few channels in a rehearsal."""
    random, pads = generator(0, "gpu-check layer"), (kernel[0] // 2, kernel[1] // 2)
    channels = 2 if machine.fake else channels
    layer = nn.Conv2d(channels, channels, kernel, padding=pads, bias=False).to(machine.device)
    x = torch.randn(samples, channels, side, side, generator=random).to(machine.device)
    return lambda: layer_gradients(nn.Conv2d, layer, x, x[:, None], ["weight"])


def time_precisions(machine: Machine) -> Iterator[Line]:
    """Images a second and memory of the training of the mini-5 network in each precision."""
    first, last = (1, 2) if machine.fake else (8, 32)  # libraries choose their algorithms in the first steps

    def rate(precision: Precision) -> float:
        state, times = mini_5_training(machine, precision), []

        def stop(step: int, _: int) -> bool:
            if step in (first, last):
                torch.cuda.synchronize(machine.device)
                times.append(time.perf_counter())
            return step == last

        train_epoch(state, stop)
        return (last - first) * state.config.batch_size / (times[1] - times[0])

    def look(precision: Precision) -> Line:
        rates: list[float] = []
        memory = machine.peak(lambda: rates.append(rate(precision)))
        told = "" if machine.fake else f", {memory / 2**30:.1f} GiB at most"
        return machine.figure(f"training in {precision}", rates[0], f"images a second{told}")

    for precision in ("fp32", "tf32", "bf16", "fp16"):
        yield attempt(f"training in {precision}", partial(look, precision))


def mini_5_training(machine: Machine, precision: Precision) -> TrainState:
    """The training of the preset on synthetic images of its size; a tiny one in a rehearsal."""
    if machine.fake:
        config = replace(TRAINING, precision=precision)
        return start_training(cell_network(2), noise_images(16, 3, 16), config, machine.name)
    preset, cell = TRAIN["mini-5"], next(each for each in published_genotypes() if each.name == "mini-5-1")
    network = derived_network(cell.genotype, NetworkSettings(preset.channels, preset.cells), 0)
    config = TrainConfig(batch_size=preset.batch_size, precision=precision)
    return start_training(network, noise_images(preset.image_size, 64, 40), config, machine.name)


def profile_kernels(machine: Machine) -> Iterator[Line]:
    """The kernels that take most of the time of a scored batch and of steps of training."""
    problem, state = cell_problem(machine), mini_5_training(machine, "fp32")
    network, tasks, some = (
        problem.network(machine.name),
        problem.tasks(),
        problem.candidates(2 if machine.fake else 16),
    )

    def steps() -> None:
        nonlocal state
        state, _ = train_epoch(state, lambda step, _: step % 3 == 0)

    batch = partial(candidate_conditions, network, some, tasks, PAPER, machine.free() // 2)
    for name, call in ((f"{len(some)} scores", batch), ("3 steps of training in fp32", steps)):
        call()
        yield from top_kernels(machine, name, call)


def top_kernels(machine: Machine, name: str, call: Callable[[], object]) -> Iterator[Line]:
    """The kernels with most of the time of a call, and how much of it the device computes; a rehearsal has CPU's."""
    side, time_of = ("CPU", "self_cpu_time_total") if machine.fake else ("CUDA", "self_device_time_total")
    with profile(activities=[getattr(ProfilerActivity, side)]) as seen:
        seconds = machine.seconds_of(call)
    rows = [row for row in seen.key_averages() if row.device_type == getattr(DeviceType, side)]
    rows.sort(key=lambda row: getattr(row, time_of), reverse=True)
    total = sum(getattr(row, time_of) for row in rows)
    if not total:
        yield Line(name, "the profiler saw no kernel: its library CUPTI is missing, or needs permission")
        return
    yield machine.figure(
        f"{name}: the device computes", total / 1e4 / seconds, "% of the time, under the profiler"
    )
    yield Line(f"{name}: launches", sum(row.count for row in rows))
    for row in rows[:TOP]:
        yield machine.figure(
            f"{name}: {row.key[:80]}", 100 * getattr(row, time_of) / total, f"%, {row.count} times"
        )


def time_search(machine: Machine) -> Iterator[Line]:
    """The search of mini-5 by the protocol paper on synthetic images; extrapolated where the limit is near."""
    settings, problem = replace(SEARCH["mini-5"], device=machine.name).resolved(), cell_problem(machine)
    draw = partial(noise_tasks, problem.pixels, problem.ways, problem.count)
    patches = None if machine.fake else noise_patches
    scorer = replace(scorer_of(settings, machine.name), network=problem.size, tasks=draw, patches=patches)
    rules, done, begun = rules_of(settings), 0, time.perf_counter()

    def score(candidates: Candidates, jobs: Sequence[Job]) -> dict[Job, Score]:
        nonlocal done
        found: dict[Job, Score] = {}
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            if machine.left < 0 or (machine.fake and done):
                raise TimeoutError
            found |= score_chunk(candidates, scorer, chunk, machine.name)[0]
            done += len(chunk) * len(candidates.operators())
        return found

    with suppress(TimeoutError):
        run_search(score, rules)
    seconds, share = time.perf_counter() - begun, done / work_of(rules)
    what = "a whole search" if share == 1 else f"a search, extrapolated from {share:.0%} of its work"
    ran = "" if machine.fake else f"; it ran for {seconds:.0f} s"
    yield machine.figure(what, seconds / max(share, 1e-9), f"s, for a goal of {GOAL:.0f} s{ran}")
    if machine.fake is None:
        yield Line(
            "memory of the search", torch.cuda.max_memory_allocated(machine.device) / 2**30, "GiB at most"
        )


def work_of(rules: SearchSettings) -> int:
    """The scores of a whole search, each weighed by the operators that are alive."""
    work = 0

    def count(candidates: Candidates, jobs: Sequence[Job]) -> dict[Job, Score]:
        nonlocal work
        work += len(jobs) * len(candidates.operators())
        return dict.fromkeys(jobs, Score(1.0, 1.0))

    run_search(count, rules)
    return work
