"""``search --method halving``: random cells of one size, trained a little; the best are trained further.

Every candidate is an ordinary training in ``candidates/NUMBER`` of the run folder, so that it continues bit for bit,
and the one that was found is read by ``evaluate`` and ``predict``. A rung is ranked when all its candidates are there:
the result does not depend on the number of processes.
"""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np

from experiments.data.loading import data_of
from experiments.genotypes import network_size, read_genotype
from experiments.plotting import curve, figure, save_figure
from experiments.requirements import require
from experiments.runs import quoted, without_paths
from experiments.search.settings import Search
from experiments.settings import limits_of
from experiments.training.settings import TRAIN, Train
from experiments.training.train import epoch_lines, train_network
from mamltheory.errors import ValueRangeError
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.prototypes import prototype_accuracies, split_features
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.search.halving import Headroom, Measured, Rung, epochs_of, headroom, successive_halving
from mamltheory.nas.search.surrogate import fit_surrogate
from mamltheory.nas.sizes import Band, genotype_parameters, random_genotype_within
from mamltheory.nas.table import load_table
from mamltheory.rng import derived_seed, generator
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import read_record, replace_file, to_json
from mamltheory.runtime.temporary import FOLDER, owner
from mamltheory.runtime.workers import Mapper
from mamltheory.strict_json import misfit, sealed

CANDIDATES, MEASUREMENTS, GENOTYPES, TRAINED = "candidates", "measurements", "genotypes", "train"
FOLDERS = (CANDIDATES, MEASUREMENTS, GENOTYPES, TRAINED)
WAYS, SHOTS, QUERIES = 5, 1, 15


class Item(NamedTuple):
    """A candidate that trains up to an epoch; training 1 is the second one, for ``--confirm``."""

    candidate: int
    epochs: int
    training: int = 0

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.candidate:03d}" + "-again" * self.training


