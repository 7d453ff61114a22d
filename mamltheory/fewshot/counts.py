"""Whether tasks and batches of some sizes can be drawn from a data set, and the sizes that can."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

import numpy as np

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.images import ImageData, ImageSplit

NAMES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class TaskCounts:
    """The tasks that are drawn from a split: every count is a number, or the name of a setting that can be changed.

    Attributes:
        split: "train", "val" or "test".
        ways: classes of a task.
        shots: support images per class.
        queries: query images per class.
        tasks: number of tasks that share no image; None for tasks that may share images.
    """

    split: str
    ways: int | str = "ways"
    shots: int | str = "shots"
    queries: int | str = "queries"
    tasks: int | str | None = None


@dataclass(frozen=True)
class Shortage:
    """Counts for which a data set is too small.

    Attributes:
        data: name of the data set.
        reasons: every count that does not fit, with what there is.
        fitting: setting -> the value nearest to the given one with which all counts fit together, for those that must
            change; empty if no values fit.
    """

    data: str
    reasons: tuple[str, ...]
    fitting: Mapping[str, int]

    def message(self, flags: bool = False) -> str:
        """All reasons and the values that fit, as arguments of a function or as flags of a command."""
        values = (
            self.flags() if flags else ", ".join(f"{name}={value}" for name, value in self.fitting.items())
        )
        advice = f"these values fit: {values}" if values else "give data with more classes or images"
        return f"{self.data} has too few images or classes: {'; '.join(self.reasons)}; {advice}"

    def flags(self) -> str:
        """The values that fit, as flags of a command."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.fitting.items())


def check_counts(
    data: ImageData, values: Mapping[str, int], tasks: Sequence[TaskCounts] = (), batch: str | None = None
) -> None:
    """Raise ConfigurationError, which names all counts that do not fit, unless :func:`shortage_of` finds none."""
    found = shortage_of(data, values, tasks, batch)
    if found is not None:
        raise ConfigurationError(found.message())


def shortage_of(
    data: ImageData, values: Mapping[str, int], tasks: Sequence[TaskCounts] = (), batch: str | None = None
) -> Shortage | None:
    """All counts that do not fit a data set, and values that do.

    Tasks without a repeated image fit if every draw of them succeeds, whatever classes it happens to choose.

    Args:
        data: the images.
        values: setting -> its value, at least 1.
        tasks: the tasks that are drawn.
        batch: the setting that says how many training images are in a batch; None for no batches.

    Returns:
        What does not fit; None if everything does.

    Example:
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> data = glyph_data(16, 4, 2, 2, samples_per_class=12)
        >>> given = {"ways": 5, "shots": 5, "queries": 15}
        >>> print(shortage_of(data, given, [TaskCounts("test")]).flags())
        --ways 2 --queries 7
    """
    fitted, reasons, possible = dict(values), dict[str, None](), True
    for counts in tasks:
        split = getattr(data, counts.split)
        for step in (_fit_ways, _fit_images):
            reason, fits = step(split, counts, values, fitted)
            reasons |= {reason: None} if reason else {}
            possible = possible and fits
    for counts in tasks if possible else ():
        reasons |= dict.fromkeys(_fit_tasks(getattr(data, counts.split), counts, values, fitted))
    images = len(data.train)
    if batch is not None and values[batch] > images:
        reasons[f"{batch} is {values[batch]}, and there are {images} training images"] = None
        fitted[batch] = images
        possible = possible and images > 1
    changed = {name: value for name, value in fitted.items() if value != values[name]}
    return Shortage(data.name, tuple(reasons), changed if possible else {}) if reasons else None


def _number(count: int | str, values: Mapping[str, int]) -> int:
    return count if isinstance(count, int) else values[count]


def _named(count: int | str, values: Mapping[str, int], usual: str) -> str:
    return f"{usual} is {count}" if isinstance(count, int) else f"{count} is {values[count]}"


