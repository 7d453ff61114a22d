"""What the measurement files of studies hold: checked before anything is read off them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from mamltheory.errors import CheckpointError
from mamltheory.runtime.records import plain
from mamltheory.strict_json import misfit

Record = dict[str, object]
MEASUREMENTS, AGAIN = "measurements", "remove it, and it is measured again"


class Network(TypedDict):
    """Of one training of a network; ``scores`` and what they took belong to its first."""

    network: Annotated[int, 0]
    training: Literal[0, 1]
    parameters: Annotated[int, 1]
    macs: Annotated[int, 1]
    accuracy: dict[str, float]
    cpu_seconds: Annotated[float, 0]
    scores: NotRequired[dict[str, list[list[float]]]]
    scoring_cpu_seconds: NotRequired[Annotated[float, 0]]


class Repeat(TypedDict):
    """Of one repeat of an estimator; differences by measure, one an operator."""

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
    """Raise CheckpointError, naming the file, unless every record is of a network's training, each once.

    shots: of which there must be accuracies. scores: that every first training must have, in this shape.
    """
    seen = set()
    for name, record in records.items():
        wrong = misfit(plain(record), Network, "it")
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
    """Raise CheckpointError, naming the file, unless every record is a repeat of all operators, each once."""
    seen = set()
    for name, record in records.items():
        wrong = misfit(plain(record), Repeat, "it")
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