class _Measurement(TypedDict):
    loss: float
    accuracy: float
    diverged: bool
    correct: list[int]
    test_accuracy: float
    cpu_seconds: Annotated[float, 0]


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        candidate: number of the cell that was found.
        genotypes: of all candidates.
        record: what ``search.json`` holds.
    """

    candidate: int
    genotypes: tuple[Genotype, ...]
    record: dict[str, Any]


def rungs_of(settings: Search) -> tuple[Rung, ...]:
    """The rungs of the settings."""
    return tuple(map(Rung, settings.rungs, settings.rung_epochs, settings.rank_by))


def band_of(settings: Search) -> Band:
    """The sizes of the network that are allowed; raises ConfigurationError if none are named."""
    size = network_size(settings, len(data_of(settings).train.class_names))
    require(
        settings.parameters is not None,
        "method halving compares cells of one size: give --parameters, as in --parameters 36000:42000 or --parameters "
        "genotype.json for its size ± 8 %",
    )
    text = str(settings.parameters)
    if text.endswith(".json"):
        return Band.around(read_genotype(Path(text)), size)
    return Band(*limits_of(text))


def candidates_of(settings: Search) -> tuple[Genotype, ...]:
    """The random cells of the first rung, no two alike; a warm start takes the best predicted of many."""
    size = network_size(settings, len(data_of(settings).train.class_names))
    band, found = band_of(settings), dict[Genotype, None]()
    random = generator(settings.seed, "halving candidates")
    wanted = settings.proposals if settings.warm_start is not None else settings.rungs[0]
    for _ in range(20 * wanted):
        if len(found) == wanted:
            break
        found[random_genotype_within(band, random, size)] = None
    require(
        len(found) == wanted,
        f"only {len(found)} different cells with {band} parameters were found, and {wanted} are needed: widen the "
        "band, or lower the first of --rungs",
    )
    drawn = tuple(found)
    if settings.warm_start is None:
        return drawn
    table = load_table(None if settings.warm_start == "glyphs" else Path(settings.warm_start))
    known = [(cell.genotype, cell.trained()) for cell in table.cells]
    trained = [(genotype, each.accuracy[SHOTS]) for genotype, each in known if each and not each.diverged]
    predicted = fit_surrogate(*zip(*trained, strict=True)).predict(drawn)  # type: ignore[arg-type]
    return tuple(drawn[i] for i in np.argsort(-predicted, kind="stable")[: settings.rungs[0]])


def check_halving(settings: Search) -> ImageData:
    """The data; a mistake in counts, band or table is found here, before the run folder is opened."""
    data = data_of(_at_scale(settings))
    classes, fewest = len(data.val.class_names), min(len(members) for members in data.val.members)
    require(
        classes >= WAYS and fewest >= SHOTS + QUERIES,
        f"{settings.data} has {classes} validation classes with {fewest} images or more: halving ranks cells by "
        f"{WAYS}-way tasks of {SHOTS + QUERIES} images each; choose other data, or another --split",
    )
    batch, count = settings.search_batch_size, len(data.train)
    require(2 <= batch <= count, f"search_batch_size is {batch}: expected 2 to the {count} training images")
    if settings.then_train is not None:
        known = ", ".join(TRAIN)
        require(
            settings.then_train in TRAIN, f"then_train is '{settings.then_train}': expected one of {known}"
        )
    candidates_of(settings)
    return data


def halve(settings: Search, device: str) -> Found:
    """Run or continue the rungs in the run folder of a search.

    Args:
        settings: Settings of the search, whose record is open.
        device: Where to compute.

    Returns:
        What was found. ConfigurationError is raised after the first rung if the networks hardly differ.
    """
    genotypes = candidates_of(settings)
    for index, genotype in enumerate(genotypes):
        replace_file(genotype_file(settings, index), to_json(genotype.to_json()).encode())
    with spread_over(settings.jobs) as spread:
        measure = partial(_measured, settings, genotypes, device, spread)
        records: dict[Item, _Measurement] = {}

        def rung_measured(alive: Sequence[int], rung: Rung) -> list[Measured]:
            items = [Item(i, rung.epochs) for i in alive]
            records.update(measure(items, f"{len(alive)} cells to epoch {rung.epochs}"))
            if rung.epochs == settings.rung_epochs[0]:
                _check_headroom(_headroom([records[item] for item in items]), settings)
            found = [_value(records[item]) for item in items]
            print(_standing(alive, found, rung), flush=True)
            return found

        standings = successive_halving(len(genotypes), rungs_of(settings), rung_measured)
        last = settings.rung_epochs[-1]
        finalists = standings[-1][1][: settings.confirm]
        again = [Item(i, last, 1) for i in finalists]
        controls = [Item(i, last) for i in range(settings.confirm)]
        if again:
            records.update(measure(again + controls, f"{settings.confirm} second trainings and controls"))
    record = _record(settings, genotypes, standings, records, finalists)
    keep_trained(settings, standings[-1][1][0])
    return Found(standings[-1][1][0], genotypes, record)


def _measured(
    settings: Search,
    genotypes: Sequence[Genotype],
    device: str,
    spread: Mapper,
    items: Sequence[Item],
    title: str,
) -> dict[Item, _Measurement]:
    """The measurements of all items; only those that the run folder lacks are computed."""
    files = {item: settings.out / MEASUREMENTS / f"{item.folder}-epoch-{item.epochs}.json" for item in items}
    found = {item: _read(path) for item, path in files.items() if path.exists()}
    missing = [item for item in items if item not in found]
    with stage(f"halving: {title}", len(items)) as advance:
        advance(len(found))
        for item, record in spread(partial(measure_candidate, settings, tuple(genotypes), device), missing):
            replace_file(files[item], sealed(to_json(record)))
            found[item] = record
            best = max(found, key=lambda each: found[each]["accuracy"])
            advance(note=f"best so far: cell {best.candidate}, {100 * found[best]['accuracy']:.1f} %")
    return found


def measure_candidate(
    settings: Search, genotypes: tuple[Genotype, ...], device: str, item: Item
) -> _Measurement:
    """Train a candidate to an epoch in its run folder, and measure it; it runs in any process.

    Args:
        settings: Settings of the search.
        genotypes: All candidates.
        device: Where to compute.
        item: The candidate and the epoch.

    Returns:
        Its measurement. A training whose loss is not finite is marked as diverged.
    """
    begun, data = time.process_time(), data_of(_at_scale(settings))
    train = dataclasses.replace(candidate_training(settings, item), device=device)
    try:
        network = train_network(train, genotypes[item.candidate], until=item.epochs, shown=False)
        features = {
            name: split_features(network, getattr(data, name), data.mean, data.std, device)
            for name in ("val", "test")
        }
    except ValueRangeError:
        return _Measurement(
            loss=math.nan,
            accuracy=math.nan,
            diverged=True,
            correct=[],
            test_accuracy=math.nan,
            cpu_seconds=time.process_time() - begun,
        )
    val, test = (prototype_accuracies(features[name], _tasks(settings, name)) for name in ("val", "test"))
    check_interrupted()
    return _Measurement(
        loss=float(epoch_lines(train, item.epochs)[item.epochs]["loss"]),
        accuracy=float(val.mean()),
        diverged=False,
        correct=[round(float(each) * WAYS * QUERIES) for each in val],
        test_accuracy=float(test.mean()),
        cpu_seconds=time.process_time() - begun,
    )


@cache
def _tasks(settings: Search, split: str) -> tuple[Episode, ...]:
    classes = getattr(data_of(_at_scale(settings)), split)
    seed = derived_seed(settings.seed, f"halving tasks {split}")
    return tuple(
        sample_episode(classes, WAYS, SHOTS, QUERIES, seed, i) for i in range(settings.validation_tasks)
    )


def _at_scale(settings: Search) -> Search:
    """The settings with the size of networks and images while searching."""
    names = ("channels", "cells", "image_size", "stem_stride")
    own = {name: getattr(settings, f"search_{name}") for name in names}
    return dataclasses.replace(settings, **{name: value for name, value in own.items() if value is not None})


def candidate_training(settings: Search, item: Item) -> Train:
    """The training of a candidate: all share the initial weights of equal layers, the order and the augmentation."""
    scale = _at_scale(settings)
    shared = ("data", "split", "split_seed", "image_size", "channels", "cells", "stem_stride")
    return Train(
        **{name: getattr(scale, name) for name in shared},
        seed=settings.seed if item.training == 0 else derived_seed(settings.seed, "halving again") % 2**31,
        genotype=genotype_file(settings, item.candidate),
        epochs=settings.rung_epochs[-1],
        batch_size=settings.search_batch_size,
        learning_rate=settings.search_learning_rate,
        milestones=settings.search_milestones,
        drop_path=0.0,
        out=settings.out / CANDIDATES / item.folder,
    )


def genotype_file(settings: Search, candidate: int) -> Path:
    """The file of a candidate's cells."""
    return settings.out / GENOTYPES / f"{candidate:03d}.json"


