"""Shares of a round's scores for job arrays: computed apart, without any communication, and merged into the search.

``search --shard i/n`` computes every n-th piece of what the round lacks and leaves it in ``OUT/shards``; ``merge``
records all shards in the search and prunes. Pieces are those of the search itself: the result is the same to the last
bit, whatever n is, and the two ways can take turns.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from experiments.cells import search
from experiments.cells.common import FREE, SHARDS, begin, data_of, quoted
from experiments.cells.search import Saved
from experiments.cells.search_report import round_lines
from experiments.config import settings_before, settings_from
from experiments.requirements import require
from experiments.settings import Merge, Search
from mamltheory.errors import CheckpointError
from mamltheory.files import read_regular, reason, shown
from mamltheory.nas.schedule import chunks, is_finished, pending
from mamltheory.nas.scores import Score
from mamltheory.nas.search import prune, record
from mamltheory.nas.search_settings import SearchSettings
from mamltheory.nas.search_state import Job, SearchState, state_from_json, state_to_json
from mamltheory.runtime.device import choose_device, environment
from mamltheory.runtime.distributed import share, spread_over
from mamltheory.runtime.folders import check_run_folder
from mamltheory.runtime.interrupt import Interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain, replace_file, to_json
from mamltheory.runtime.runlog import RUN_FILE, differences, read_run, recorded
from mamltheory.strict_json import MOST_BYTES, misfit, sealed, unsealed

Pieces = tuple[tuple[Job, ...], ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Scores of one round that were computed apart, with what they depend on.

    state: the supernet and round of the search, and these scores alone.
    """

    path: Path
    config: dict[str, object]
    shard: str
    state: SearchState
    cpu_seconds: float = 0.0
    environment: dict[str, object] = dataclasses.field(default_factory=dict)

    def write(self) -> None:
        """Put the file in place."""
        content = dataclasses.asdict(dataclasses.replace(self, state=None))
        del content["path"]
        replace_file(self.path, sealed(to_json({**content, "state": state_to_json(self.state)})))


class _Content(TypedDict):
    """What the file of a shard holds."""

    config: dict[str, object]
    shard: str
    state: dict[str, object]
    cpu_seconds: float
    environment: dict[str, object]


def run(settings: Search) -> int:
    """``search``: the whole search, or with ``--shard`` a share of the round at hand; returns 0."""
    if settings.shard is None:
        return search.run(settings)
    try:
        compute_shard(settings.resolved())
    except Interrupted as stop:
        raise stop.saved("the same command") from None
    return 0


def merge(settings: Merge) -> int:
    """``merge``: join the shards; returns 0, or 1 as long as some are missing."""
    shards = [read_shard(path) for path in sorted((settings.out / SHARDS).glob("*.json"))]
    require(
        bool(shards), f"there are no shards in {settings.out / SHARDS}: compute them with search --shard i/n"
    )
    chosen = _settings_of(settings.out, shards[0])
    saved, rules = search.saved_search(chosen), search.rules_of(chosen)
    for each in shards:
        check_shard(each, chosen, saved.state)
    found = {job: score for each in shards for job, score in each.state.scores.items()}
    if lacking := [c for c in chunks(saved.state, rules, search.CHUNK) if not found.keys() >= set(c)]:
        print(_missing(lacking, pieces(saved.state, rules, _count(shards)), shards))
        return 1
    return _join(chosen, rules, saved, found, shards)


def compute_shard(settings: Search) -> None:
    """Compute this shard's pieces of the round, saving after each; what its file holds already is kept.

    Raises ConfigurationError when the run folder holds a search with other settings, or other files.
    """
    index, count = map(int, settings.shard.split("/"))
    check_run_folder(settings.out, "search", (SHARDS,))
    state, rules = search.saved_search(settings).state, search.rules_of(settings)
    device = choose_device(settings.device).device
    data_of(settings)
    path = settings.out / SHARDS / f"round-{state.round_index + 1:02d}-shard-{index}-of-{count}.json"
    empty = SearchState(state.candidates, state.round_index)
    shard = Shard(path, plain(settings), settings.shard, empty, 0.0, environment(device))
    if (settings.out / RUN_FILE).exists():
        check_shard(shard, _settings_of(settings.out, shard), state)
    if path.exists():
        earlier = read_shard(path)
        check_shard(earlier, settings, state)
        shard = dataclasses.replace(shard, state=earlier.state, cpu_seconds=earlier.cpu_seconds)
    if is_finished(state, rules):
        print(f"the search in {settings.out} has finished: there is nothing to compute")
        return
    own = share(pieces(state, rules, count), index - 1, count)
    lacking = [piece for piece in own if not shard.state.scores.keys() >= set(piece)]
    scorer = search.scorer_by(rules, search.scorer_of(settings, str(device)))
    score = partial(search.score_chunk, state.candidates, scorer, rules)
    halved = 0
    with (
        spread_over(settings.jobs) as spread,
        stage(f"round {state.round_index + 1}, shard {settings.shard}", len(lacking)) as advance,
    ):
        shard.write()
        for _, (found, seconds) in spread(score, lacking):
            seconds += shard.cpu_seconds
            halved = search.said_once(halved, found.values())
            shard = dataclasses.replace(shard, state=record(shard.state, found), cpu_seconds=seconds)
            shard.write()
            advance()
    print(
        f"wrote {path}; when all {count} shards are there: python -m experiments merge {quoted(settings.out)}"
    )


