"""``predict``: classes of a user's images from a few labelled ones, by a trained network."""

import csv
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError, printable
from mamltheory.fewshot.evaluation import Predictions
from mamltheory.fewshot.formats.common import Options
from mamltheory.fewshot.formats.folders import usual_suffixes
from mamltheory.fewshot.formats.listing import class_folders, image_files, in_words, total
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.records import replace_file

from ..runs import opened_run, warn
from .settings import Predict
from .trained import read_training

UNSURE = 5
"""Number of least certain images in the summary."""
FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""First characters of a formula in a spreadsheet."""


@dataclass(frozen=True)
class UserTask:
    """The files of one few-shot task: labelled ones by class, and unlabelled ones."""

    support: dict[str, tuple[Path, ...]]
    query: tuple[Path, ...]
    place: Path
    """The folder of the query images."""
    left_out: Counter[str]
    """Number of files that are not read, by reason."""

    @property
    def labels(self) -> np.ndarray:
        """The number of the class of each support file."""
        return np.repeat(np.arange(len(self.support)), [len(files) for files in self.support.values()])


def write_predictions(settings: Predict) -> int:
    """Write ``predictions.csv`` and print a summary; returns 0."""
    task = find_images(settings.images)
    training, device = read_training(settings.checkpoint), choose_device(settings.device)
    # Its own classes have names in the data of the training alone, and are none of the task's.
    network = TrainedNetwork(training.network.to(device.device), training.inputs, classes=())
    support, query = read_images(task, training.inputs.image_size)
    with opened_run("predict", settings, device.device) as log:
        begun = time.process_time()
        predictions = network.predict(
            query,
            support,
            task.labels,
            head=settings.head,
            C=settings.C,
            copies=settings.augment,
            seed=settings.seed,
        )
        text = predictions_csv(task, predictions, settings)
        replace_file(settings.out / "predictions.csv", text.encode())
        lines = [*prediction_summary(task, predictions, settings), *repeated_image_lines(support, query)]
        log.close(summary=lines, cpu_seconds=time.process_time() - begun)
    print("\n".join([*lines, printable(f"wrote {settings.out / 'predictions.csv'}")]))
    return 0


def find_images(folder: Path) -> UserTask:
    """The image files below support/CLASS and query, sorted by name; raises DataError for another layout."""
    layout = f"expected {folder}/support/CLASS/*.png for every class and {folder}/query/*.png (or {usual_suffixes()})"
    for part in ("support", "query"):
        if not (folder / part).is_dir():
            raise DataError(f"there is no folder {folder / part}: {layout}")
    try:
        classes, others = class_folders(folder / "support")
        support = {entry.name: image_files(entry, folder) for entry in classes}
        query = image_files(folder / "query", folder)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    lists = {**{f"support/{name}": found for name, found in support.items()}, "query": query}
    for name, found in lists.items():
        if not found.files:
            but = f" that is read (it holds {in_words(found.left_out)})" if found.left_out else ""
            raise DataError(f"{folder / name} holds no image{but}: {layout}")
    if len(support) < 2:
        raise DataError(f"{folder}/support has {len(support)} classes, a choice needs at least 2: {layout}")
    left_out = total([others, *(found.left_out for found in lists.values())])
    files = {name: found.files for name, found in support.items()}
    return UserTask(files, query.files, folder / "query", left_out)


def read_images(task: UserTask, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Support and query images (uint8 N×size×size×3); raises DataError naming a file that cannot be read."""

    def read(name: str, files: Sequence[Path]) -> np.ndarray:
        return decoded([(str(file), file) for file in files], len(files), name, Options(size, notice=warn))

    support = [file for files in task.support.values() for file in files]
    return read("support", support), read("query", task.query)


def confidence_name(settings: Predict) -> str:
    """The name of the head's certainty; only logistic regression has probabilities."""
    return "probability" if settings.head == "logistic" else "margin"


def predictions_csv(task: UserTask, predictions: Predictions, settings: Predict) -> str:
    """The CSV: file, class, and the probability or margin; names are printable and no formulas."""
    names, file = list(task.support), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "class", confidence_name(settings)])
    rows = zip(task.query, predictions.labels, predictions.confidence, strict=True)
    for path, label, sure in rows:
        words = (path.relative_to(task.place).as_posix(), names[label])
        writer.writerow([*map(no_formula, words), f"{sure:.6g}"])
    return file.getvalue()


def no_formula(word: str) -> str:
    """The word on one line, with an apostrophe before a formula."""
    word = printable(word)
    return f"'{word}" if word.lstrip()[:1] in FORMULAS else word


def repeated_image_lines(support: np.ndarray, query: np.ndarray) -> list[str]:
    """A line about query images that equal labelled ones, if there are any."""
    known = {image.tobytes() for image in support}
    count = sum(image.tobytes() in known for image in query)
    return [f"{count} query images are identical to labelled ones"] if count else []


def prediction_summary(task: UserTask, predictions: Predictions, settings: Predict) -> list[str]:
    """The task, the number of images in each class, and the least certain images."""
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
    files = [path.relative_to(task.place).as_posix() for path in task.query]
    unsure = [f"{files[i]} ({predictions.confidence[i]:.2g})" for i in order]
    lines.append(f"least certain, by {confidence_name(settings)}: {', '.join(unsure)}")
    if task.left_out:
        count = sum(task.left_out.values())
        lines.append(
            f"{count} other files were left out: {in_words(task.left_out)}; images are {usual_suffixes()} and others"
        )
    if not predictions.converged:
        lines.append("the classifier did not converge: lower C")
    return [printable(line) for line in lines]