def _fit_ways(
    split: ImageSplit, counts: TaskCounts, values: Mapping[str, int], fitted: dict[str, int]
) -> tuple[str, bool]:
    """What is wrong with the ways, and whether a smaller number is right, which is then in ``fitted``."""
    ways, classes = _number(counts.ways, values), len(split.class_names)
    if ways <= classes:
        return "", True
    have = f"there {'is 1' if classes == 1 else f'are {classes}'} {NAMES[counts.split]} class{'es' * (classes != 1)}"
    reason = f"{_named(counts.ways, values, 'ways')}, and {have}"
    if isinstance(counts.ways, int) or classes < 2:
        return reason, False
    fitted[counts.ways] = min(fitted[counts.ways], classes)
    return reason, True


def _fit_images(
    split: ImageSplit, counts: TaskCounts, values: Mapping[str, int], fitted: dict[str, int]
) -> tuple[str, bool]:
    """The same for the images of a class: fewer queries if that is enough, else fewer shots, else fewer of both."""
    shots, queries = (_number(each, values) for each in (counts.shots, counts.queries))
    sizes = sorted(((len(rows), i) for i, rows in enumerate(split.members)), reverse=True)
    # Tasks that share no image take other classes than those that are used up, others any class.
    needed = len(sizes) if counts.tasks is None else min(_number(counts.ways, fitted), len(sizes))
    fewest, label = sizes[needed - 1]
    reason = "" if shots + queries <= fewest else (
        f"shots + queries is {shots} + {queries}, and the {NAMES[counts.split]} class {split.class_names[label]!r} has "
        f"{fewest} image{'s' * (fewest != 1)}"
    )  # fmt: skip
    least = [1 if isinstance(count, str) else count for count in (counts.shots, counts.queries)]
    if sum(least) > fewest:
        return reason, not reason
    shots, queries = (_number(each, fitted) for each in (counts.shots, counts.queries))
    if isinstance(counts.queries, str) and shots < fewest:
        queries = min(queries, fewest - shots)
    elif isinstance(counts.shots, str) and queries < fewest:
        shots = min(shots, fewest - queries)
    elif isinstance(counts.shots, str):
        shots, queries = fewest - fewest // 2, fewest // 2
    for name, value in ((counts.shots, shots), (counts.queries, queries)):
        fitted |= {name: value} if isinstance(name, str) else {}
    return reason, True


def _fit_tasks(
    split: ImageSplit, counts: TaskCounts, values: Mapping[str, int], fitted: dict[str, int]
) -> list[str]:
    """What is wrong with the number of tasks that share no image; the possible number is then in ``fitted``."""
    if counts.tasks is None:
        return []
    ways, shots, queries = (_number(each, fitted) for each in (counts.ways, counts.shots, counts.queries))
    wanted, most = _number(counts.tasks, values), certain_tasks(split.members, ways, shots + queries)
    if wanted <= most:
        return []
    if isinstance(counts.tasks, str):
        fitted[counts.tasks] = min(fitted[counts.tasks], most)
    return [
        f"{_named(counts.tasks, values, 'tasks')}, and {most} tasks of {ways} classes with {shots} + {queries} images "
        "can be drawn without repeating an image"
    ]


def certain_tasks(members: Sequence[Sized], ways: int, images: int) -> int:
    """How many tasks without a repeated image can be drawn, whatever classes they happen to be of.

    A draw fails when fewer than ``ways`` classes have images left. That takes the most tasks when the smallest classes
    are used up, each at most once a task.

    Args:
        members: the images of every class.
        ways: classes of a task, at most as many as there are.
        images: images of a class in a task.

    Returns:
        The number.
    """
    uses = np.sort([len(rows) // images for rows in members])[: len(members) - ways + 1]
    return int(max(uses[-1], -(-uses.sum() // ways)))


def fewer(split: ImageSplit, ways: int, shots: int, queries: int) -> tuple[int, int]:
    """As many ways and queries as a split has, at most these; two ways and one query even where it has less.

    Args:
        split: the images.
        ways: most classes of a task.
        shots: support images per class.
        queries: most query images per class.

    Returns:
        Ways and queries.
    """
    room = min(map(len, split.members)) - shots
    return max(2, min(ways, len(split.class_names))), max(1, min(queries, room))