def pieces(state: SearchState, rules: SearchSettings, count: int) -> Pieces:
    """What the round lacks, in the pieces that ``count`` shards share; with gradients at least one for each.

    A gradient is a whole repeat: there the next repeats are computed in advance, which the round may not need.
    """
    found = chunks(state, rules, search.CHUNK)
    if rules.estimator == "gradient" and 0 < len(found) < count:
        return chunks(state, rules, search.CHUNK, ahead=count - len(found))
    return found


def read_shard(path: Path) -> Shard:
    """The shard in a file; raises CheckpointError for anything else."""
    try:
        content, _ = unsealed(read_regular(path, MOST_BYTES))
        if wrong := misfit(content, _Content, "it"):
            raise ValueError(wrong)
        count = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", content["shard"])
        if count is None or int(count[1]) > int(count[2]):
            raise ValueError(f"it says shard {shown(content['shard'])}: expected i/n")
        state, seconds = state_from_json(content["state"]), float(content["cpu_seconds"])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no shard of a search ({reason(error)}): remove it") from error
    return Shard(path, content["config"], content["shard"], state, seconds, content["environment"])


def check_shard(shard: Shard, settings: Search, state: SearchState) -> None:
    """Raise ConfigurationError unless the shard belongs to this search and its round, showing the difference."""
    remedy = f"remove {shard.path}, or choose another --out"
    changes = differences(shard.config, settings, FREE, settings_before(settings))
    require(not changes, f"{shard.path.name} and the search have other settings: {changes}; {remedy}")
    theirs, ours = shard.state.round_index + 1, state.round_index + 1
    require(theirs == ours, f"{shard.path.name} is of round {theirs}, the search in round {ours}: {remedy}")
    others = set(shard.state.candidates.operators()) ^ set(state.candidates.operators())
    require(
        not others,
        f"{shard.path.name} is of another supernet, which differs in {len(others)} operators: {remedy}",
    )


def _settings_of(out: Path, shard: Shard) -> Search:
    """The settings of the search that was begun in the folder, or else those of the shard."""
    config = read_run(out)["config"] if (out / RUN_FILE).exists() else shard.config
    return dataclasses.replace(settings_from(Search, config), out=out, shard=None)


def _count(shards: Sequence[Shard]) -> int:
    return max(int(each.shard.split("/")[1]) for each in shards)


def _missing(lacking: Sequence[tuple[Job, ...]], plan: Pieces, shards: Sequence[Shard]) -> str:
    count = _count(shards)
    owners = [
        f"{i}/{count}" for i in range(1, count + 1) if not set(lacking).isdisjoint(share(plan, i - 1, count))
    ]
    scores = sum(map(len, lacking))
    return (
        f"round {shards[0].state.round_index + 1} lacks {scores} scores: run search with --shard {', '.join(owners)}"
        " (again), or without --shard to compute the rest here"
    )


def _join(
    settings: Search, rules: SearchSettings, saved: Saved, found: dict[Job, Score], shards: Sequence[Shard]
) -> int:
    log = begin(settings, "search", "cpu")
    with recorded(log, f"python -m experiments merge {quoted(settings.out)}"):
        seconds = saved.cpu_seconds + sum(each.cpu_seconds for each in shards)
        before, saved = saved.state, Saved(record(saved.state, found), seconds)
        if complete := not pending(saved.state, rules):
            saved = Saved(prune(saved.state, rules), seconds)
        where = {each.shard: each.environment for each in shards}
        report = saved.state.reports[-1].to_json() if complete else {}
        # Logged first: a crash in between repeats the line, and never leaves out a round.
        log.log(round=saved.state.round_index, cpu_seconds=seconds, shards=where, **report)
        search.write_state(settings, saved)
        for each in shards:
            each.path.unlink()
        if complete:
            print("\n".join(round_lines(before, saved.state)))
        if is_finished(saved.state, rules):
            search.finish(saved, settings, log)
            search.draw_found(settings)
            return 0
    log.close("interrupted")
    left = f"{len(saved.state.candidates.operators())} operators are left"
    print(
        f"{left if complete else 'the round needs more repeats'}: run the shards again, for round "
        f"{saved.state.round_index + 1}"
    )
    return 0
