"""``search``: Algorithm 1 on a supernet, which can stop after every chunk of scores, and searches at equal size."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict

import torch

from mamltheory.accelerator import memory_budget
from mamltheory.errors import CheckpointError
from mamltheory.nas.algorithms.algorithm1 import prune, record_scores
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState, state_from_json, state_to_json
from mamltheory.nas.genotype import Candidates, Genotype
from mamltheory.nas.network import supernet
from mamltheory.nas.scoring.operator_gradient import check_known_operations
from mamltheory.nas.scoring.own_score import own_scores
from mamltheory.nas.scoring.score import Job, Score, Scorer, halvings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.search_scorer import final_scores, scorer_by, search_rules, search_scorer
from mamltheory.rng import generator
from mamltheory.runtime.checkpoint import check_state, load_state, save_state
from mamltheory.runtime.device import choose_device, deterministic
from mamltheory.runtime.distributed import processes, shared_name, spread_over, world
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain, replace_file, to_json
from mamltheory.runtime.runlog import RunLog
from mamltheory.runtime.workers import ON_ONE_THREAD, Mapper
from mamltheory.strict_json import read_json_file
from mamltheory.tasks import Task

from ..data.counts import refuse_shortage, search_shortage
from ..data.loading import cached_data, data_of, source_in
from ..genotypes import genotype_from, network_size
from ..named import score_of, space_of
from ..runs import FREE, continue_with, opened_run, say_if_finished, without_paths
from ..terminal import screen_width
from ..training.train import draw_learning_curves, evaluate_command, train_network
from .closing import band_rows, drawn_cells, halving_rows, is_drawn, pruned_rows, record_of_finished
from .figures import draw_cells, draw_trace
from .halving import checked_candidates, full_training, halve
from .halving_report import SEARCH_FILE, draw_rungs, record_of, training_command
from .one_size import band_of, with_band
from .report import closing_lines, legend, round_lines, search_record, worst_so_far
from .sampling import best_of_sampled, sampled_cells
from .settings import Search
from .words import all_rounds_words, first_words, left_words, round_words, seconds_per_work, summary

CHUNK = 16
"""Scores between checkpoints."""


def search_and_draw(settings: Search) -> int:
    """Search, draw, and train what was found if a recipe is named; returns 0."""
    genotype = search_cells(settings)
    draw_found(settings)
    if settings.then_train is not None:
        train_found(settings, genotype)
    return 0


def train_found(settings: Search, genotype: Genotype) -> None:
    """Train what was found at full scale; under torchrun, say how, for there all processes train together."""
    ranks = world().size
    if ranks > 1:
        print(f"train it: {training_command(settings, ranks)}")
        return
    training = full_training(settings)
    train_network(training, genotype, free=("genotype",))
    draw_learning_curves(training)
    print(f"evaluate it: {evaluate_command(training.out, data_of(training))}")


def draw_found(settings: Search) -> None:
    """Draw what a finished search found, unless that is drawn already, and print the summary of it."""
    settings = with_band(settings.resolved())
    record: Any = read_json_file(settings.out / SEARCH_FILE)
    genotype = genotype_from(record["genotype"])
    drawn = drawn_cells(settings, genotype)
    if settings.parameters is not None:
        if drawn is None:
            draw_cells(genotype, settings)
        if settings.method == "halving" and (drawn is None or not is_drawn(settings.out, "rungs")):
            draw_rungs(settings)
        rows = halving_rows(record, settings) if settings.method == "halving" else band_rows(record, settings)
    else:
        state = saved_search(settings).state
        if drawn is None:
            draw_cells(genotype, settings, scores=scores_of_found(state, settings))
        if drawn is None or not is_drawn(settings.out, "trace"):
            draw_trace(state, "trace", settings.out, without_paths(settings), settings.seed)
        rows = pruned_rows(state, settings)
    print(f"\n{summary(rows, screen_width())}")


def scores_of_found(state: SearchState, settings: Search) -> tuple[Score, ...]:
    """The scores of the found network on new draws; none for a search without criteria."""
    if not settings.criteria:
        return ()
    scorer = scorer_of(settings, shared_name(choose_device(settings.device).device))
    with deterministic(scorer.device):
        return final_scores(scorer, state.candidates, state.round_index)


class SearchContent(TypedDict):
    """The keys of a saved search."""

    search: dict[str, object]
    cpu_seconds: NotRequired[float]
    memory: NotRequired[Annotated[int, 1]]


@dataclass(frozen=True)
class SavedSearch:
    """A search in its run folder.

    Attributes:
        state: The state of Algorithm 1.
        cpu_seconds: CPU seconds of the scores so far.
        halvings: How often a batch of candidates did not fit the memory in this process; it is not saved.
        memory: Bytes that a batch may hold on a GPU, from the free memory at the first start there; None on a CPU.
    """

    state: SearchState
    cpu_seconds: float = 0.0
    halvings: int = 0
    memory: int | None = None

    def with_scores(self, found: Mapping[Job, Score], seconds: float) -> "SavedSearch":
        """The search with the scores of a chunk; prints a line when a batch first does not fit the memory."""
        halved = halvings(found.values())
        if halved and not self.halvings:
            print("a batch did not fit the memory: continuing with half of the batch size")
        return replace(
            self,
            state=record_scores(self.state, found),
            cpu_seconds=self.cpu_seconds + seconds,
            halvings=self.halvings + halved,
        )


def search_cells(settings: Search) -> Genotype:
    """Run or continue the search in its run folder; interruptions do not change the genotype."""
    settings = settings.resolved()
    space_of(settings.space)  # mistakes in a user's modules are found before anything else
    score_of(settings.score)
    device = choose_device(settings.device)
    if settings.method == "halving":
        return search_by_halving(settings, device.device)
    finished = record_of_finished(settings)
    if finished is None:
        refuse_shortage(search_shortage(settings, data_of(settings)))
    scorer, rules = scorer_of(settings, shared_name(device.device)), rules_of(settings)
    # A mistake in the data or the counts is found here, before the run folder is opened.
    if finished is None and scorer.tasks is not None:
        try_out(settings, scorer, scorer.tasks(generator(settings.seed, "trial")))
    if settings.parameters is not None:
        cells = sampled_cells(settings) if finished is None else ()
        with deterministic(device.device), opened_search(settings, device.device) as log:
            say_if_finished(log, "searched")
            if finished is not None:
                record, seconds = finished
                return write_found(genotype_from(record["genotype"]), record, settings, log, seconds)
            saved, scorer = with_budget(SavedSearch(SearchState()), scorer, settings)
            genotype, record, seconds = best_of_sampled(settings, cells, scorer)
            return write_found(genotype, record | memory_record(saved), settings, log, seconds)
    with deterministic(device.device), opened_search(settings, device.device) as log:
        saved, scorer = with_budget(saved_search(settings), scorer, settings)
        say_if_finished(log, "searched")
        return write_results(search_rounds(saved, rules, scorer, settings, log), settings, log)


def search_rounds(
    saved: SavedSearch, rules: SearchSettings, scorer: CellScorer, settings: Search, log: RunLog
) -> SavedSearch:
    """The search at its end; every round is said in a line, and with ``verbose`` in detail."""
    if settings.verbose and not Round.of(saved.state, rules).is_finished:
        print(legend(saved.state.candidates.space))
    if not Round.of(saved.state, rules).is_finished:
        log.resume()
    rate = None
    if rules.criteria and not Round.of(saved.state, rules).is_finished:
        print(first_words(rules, saved.state), flush=True)
    with spread_over(settings.jobs) as spread:
        while not Round.of(saved.state, rules).is_finished:
            begun, before = time.monotonic(), saved.state
            saved = finish_round(saved, rules, scorer, settings, spread, log)
            rate = seconds_per_work(rules, before, saved.state, time.monotonic() - begun) or rate
            left = left_words(rules, saved.state, rate)
            print(round_words(before, saved.state, rules.inputs) + left, flush=True)
            if settings.verbose:
                print("\n".join(round_lines(before, saved.state)), flush=True)
    return saved


def try_out(settings: Search, scorer: CellScorer, tasks: Sequence[Task]) -> None:
    """Run a user's score once on the whole supernet, and ask whether the gradient knows a user's operations."""
    if settings.space is None and scorer.own is None:
        return
    network = supernet(Candidates.of(space_of(settings.space)), scorer.network, settings.seed)
    if scorer.own is not None:
        own_scores(scorer.own, [network], tasks, scorer.device)
    elif settings.estimator == "gradient":
        check_known_operations(network)


def with_budget(saved: SavedSearch, scorer: CellScorer, settings: Search) -> tuple[SavedSearch, CellScorer]:
    """The search and its scorer with one budget for all batches on a GPU, on which the last bits of scores depend."""
    if torch.device(scorer.device).type != "cuda":
        return saved, scorer
    memory = saved.memory or memory_budget(scorer.device, 0, settings.jobs)
    return replace(saved, memory=memory), replace(scorer, memory=memory)


def memory_record(saved: SavedSearch) -> dict[str, int]:
    """The budget under its name in records; nothing for a CPU."""
    return {} if saved.memory is None else {"memory": saved.memory}


def search_by_halving(settings: Search, device: torch.device) -> Genotype:
    """Run or continue a search by successive halving."""
    genotypes, given = checked_candidates(settings), settings.parameters is not None
    settings = with_band(settings)
    with opened_search(settings, device) as log:
        say_if_finished(log, "searched")
        if not (given or log.was_finished):
            print(f"{band_of(settings).words}; --parameters chooses others", flush=True)
        found = halve(settings, genotypes, shared_name(device))
        record = record_of(found, settings)
        genotype = write_found(genotypes[found.candidate], record, settings, log, found.cpu_seconds)
    return genotype


def write_found(
    genotype: Genotype, record: Mapping[str, Any], settings: Search, log: RunLog, seconds: float
) -> Genotype:
    """Write the genotype and ``search.json``, and close the record."""
    replace_file(settings.out / "genotype.json", to_json(genotype.to_json()).encode())
    replace_file(settings.out / SEARCH_FILE, to_json(record).encode())
    log.close(genotype=genotype.to_json(), cpu_seconds=seconds)
    return genotype


def opened_search(settings: Search, device: torch.device | str) -> AbstractContextManager[RunLog]:
    """The record of a search in its run folder."""
    more = ("anyway", "least_gain", "confirm")  # they change nothing that is measured already
    free, again = (*FREE, *ON_ONE_THREAD, *more), continue_with("search", settings)
    return opened_run("search", settings, device, free=free, before=settings.before(), again=again)


def write_results(saved: SavedSearch, settings: Search, log: RunLog) -> Genotype:
    """Write the genotype and the trace; with ``verbose``, print the undecided edges."""
    result = search_record(saved.state, without_paths(settings))
    genotype = saved.state.candidates.genotype()
    replace_file(settings.out / "genotype.json", to_json(genotype.to_json()).encode())
    replace_file(settings.out / SEARCH_FILE, to_json(result).encode())
    if settings.verbose:
        print("\n".join(closing_lines(saved.state)))
    kept = {name: result[name] for name in ("genotype", "undecided", "failures", "rounds")}
    log.close(cpu_seconds=saved.cpu_seconds, **kept, **memory_record(saved))
    return genotype


def finish_round(
    saved: SavedSearch,
    rules: SearchSettings,
    scorer: CellScorer,
    settings: Search,
    spread: Mapper,
    log: RunLog | None = None,
) -> SavedSearch:
    """Compute the missing scores of a round, with a checkpoint after every chunk, prune, and log the round.

    Args:
        saved: The search before the round.
        rules: How Algorithm 1 decides.
        scorer: Scores supernet and candidates.
        settings: Settings of the command.
        spread: Distributes chunks over processes.
        log: The record of the run; None to log nothing.

    Returns:
        The search after the round.
    """
    score = partial(score_chunk, saved.state.candidates, scorer_by(rules, scorer), device=scorer.device)
    # One gradient gives all scores of a repeat, so that other processes work on further repeats in advance.
    by_gradient = rules.estimator == "gradient"
    size, ahead = (None, processes(settings.jobs) - 1) if by_gradient else (CHUNK, 0)
    most = "at most " if rules.stopping else ""
    operators = len(saved.state.candidates.operators())
    title = f"round {saved.state.round_index + 1}: {operators} operators, {most}{rules.repeats} repeats"
    now = Round.of(saved.state, rules)
    chunks, done, begun = len(now.chunks(size, rules.repeats)), 0, time.monotonic()
    with stage(title, chunks, brief=True) as advance:
        while missing := now.chunks(size, ahead):
            for _, (found, seconds) in spread(score, missing):
                saved = saved.with_scores(found, seconds)
                write_state(settings, saved)
                now = Round.of(saved.state, rules)
                done += 1
                left = all_rounds_words(rules, saved.state, done, chunks, time.monotonic() - begun)
                advance(note="; ".join(filter(None, (left, worst_so_far(now)))))
    saved = replace(saved, state=prune(now))
    if log is not None:
        # A crash between the two repeats the line; the other order would lose a round.
        report = saved.state.reports[-1].to_json()
        log.log(round=saved.state.round_index, cpu_seconds=saved.cpu_seconds, **report)
    write_state(settings, saved)
    return saved


def score_chunk(
    candidates: Candidates, scorer: Scorer, chunk: Sequence[Job], device: str = "cpu"
) -> tuple[dict[Job, Score], float]:
    """The scores of a chunk, and their CPU seconds; it runs in any process.

    Args:
        candidates: The supernet.
        scorer: Scores supernet and candidates.
        chunk: The jobs.
        device: Where the scorer computes.

    Returns:
        The scores by job, and the CPU seconds.
    """
    begun = time.process_time()
    with deterministic(device):
        found = dict(scorer(candidates, chunk))
    return found, time.process_time() - begun


def write_state(settings: Search, saved: SavedSearch) -> None:
    """Save the state in the run folder, where :func:`saved_search` finds it."""
    content = {"search": state_to_json(saved.state), "cpu_seconds": saved.cpu_seconds}
    numbers: Any = plain(content | memory_record(saved))
    save_state(settings.out / "state", {}, numbers)


def saved_search(settings: Search) -> SavedSearch:
    """The newest valid state in the run folder, or the full supernet."""
    checkpoint = load_state(settings.out / "state", report=print)
    space = space_of(settings.space)
    if checkpoint is None:
        return SavedSearch(SearchState(Candidates.of(space)))
    check_state(checkpoint, SearchContent)
    content: Mapping[str, Any] = checkpoint.state
    try:
        state = state_from_json(content["search"], space)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return SavedSearch(state, float(content.get("cpu_seconds", 0.0)), memory=content.get("memory"))


def rules_of(settings: Search) -> SearchSettings:
    """How Algorithm 1 decides, by the settings of the command."""
    return search_rules(settings.criteria, vars(settings.resolved()))


def scorer_of(settings: Search, device: str) -> CellScorer:
    """The scorer of supernet and candidates."""
    settings = settings.resolved()
    images, size = partial(cached_data, *source_in(settings)), network_size(settings, settings.ways)
    return search_scorer(
        images, settings.criteria, vars(settings), size, device, own=score_of(settings.score)
    )