def keep_trained(settings: Search, candidate: int) -> None:
    """Copy the training of the found cell to ``train`` in the run folder, whole or not at all."""
    place = settings.out / TRAINED
    if place.exists() or settings.then_train is not None:
        return
    temporary = settings.out / f"{FOLDER}{owner(os.getpid())}"
    shutil.copytree(settings.out / CANDIDATES / Item(candidate, 0).folder, temporary)
    temporary.rename(place)


def full_training(settings: Search) -> Train:
    """The training of the found cell by the preset ``then_train``, on the data of the search."""
    assert settings.then_train is not None, "only searches at a scale of their own train again"
    return dataclasses.replace(
        TRAIN[settings.then_train],
        **{name: getattr(settings, name) for name in ("data", "split", "split_seed", "seed", "device")},
        genotype=settings.out / "genotype.json",
        out=settings.out / TRAINED,
    )


def _read(path: Path) -> _Measurement:
    again = "remove it, and it is measured again"
    record: Any = read_record(path, dict, again)
    for name in ("loss", "accuracy", "test_accuracy"):
        record[name] = float(record.get(name, "nan"))
    wrong = misfit(record, _Measurement, "it")
    require(wrong is None, f"{path} holds something else ({wrong}): {again}")
    return record


def _value(record: _Measurement) -> Measured:
    return Measured(record["loss"], record["accuracy"], record["diverged"])


