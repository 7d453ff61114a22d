"""Measurements of studies that do not fit are refused by the name of their file."""

import json
import shutil

import pytest

from experiments.studies import correlation, stability
from mamltheory.runtime.records import to_json
from mamltheory.strict_json import sealed
from tests.experiments.refusals import refused
from tests.experiments.studies.cases import (
    correlation_settings,
    planted_records,
    planted_repeats,
    stability_settings,
)

DEEP = "[" * 100_000


STUDIES = {
    "correlation": (
        correlation.study_correlation,
        correlation.trainings_of,
        correlation_settings,
        lambda s: planted_records(s.networks, 3),
    ),
    "stability": (stability.study_stability, stability.repeats_of, stability_settings, planted_repeats),
}


@pytest.fixture(params=STUDIES)
def study(request, tmp_path, monkeypatch):
    """A study whose measurements lie in its folder, and the name of one."""
    command, items_of, settings_of, planted = STUDIES[request.param]
    settings = settings_of(tmp_path)
    items, records = items_of(settings), planted(settings)
    by_item = {item: name for name, item in items.items()}
    folder = settings.runs / "measurements"
    folder.mkdir(parents=True)
    for key, record in records.items():
        item = (record["network"], record["training"]) if request.param == "correlation" else items[key]
        (folder / f"{by_item[item]}.json").write_bytes(sealed(to_json(record)))
    for name in ("correlation.draw_pool", "stability.draw_tasks"):
        monkeypatch.setattr(f"experiments.studies.{name}", lambda *_: None)
    for name in (f"draw_{request.param}", "replace_file"):
        monkeypatch.setattr(f"experiments.studies.{request.param}_report.{name}", lambda *_: None)
    return command, settings, folder / f"{next(iter(items))}.json"


def test_a_changed_digit_of_a_measurement_changes_no_study(study):
    command, settings, file = study
    assert command(settings) == 0
    text = file.read_text()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    for position in digits[:: max(1, len(digits) // 6)]:
        file.write_text(text[:position] + str((int(text[position]) + 1) % 10) + text[position + 1 :])
        refused(
            command,
            settings,
            match=rf"{file.name} is (damaged|not JSON).*remove it, and it is measured again",
        )


def test_a_measurement_of_another_type_is_refused_by_name(study):
    command, settings, file = study
    content = json.loads(file.read_text())
    del content["sha256"]
    for name in content:
        for value in (None, "a", {"a": None}, [[]], -1.5, "missing"):
            spoilt = {**content, name: value}
            if value == "missing":
                del spoilt[name]
            file.write_text(json.dumps(spoilt))
            refused(command, settings, match=rf"{file.name} holds something else")
    for text in (DEEP, "[]", "3", '{"a": 1', "\x00"):
        file.write_text(text)
        refused(command, settings, match=rf"{file.name}.*remove it, and it is measured again")
    file.write_bytes(b"\xff\xfe\x00")
    refused(command, settings, match="not JSON")


def test_a_measurement_in_the_place_of_another_is_refused(study):
    command, settings, file = study
    other = sorted(file.parent.glob("*.json"))
    other.remove(file)
    shutil.copy(other[0], file)
    refused(command, settings, match="are those of another file|holds something else")
