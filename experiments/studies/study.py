"""A study is many independent measurements, each a JSON file in the run folder, and what is read off them."""

from collections.abc import Callable, Mapping

from experiments.runs import FREE, opened_run
from experiments.studies.measurements import AGAIN, MEASUREMENTS, Record
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain, read_record, replace_file, to_json
from mamltheory.runtime.temporary import sweep
from mamltheory.runtime.workers import ON_ONE_THREAD, workers
from mamltheory.strict_json import sealed

STUDY_FREE = (*FREE, "runs", "draws")
"""Settings that do not change a measurement."""


def measured(
    settings: object,
    command: str,
    items: Mapping[str, object],
    function: Callable[[object], Record],
    counts: tuple[str, ...],
    device: str,
) -> dict[str, Record]:
    """The records of all items, by name; only those that the run folder lacks are measured.

    function: item -> record, a pure function that can be sent to a process. counts: settings that say how many
    items there are, and may differ when a study goes on.
    """
    folder = settings.runs / MEASUREMENTS
    with opened_run(
        command,
        settings,
        device,
        folder=settings.runs,
        free=(*STUDY_FREE, *counts, *ON_ONE_THREAD),
        known=(MEASUREMENTS,),
        again=f"the same command; finished measurements lie in {settings.runs}",
    ) as log:
        sweep(folder, alone=True)
        files = {name: folder / f"{name}.json" for name in items}
        found = {name: read_record(path, dict, AGAIN) for name, path in files.items() if path.exists()}
        names = {items[name]: name for name in items if name not in found}
        with workers(settings.jobs) as spread, stage(command, len(names)) as advance:
            for item, record in spread(function, names):
                name = names[item]
                found[name] = plain(record)
                replace_file(files[name], sealed(to_json(record)))
                advance(note=name)
        log.close(measurements=len(found))
    return {name: found[name] for name in items}