def _headroom(records: Sequence[_Measurement]) -> Headroom | None:
    """What choosing among the candidates of a rung can gain; None for fewer than three trainings that went well."""
    rows = [record["correct"] for record in records if not record["diverged"]]
    return headroom(np.array(rows) / (WAYS * QUERIES)) if len(rows) > 2 else None


def _check_headroom(room: Headroom | None, settings: Search) -> None:
    if room is None:
        return
    most = 100 * room.most
    nothing = room.p_value > 0.05 or most < settings.least_gain
    found = (
        f"at epoch {settings.rung_epochs[0]} networks of this size differ by {100 * room.deviation:.1f} points beyond "
        f"the noise of the tasks (p = {room.p_value:.2g}); the best can be {most:.1f} points ahead of their mean, luck "
        "of the training included"
    )
    require(
        settings.anyway or not nothing,
        f"{found}: a search can gain next to nothing here; take any cell of this size, or give --anyway",
    )
    print(found)


def _standing(alive: Sequence[int], measured: Sequence[Measured], rung: Rung) -> str:
    order = sorted(range(len(alive)), key=lambda i: -measured[i].merit(rung.by))
    shown = ", ".join(
        f"{alive[i]} ({100 * measured[i].accuracy:.1f} %, loss {measured[i].loss:.2f})" for i in order[:4]
    )
    lost = sum(each.diverged for each in measured)
    return (
        f"epoch {rung.epochs}: {len(alive)} cells, ranked by {rung.by}: {shown}"
        + ", …" * (len(alive) > 4)
        + f"; {lost} diverged and are last" * bool(lost)
    )


def _record(
    settings: Search,
    genotypes: Sequence[Genotype],
    standings: Sequence[tuple[Rung, list[int]]],
    records: dict[Item, _Measurement],
    finalists: Sequence[int],
) -> dict[str, Any]:
    """What ``search.json`` says: standings, control, cost, and what was confirmed."""
    size = network_size(settings, len(data_of(settings).train.class_names))
    rungs: list[dict[str, Any]] = []
    for rung, alive in standings:
        rows: list[dict[str, Any]] = [{"cell": i, **records[Item(i, rung.epochs)]} for i in alive]
        kept = ("cell", "loss", "accuracy", "diverged")
        cells = [{name: row[name] for name in kept} for row in rows]
        rungs.append({"epochs": rung.epochs, "by": rung.by, "cells": cells})
    best, first = standings[-1][1][0], settings.rung_epochs[0]
    fair = [records[Item(i, first)]["accuracy"] for i in standings[0][1]]
    fair = [each for each in fair if math.isfinite(each)]
    epochs = epochs_of(rungs_of(settings))
    room = _headroom([records[Item(i, first)] for i in standings[0][1]])
    return {
        "method": "halving",
        "genotype": genotypes[best].to_json(),
        "cell": best,
        "parameters": genotype_parameters(genotypes[best], size),
        "rungs": rungs,
        "headroom": None if room is None else dataclasses.asdict(room),
        "control": {
            "epochs": first,
            "random cells": float(np.mean(fair)),
            "found": records[Item(best, first)]["accuracy"],
        },
        "cost": {
            "epochs": epochs,
            "full trainings": epochs / settings.rung_epochs[-1],
            "cpu_seconds": sum(each["cpu_seconds"] for item, each in records.items() if item.training == 0),
        },
        "diverged": sorted({item.candidate for item, each in records.items() if each["diverged"]}),
        "confirmed": _confirmed(settings, records, finalists),
    }


