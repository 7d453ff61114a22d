"""``search``: Algorithm 1 on a supernet, score by score, resumable after every score."""

import math
from functools import partial

import torch
from torch import Tensor

from experiments.cells.common import (
    begin,
    cached_data,
    data_of,
    network_size,
    quoted,
    recorded,
    source_of,
    without_paths,
    write_genotype,
)
from experiments.settings import Search
from mamltheory.fewshot.episodes import episode_tasks
from mamltheory.fewshot.images import normalise, take
from mamltheory.linalg import Converged, Dynamics, GradientFlow
from mamltheory.nas.genotype import CELL_TYPES, Candidates, Genotype
from mamltheory.nas.regions import random_patches
from mamltheory.nas.scores import CellScorer, Score, ScoreSettings
from mamltheory.nas.search import (
    Job,
    SearchSettings,
    SearchState,
    evaluate,
    is_finished,
    pending,
    prune,
    record,
    state_from_json,
    state_to_json,
)
from mamltheory.plotting import draw_genotype, figure, save
from mamltheory.rng import generator
from mamltheory.runtime.checkpoint import load
from mamltheory.runtime.checkpoint import save as save_state
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.interrupt import Interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain
from mamltheory.runtime.workers import Mapper, workers
from mamltheory.types import Task

CHUNK = 16
"""Scores between two saves."""
PATCHES, PATCH_IMAGES = 3000, 300
"""Inputs of the region count (released code), cut from so many images."""


def run(settings: Search) -> int:
    """Search, write ``genotype.json`` and draw the cells; returns 0."""
    genotype = search(settings)
    draw_cells(genotype, settings)
    print(f"genotype: {settings.out / 'genotype.json'}")
    return 0


def search(settings: Search) -> Genotype:
    """Run or take up the search in its run folder; the genotype is the same whatever the interruptions."""
    device = choose_device(settings.device)
    data_of(settings)
    scorer, rules = scorer_of(settings, str(device.device)), rules_of(settings)
    # A mistake in the data or the counts should show before the run folder stands for these settings.
    scorer.tasks(generator(settings.seed, "trial"))
    log = begin(settings, "search", device.device)
    with recorded(log, f"python -m experiments search --config {quoted(settings.out)}"):
        state = saved_state(settings)
        with workers(settings.jobs) as spread:
            while not is_finished(state, rules):
                state = finish_round(state, rules, scorer, settings, spread)
                log.log(round=state.round_index, operators=len(state.candidates.operators()))
    genotype = state.candidates.genotype()
    write_genotype(settings.out / "genotype.json", genotype)
    log.close(genotype=genotype.to_json())
    return genotype


def finish_round(
    state: SearchState, rules: SearchSettings, scorer: CellScorer, settings: Search, spread: Mapper
) -> SearchState:
    """Score what the round still lacks, saving now and then and when stopped, and prune."""
    jobs = pending(state, rules)
    score = partial(score_job, state.candidates, scorer)
    title = f"round {state.round_index + 1}: {len(state.candidates.operators())} operators"
    with stage(title, len(jobs)) as advance:
        try:
            for count, (job, value) in enumerate(spread(score, jobs), 1):
                state = record(state, {job: value})
                advance()
                if count % CHUNK == 0:
                    write_state(settings, state)
        except Interrupted:
            write_state(settings, state)
            raise
    state = prune(state, rules)
    write_state(settings, state)
    return state


def write_state(settings: Search, state: SearchState) -> None:
    """Put the state in the run folder, from where :func:`saved_state` takes it up."""
    save_state(settings.out / "state", {}, plain(state_to_json(state)))


def score_job(candidates: Candidates, scorer: CellScorer, job: Job) -> Score:
    """One score, in whatever process it is asked for."""
    torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would drown the least eigenvalues
    return evaluate(job, candidates, scorer)


def saved_state(settings: Search) -> SearchState:
    """The newest good state of the run folder, or the full supernet."""
    checkpoint = load(settings.out / "state", report=print)
    return SearchState() if checkpoint is None else state_from_json(checkpoint.state)


def rules_of(settings: Search) -> SearchSettings:
    """How Algorithm 1 decides, from the command's settings."""
    return SearchSettings(
        seed=settings.seed,
        repeats=settings.repeats,
        ties=settings.ties,
        inputs="two" if settings.two_inputs else "all",
    )


def scorer_of(settings: Search, device: str) -> CellScorer:
    """The scorer that supernet and candidates go through."""
    source = (source_of(settings.data), settings.image_size)
    counts = (settings.tasks, settings.ways, settings.shots, settings.queries)
    return CellScorer(
        network=network_size(settings, settings.ways),
        seed=settings.seed,
        tasks=partial(draw_tasks, source, counts),
        patches=partial(draw_patches, source),
        settings=ScoreSettings(settings.kernel, settings.outputs, dynamics=dynamics_of(settings)),
        device=device,
    )


def dynamics_of(settings: Search) -> Dynamics:
    """λτ = ∞ with the ridge inside the support inverse, or gradient flow for a finite λτ, without."""
    endless = math.isinf(settings.inner_time)
    return Converged(settings.ridge) if endless else GradientFlow(settings.inner_time)


def draw_tasks(
    source: tuple[str, int], counts: tuple[int, int, int, int], random: torch.Generator
) -> tuple[Task, ...]:
    """The tasks of one repeat, from the training classes; no image occurs twice."""
    data, (tasks, ways, shots, queries) = cached_data(*source), counts
    seed = int(torch.randint(2**62, (1,), generator=random))
    return episode_tasks(data.train, tasks, ways, shots, queries, seed, mean=data.mean, std=data.std)


def draw_patches(source: tuple[str, int], random: torch.Generator) -> Tensor:
    """The inputs of the region count in one repeat."""
    data = cached_data(*source)
    rows = torch.randint(len(data.train), (PATCH_IMAGES,), generator=random).numpy()
    return random_patches(normalise(take(data.train.images, rows), data.mean, data.std), PATCHES, random)


def draw_cells(genotype: Genotype, settings: Search, name: str = "cells", directory: object = None) -> None:
    """The two cells in the style of Figure 2, beside the genotype."""
    edges = genotype.edges()
    with figure("page", 6.0, rows=2) as (drawing, axes):
        for panel, kind in zip(axes[:, 0], CELL_TYPES, strict=True):
            draw_genotype(panel, edges[kind], f"{kind} cell")
        data = {"genotype": genotype.to_json()}
        paths = save(drawing, name, data, directory or settings.out, without_paths(settings), settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")
