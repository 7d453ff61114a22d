"""``predict``: classes of a user's own images, from a few labelled ones, by a trained network."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.cells.common import FREE
from experiments.cells.trained import read_training
from experiments.settings import Predict
from mamltheory.errors import DataError
from mamltheory.fewshot.augment import Augmentation
from mamltheory.fewshot.formats.common import Options
from mamltheory.fewshot.formats.pixels import SUFFIXES, decoded
from mamltheory.fewshot.predict import Predictions, predict
from mamltheory.runtime.device import choose_device, environment
from mamltheory.runtime.records import replace_file
from mamltheory.runtime.runlog import open_run, recorded

UNSURE = 5
"""Images named in the summary as the least certain ones."""


@dataclass(frozen=True)
class UserTask:
    """The files of one few-shot task: labelled ones by class, and those whose class is asked for."""

    support: dict[str, tuple[Path, ...]]
    query: tuple[Path, ...]
    ignored: int

    @property
    def labels(self) -> np.ndarray:
        """The number of the class of each support file."""
        return np.repeat(np.arange(len(self.support)), [len(files) for files in self.support.values()])


def run(settings: Predict) -> int:
    """Write ``predictions.csv`` and print a summary; returns 0."""
    task = find_images(settings.images)
    training, device = read_training(settings.checkpoint), choose_device(settings.device)
    network, inputs = training.network.to(device.device), training.inputs
    support, query = read_images(task, inputs.image_size)
    log = open_run(settings.out, "predict", settings, settings.seed, environment(device.device), FREE)
    with recorded(log, None):
        predictions = predict(
            network,
            support,
            task.labels,
            query,
            inputs.mean,
            inputs.std,
            head=settings.head,
            C=settings.C,
            copies=settings.augment,
            augmentation=Augmentation(flip=inputs.mirrors),
            seed=settings.seed,
            device=device.device,
        )
        text = table_of(task, predictions, settings)
        replace_file(settings.out / "predictions.csv", text.encode())
    lines = summary(task, predictions, settings)
    log.close(summary=lines)
    print("\n".join([*lines, f"wrote {settings.out / 'predictions.csv'}"]))
    return 0


def find_images(folder: Path) -> UserTask:
    """The image files below support/CLASS and in query, sorted by name.

    Raises DataError when a folder is missing, a class is empty, or there are fewer than two classes.
    """
    layout = f"expected {folder}/support/CLASS/*.png for every class and {folder}/query/*.png (or .jpg)"
    for part in ("support", "query"):
        if not (folder / part).is_dir():
            raise DataError(f"there is no folder {folder / part}: {layout}")
    classes = sorted(entry for entry in (folder / "support").iterdir() if entry.is_dir())
    support = {entry.name: _images_in(entry) for entry in classes}
    query = _images_in(folder / "query")
    empty = [f"support/{name}" for name, files in support.items() if not files] + ["query"] * (not query)
    if empty:
        raise DataError(f"{folder / empty[0]} holds no image: {layout}")
    if len(support) < 2:
        raise DataError(f"{folder}/support has {len(support)} classes, a choice needs at least 2: {layout}")
    entries = [each for place in (*classes, folder / "query") for each in place.iterdir()]
    return UserTask(support, query, len(entries) - len(query) - sum(map(len, support.values())))


def _images_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES))


def read_images(task: UserTask, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Support and query images (uint8 N×size×size×3) at the side that the network was trained on.

    Raises DataError naming the file that cannot be read; files are decoded as PNG or JPEG, whatever they say.
    """
    groups = ([file for files in task.support.values() for file in files], task.query)
    return tuple(
        decoded([(str(file), file) for file in files], len(files), "images", Options(size))
        for files in groups
    )


def confidence_name(settings: Predict) -> str:
    """What the head's certainty is: only logistic regression has probabilities."""
    return "probability" if settings.head == "logistic" else "margin"


def table_of(task: UserTask, predictions: Predictions, settings: Predict) -> str:
    """The CSV: file, class, and the probability or margin."""
    names, file = list(task.support), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "class", confidence_name(settings)])
    rows = zip(task.query, predictions.labels, predictions.confidence, strict=True)
    writer.writerows([path.name, names[label], f"{sure:.6g}"] for path, label, sure in rows)
    return file.getvalue()


def summary(task: UserTask, predictions: Predictions, settings: Predict) -> list[str]:
    """What was asked, how often each class was found, and which images are the least certain."""
    names, counts = list(task.support), Counter(predictions.labels.tolist())
    shots = sorted({len(files) for files in task.support.values()})
    head = settings.head if settings.head == "nearest-centroid" else f"{settings.head} (C={settings.C:g})"
    copies = f"{settings.augment} augmented copies of each" if settings.augment else "as they are"
    lines = [
        f"{len(task.query)} images in {len(names)} classes, from {'–'.join(map(str, {shots[0]: 0, shots[-1]: 0}))} "
        f"labelled images per class ({copies}), {head}, seed {settings.seed}"
    ]
    lines += [f"  {name}: {counts[number]}" for number, name in enumerate(names)]
    order = np.argsort(predictions.confidence, kind="stable")[:UNSURE]
    unsure = [f"{task.query[i].name} ({predictions.confidence[i]:.2g})" for i in order]
    lines.append(f"least certain, by {confidence_name(settings)}: {', '.join(unsure)}")
    if task.ignored:
        lines.append(f"{task.ignored} other files were left out: only {', '.join(SUFFIXES)} are read")
    if not predictions.converged:
        lines.append("the classifier did not converge: lower C")
    return lines