def _confirmed(
    settings: Search, records: dict[Item, _Measurement], finalists: Sequence[int]
) -> dict[str, Any] | None:
    """Final accuracies on the test classes: finalists as trained and trained again, and random cells of the rung."""
    if not finalists:
        return None
    last = settings.rung_epochs[-1]
    kept, again, random = (
        [records[item]["test_accuracy"] for item in items]
        for items in (
            [Item(i, last) for i in finalists],
            [Item(i, last, 1) for i in finalists],
            [Item(i, last) for i in range(settings.confirm)],
        )
    )
    return {
        "finalists": list(finalists),
        "kept": kept,
        "trained again": again,
        "random cells": random,
        "gain of the network": float(np.mean(kept) - np.mean(random)),
        "gain of the cells": float(np.mean(again) - np.mean(random)),
    }


def closing_lines(record: dict[str, Any], settings: Search) -> list[str]:
    """The result in words: what was found, its control, the cost, and the next command."""
    control, cost = record["control"], record["cost"]
    gain = 100 * (control["found"] - control["random cells"])
    lines = [
        f"found cell {record['cell']} of {settings.rungs[0]}, {record['parameters']:,} parameters; at epoch "
        f"{control['epochs']} it was {gain:+.1f} points from the mean of the random cells "
        f"({100 * control['random cells']:.1f} %), on validation classes",
        f"cost: {cost['epochs']} epochs, as {cost['full trainings']:.1f} full trainings; {cost['cpu_seconds']:.0f} CPU "
        "seconds",
    ]
    if record["diverged"]:
        lines.append(f"cells whose training diverged: {', '.join(map(str, record['diverged']))}")
    if (found := record["confirmed"]) is not None:
        lines.append(
            f"confirmed on test classes, {len(found['finalists'])} finalists against as many random cells: networks as "
            f"trained {100 * found['gain of the network']:+.1f} points, the cells trained again "
            f"{100 * found['gain of the cells']:+.1f}"
        )
    lines.append(f"evaluate it: python -m experiments evaluate --checkpoint {quoted(settings.out / TRAINED)}")
    return lines


def draw_rungs(record: dict[str, Any], settings: Search) -> None:
    """Draw the validation accuracies of all candidates over the epochs of the rungs, and the found one's."""
    best = record["cell"]
    curves: dict[int, list[tuple[int, float]]] = {}
    for rung in record["rungs"]:
        for cell in rung["cells"]:
            if not cell["diverged"]:
                curves.setdefault(cell["cell"], []).append((rung["epochs"], 100 * cell["accuracy"]))
    with figure("column", 2.6) as (drawing, axes):
        panel = axes[0, 0]
        for number, points in sorted(curves.items(), key=lambda item: item[0] == best):
            style = curve(0) if number == best else {"color": "0.75", "marker": "."}
            panel.plot(*zip(*points, strict=True), label="found" if number == best else None, **style)
        first = record["control"]
        panel.plot(first["epochs"], 100 * first["random cells"], label="mean of the random cells", **curve(1))
        panel.set_xlabel("epochs of training")
        panel.set_ylabel("5-way 1-shot accuracy,\nvalidation classes (%)")
        panel.legend(loc="lower right")
        panel.set_title(f"{settings.rungs[0]} cells with {settings.parameters} parameters, {settings.data}")
        paths = save_figure(
            drawing, "rungs", {"rungs": record["rungs"]}, settings.out, without_paths(settings), settings.seed
        )
    print(f"wrote {paths[0]} (and .pdf, .json)")
