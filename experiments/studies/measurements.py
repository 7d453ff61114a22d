"""The measurements of a study: independent JSON files in the run folder, checked before they are read."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from mamltheory.errors import CheckpointError
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain, read_record, replace_file, to_json
from mamltheory.runtime.temporary import remove_stale
from mamltheory.runtime.workers import ON_ONE_THREAD
from mamltheory.strict_json import misfit, sealed

from ..runs import FREE, opened_run
from .settings import Correlation, Stability, Tabulate

Record = dict[str, Any]
MEASUREMENTS, AGAIN = "measurements", "remove it, and it is measured again"


class NetworkRecord(TypedDict):
    """One training of a network; the first training holds the scores and their CPU seconds."""

    network: Annotated[int, 0]
    training: Literal[0, 1]
    parameters: Annotated[int, 1]
    macs: Annotated[int, 1]
    accuracy: dict[str, float]
    cpu_seconds: Annotated[float, 0]
    scores: NotRequired[dict[str, list[list[float]]]]
    scoring_cpu_seconds: NotRequired[Annotated[float, 0]]


class RepeatRecord(TypedDict):
    """One repeat of an estimator; differences by measure, one per operator."""

    estimator: Literal["gradient", "exact", "regions"]
    tasks: Annotated[int, 0]
    repeat: Annotated[int, 0]
    differences: dict[str, list[float]]
    cpu_seconds: dict[str, float]
    evaluation_seconds: NotRequired[Annotated[float, 0]]


def check_networks(
    records: Mapping[str, Record],
    runs: Path,
    shots: Collection[str],
    scores: Collection[str],
    shape: tuple[int, int],
) -> None:
    """Raise CheckpointError with the file unless every record is of a network's training, each once.

    Args:
        records: The records by name of their file.
        runs: The run folder.
        shots: Numbers of shots that need an accuracy.
        scores: Names of the scores of a first training.
        shape: Numbers of pools and initialisations.
    """
    seen: set[tuple] = set()
    for name, record in records.items():
        wrong = misfit(plain(record), NetworkRecord, "it")
        if wrong is None and record["training"] == 0:
            wrong = _misfit_of_scores(record, scores, shape)
        if wrong is None and not set(shots) <= record["accuracy"].keys():
            wrong = f"it has no accuracy for {' and '.join(shots)} shots"
        _refuse(wrong, name, record, ("network", "training"), seen, runs)


def _misfit_of_scores(record: Record, scores: Collection[str], shape: tuple[int, int]) -> str | None:
    lacking = set(scores) - record.get("scores", {}).keys()
    if lacking or "scoring_cpu_seconds" not in record:
        return f"it lacks {', '.join(sorted(lacking)) or 'scoring_cpu_seconds'}"
    shapes = {len(values): {len(row) for row in values} for values in record["scores"].values()}
    if shapes != {shape[0]: {shape[1]}}:
        return f"its scores are not of {shape[0]} pools and {shape[1]} initialisations"
    return None


def check_repeats(records: Mapping[str, Record], runs: Path, operators: int) -> None:
    """Raise CheckpointError with the file unless every record is a repeat over all operators, each once."""
    seen: set[tuple] = set()
    for name, record in records.items():
        wrong = misfit(plain(record), RepeatRecord, "it")
        if wrong is None and {len(values) for values in record["differences"].values()} != {operators}:
            wrong = f"it does not have the differences of {operators} operators"
        if wrong is None and record["differences"].keys() != record["cpu_seconds"].keys():
            wrong = "its differences and cpu_seconds are not of the same measures"
        if wrong is None and record["estimator"] == "gradient" and not record.get("evaluation_seconds"):
            wrong = "it lacks evaluation_seconds"
        _refuse(wrong, name, record, ("estimator", "tasks", "repeat"), seen, runs)


def _refuse(
    wrong: str | None, name: str, record: Record, keys: tuple[str, ...], seen: set[tuple], runs: Path
) -> None:
    item = () if wrong else tuple(record[key] for key in keys)
    if item in seen:
        wrong = f"{', '.join(keys)} {item} are those of another file"
    if wrong:
        raise CheckpointError(f"{runs / MEASUREMENTS / name}.json holds something else ({wrong}): {AGAIN}")
    seen.add(item)


STUDY_FREE = (*FREE, "runs", "draws")
"""Settings that do not change a measurement."""


def measure_missing(
    settings: Correlation | Stability | Tabulate,
    command: str,
    items: Mapping[str, Any],
    function: Callable[[Any], Record],
    counts: tuple[str, ...],
    device: str,
) -> dict[str, Record]:
    """The records of all items by name; only those that the run folder lacks are measured.

    Args:
        settings: Settings of the study.
        command: Name of the command.
        items: The items by name.
        function: Takes an item and returns its record, in any process.
        counts: Settings with the numbers of items; they may change when a study continues.
        device: Where the study computes.

    Returns:
        The records.
    """
    place = settings.out if isinstance(settings, Tabulate) else settings.runs
    folder = place / MEASUREMENTS
    with opened_run(
        command,
        settings,
        device,
        folder=place,
        free=(*STUDY_FREE, *counts, *ON_ONE_THREAD),
        known=(MEASUREMENTS,),
        again=f"the same command; finished measurements lie in {place}",
    ) as log:
        remove_stale(folder, alone=True)
        files = {name: folder / f"{name}.json" for name in items}
        found = {name: read_record(path, dict, AGAIN) for name, path in files.items() if path.exists()}
        names = {items[name]: name for name in items if name not in found}
        if names:
            log.resume()
        with spread_over(settings.jobs) as spread, stage(command, len(names)) as advance:
            for item, record in spread(function, names):
                name = names[item]
                measured: Any = plain(record)
                found[name] = measured
                replace_file(files[name], sealed(to_json(record)))
                advance(note=name)
        log.close(measurements=len(found), **_cpu_seconds(found.values()))
    return {name: found[name] for name in items}


def _cpu_seconds(records: Iterable[Record]) -> dict[str, float]:
    """The CPU seconds of all measurements as an entry of the results; none where a record does not know its own."""
    spent = 0.0
    for record in records:
        found = record.get("cpu_seconds")
        parts = list(found.values()) if isinstance(found, dict) else [found]
        parts.append(record.get("evaluation_seconds", 0.0))
        if not all(isinstance(part, float) for part in parts):
            return {}
        # Operators taken out one by one give all measures at once: each has the time of all.
        spent += sum(parts) if record.get("estimator") in (None, "gradient") else parts[0]
    return {"cpu_seconds": spent}
