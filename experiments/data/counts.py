"""Whether data are large enough for the counts of a command; all that do not fit are named before any work."""

import dataclasses

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.counts import Shortage, TaskCounts, certain_tasks, fewer, shortage_of
from mamltheory.fewshot.images import ImageData
from mamltheory.nas.short_trainings import task_counts

from ..search.settings import Protocols, Search
from ..studies.settings import POOL_IMAGES, WAYS, Correlation, Stability, Tabulate
from ..training.settings import TRAIN, Evaluate, MetaTrain, Train

STUDY = TaskCounts("test", WAYS, 5, 15)
"""The largest tasks on which the studies test a network."""


def refuse_shortage(found: Shortage | None) -> None:
    """Raise ConfigurationError, with the flags that fit, if data are too small."""
    if found is not None:
        raise ConfigurationError(found.message(flags=True))


def joint_shortage(first: Shortage | None, second: Shortage) -> Shortage:
    """Both in one; no values fit unless there are some for either."""
    if first is None:
        return second
    fitting = {**first.fitting, **second.fitting} if first.fitting and second.fitting else {}
    return dataclasses.replace(first, reasons=first.reasons + second.reasons, fitting=fitting)


def numbers_in(settings: object) -> dict[str, int]:
    """The settings that are whole numbers."""
    return {name: value for name, value in vars(settings).items() if type(value) is int}


def search_shortage(settings: Search, data: ImageData) -> Shortage | None:
    """What the data lack for the tasks that score cells, or for the trainings and tasks of halving."""
    settings = settings.resolved()
    if settings.method == "halving":
        tasks = [task_counts(data, name) for name in ("val", "test")]
        found = shortage_of(data, numbers_in(settings), tasks, "search_batch_size")
        recipe = settings.then_train
        later = None if recipe is None else train_shortage(TRAIN[recipe], data)
        if later is None:
            return found
        reasons = tuple(f"in the recipe {recipe} of then_train, {reason}" for reason in later.reasons)
        return joint_shortage(found, dataclasses.replace(later, reasons=reasons, fitting={}))
    scored = [TaskCounts("train", tasks="tasks")] if "condition" in settings.criteria else []
    return shortage_of(data, numbers_in(settings), scored)


def train_shortage(settings: Train, data: ImageData) -> Shortage | None:
    """What the data lack for the batches of a training, and for its validations if there are any."""
    found = shortage_of(data, numbers_in(settings), batch="batch_size")
    ways, queries = fewer(data.val, 5, 1, 15)
    unmeasured = (
        shortage_of(data, {}, [TaskCounts("val", ways, 1, queries)]) if settings.validate_every else None
    )
    if unmeasured is None:
        return found
    return joint_shortage(found, dataclasses.replace(unmeasured, fitting={"validate_every": 0}))


def evaluate_shortage(settings: Evaluate, data: ImageData) -> Shortage | None:
    """What the data lack for the tasks of an evaluation."""
    return shortage_of(data, numbers_in(settings), [TaskCounts(settings.split)])


def meta_train_shortage(settings: MetaTrain, data: ImageData) -> Shortage | None:
    """What the data lack for the tasks of the outer steps, and for those that test, which have a query at least."""
    tested = [TaskCounts(name, queries=1) for name in dict.fromkeys(("val", settings.split))]
    return shortage_of(data, numbers_in(settings), [TaskCounts("train", tasks="tasks"), *tested])


def protocols_shortage(settings: Protocols, data: ImageData) -> Shortage | None:
    """What the data lack for the searches of each protocol; a protocol without searches needs nothing."""
    found: Shortage | None = None
    lacking = dict[str, int]()
    for name, searches in settings.searches().items():
        short = search_shortage(searches[0], data)
        if short is not None:
            lacking[name] = 0
            reasons = tuple(f"in the protocol {name}, {reason}" for reason in short.reasons)
            found = joint_shortage(found, Shortage(data.name, reasons, {}))
    left = [getattr(settings, name) for name in settings.searches() if name not in lacking]
    enough = max(left, default=0) > 1
    return None if found is None else dataclasses.replace(found, fitting=lacking if enough else {})


def stability_shortage(settings: Stability, data: ImageData) -> Shortage | None:
    """What the data lack for the joint tasks of a study."""
    values = {"gradient_tasks": max(settings.gradient_tasks)}
    values |= {"exact_tasks": settings.exact_tasks} if settings.exact_repeats else {}
    return shortage_of(data, values, [TaskCounts("train", WAYS, 1, 1, name) for name in values])


def study_shortage(settings: Correlation | Tabulate, data: ImageData) -> Shortage | None:
    """What the data lack for the batches, the pools of training classes and the test tasks of a study."""
    measured, images = [STUDY], POOL_IMAGES
    if isinstance(settings, Tabulate):
        measured += [dataclasses.replace(STUDY, split="val"), TaskCounts("train", WAYS, 1, POOL_IMAGES - 1)]
    found = shortage_of(data, numbers_in(settings), measured, "batch_size")
    classes, fewest = len(data.train.class_names), min(map(len, data.train.members))
    pools = min(settings.pools, classes // WAYS)
    given = {"pools": (settings.pools, pools, f"{classes} training classes, {WAYS} for each pool")}
    if isinstance(settings, Correlation):
        images = min(settings.pool_images, fewest)
        given["pool_images"] = (settings.pool_images, images, f"{fewest} images in a training class")
        if pools and images > 1:
            pool = [range(images)] * (classes // pools)
            most = certain_tasks(pool, WAYS, 2)
            there = (
                f"{most} tasks without a repeated image in a pool of {len(pool)} classes with {images} images"
            )
            given["joint_tasks"] = (settings.joint_tasks, most, there)
    for name, (value, most, there) in given.items():
        if value > most:
            least = 2 if name == "pool_images" else 1
            reason, fitting = (
                f"{name} is {value}, and there are {there}",
                {name: most} if most >= least else {},
            )
            found = joint_shortage(found, Shortage(data.name, (reason,), fitting))
    return found


def fitting_defaults(data: ImageData) -> list[str]:
    """The commands whose default counts do not fit the data, each with the flags that do, or that none do."""
    found = {
        "search": search_shortage(Search(), data),
        "search --method halving": search_shortage(Search(method="halving"), data),
        "train": train_shortage(Train(), data),
        "meta-train": meta_train_shortage(MetaTrain(), data),
        "evaluate": evaluate_shortage(Evaluate(), data),
    }
    return [
        f"the usual counts of a command do not fit; these do: {name} {short.flags()}"
        if short.fitting
        else f"no counts of {name} fit: {'; '.join(short.reasons)}"
        for name, short in found.items()
        if short is not None
    ]
