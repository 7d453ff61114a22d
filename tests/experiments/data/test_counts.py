"""Studies and tables name all counts that do not fit their data before they measure or write anything."""

import dataclasses
import re

import pytest

from experiments.data.counts import protocols_shortage, stability_shortage, study_shortage
from experiments.search import comparison
from experiments.search.settings import Protocols, Search
from experiments.studies import correlation, stability, tabulate
from experiments.studies.settings import Correlation, Stability, Tabulate
from experiments.tables import pipeline, table
from experiments.tables.settings import RECIPES, Recipe, Table
from mamltheory.errors import ConfigurationError
from tests.experiments.tiny import SIZE, evaluate_settings, train_settings
from tests.fewshot.small import noise_data

SMALL = noise_data(16, classes=6, per_class=8)
FIVE = noise_data(16, classes=5, per_class=20)


def short(text):
    """A message as a pattern, in which ``...`` stands for anything."""
    return re.escape(text).replace(re.escape("..."), ".*")


@pytest.mark.parametrize(
    ("run", "module", "settings", "data", "message"),
    [
        (
            correlation.study_correlation,
            correlation,
            Correlation(joint_tasks=4, device="cpu"),
            FIVE,
            "pools is 4, and there are 5 training classes, 5 for each pool; joint_tasks is 4, and there are 3 tasks "
            "without a repeated image in a pool of 5 classes with 6 images; these values fit: --pools 1 "
            "--joint-tasks 3",
        ),
        (
            tabulate.tabulate_cells,
            tabulate,
            Tabulate(device="cpu"),
            SMALL,
            "shots + queries is 5 + 15, and the test class 'test0' has 8 images; shots + queries is 5 + 15, and the "
            "validation class 'val0' has 8 images; batch_size is 64, ...; pools is 4, ...; give data with more",
        ),
        (
            stability.study_stability,
            stability,
            Stability(exact_tasks=9, device="cpu"),
            SMALL,
            "gradient_tasks is 12, and 4 tasks of 5 classes with 1 + 1 images ...; exact_tasks is 9, and 4 tasks ...; "
            "these values fit: --gradient-tasks 4 --exact-tasks 4",
        ),
    ],
)
def test_a_study_names_all_counts_before_it_opens_its_folder(
    run, module, settings, data, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "data_of", lambda _: data)
    folders = {name: tmp_path / "out" for name in ("out", "runs") if hasattr(settings, name)}
    with pytest.raises(ConfigurationError, match=short(message)):
        run(dataclasses.replace(settings, **folders))
    assert not (tmp_path / "out").exists()


def test_the_values_that_a_study_proposes_fit():
    fitted = {}
    for settings, shortage in (
        (Correlation(joint_tasks=4, pool_images=30), study_shortage),
        (Stability(exact_tasks=90), stability_shortage),
    ):
        proposed = dict(shortage(settings, FIVE).fitting)
        fitted[type(settings)] = proposed
        proposed |= {
            name: (proposed[name],) for name in proposed if isinstance(getattr(settings, name), tuple)
        }
        assert shortage(dataclasses.replace(settings, **proposed), FIVE) is None
    assert fitted[Correlation] == {"pools": 1, "pool_images": 20}


def test_scores_that_are_not_measured_need_no_tasks():
    settings = Stability(gradient_tasks=(3,), exact_tasks=90, exact_repeats=0)
    assert stability_shortage(settings, SMALL) is None


def test_a_table_of_cells_needs_images_for_its_pools_and_validations():
    test = noise_data(16, classes=6, per_class=20).test
    found = study_shortage(Tabulate(pools=1, batch_size=16), dataclasses.replace(SMALL, test=test))
    assert found.reasons == ("shots + queries is 5 + 15, and the validation class 'val0' has 8 images",)
    few = noise_data(16, classes=6, per_class=4).train
    found = study_shortage(Tabulate(pools=1, batch_size=16), dataclasses.replace(FIVE, train=few))
    assert found.reasons == ("shots + queries is 1 + 5, and the training class 'train0' has 4 images",)


def test_protocols_asks_before_the_first_search_whether_the_last_one_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "data_of", lambda _: SMALL)
    settings = Protocols(runs=tmp_path / "runs", out=tmp_path / "out", device="cpu")
    message = "in the protocol stable, tasks is 12, and 4 tasks ...; these values fit: --stable 0"
    with pytest.raises(ConfigurationError, match=short(message)):
        comparison.compare_protocols(settings)
    assert not list(tmp_path.iterdir())
    assert protocols_shortage(dataclasses.replace(settings, stable=0), SMALL) is None
    two = noise_data(16, classes=2, per_class=8)
    found = protocols_shortage(settings, two)
    assert {reason.split(",")[0].split()[-1] for reason in found.reasons} == {"paper", "released", "stable"}
    assert found.fitting == {}


def test_a_table_names_the_counts_of_all_stages_before_the_first_search(tmp_path, monkeypatch):
    sizes = {name: value for name, value in SIZE.items() if name != "device"}
    training = dataclasses.replace(train_settings(tmp_path), batch_size=64, epochs=1, milestones=())
    recipe = Recipe(
        search=Search(**sizes, ways=7),
        methods=RECIPES["glyphs"].methods,
        train=training,
        evaluate={5: evaluate_settings(training, tmp_path, ways=5, shots=5, queries=15)},
        inputs="all",
        published="mini-5",
    )
    monkeypatch.setitem(RECIPES, "glyphs", recipe)
    monkeypatch.setattr(pipeline, "data_of", lambda _: SMALL)
    settings = Table("tiny", ("glyphs",), ("metantk", "random"), 1, missing="make", work=tmp_path / "work")
    message = (
        "batch_size is 64, and there are 48 training images; shots + queries is 5 + 15, and the test class 'test0' "
        "has 8 images; ways is 7, and there are 6 training classes; give data with more classes or images; "
        "the recipes of the table need 5 test classes of 20 images, 7 training classes and 64 training images; search, "
        "train and evaluate have flags for fewer, which `data check` names"
    )
    with pytest.raises(ConfigurationError, match=short(message)):
        table.make_table(settings)
    assert not (tmp_path / "work").exists()


def test_a_table_proposes_the_methods_whose_counts_fit(tmp_path, monkeypatch):
    sizes = {name: value for name, value in SIZE.items() if name != "device"}
    training = dataclasses.replace(train_settings(tmp_path), batch_size=16, epochs=1, milestones=())
    recipe = Recipe(
        search=Search(**sizes, ways=7),
        methods=RECIPES["glyphs"].methods,
        train=training,
        evaluate={1: evaluate_settings(training, tmp_path, ways=5, shots=1, queries=5)},
        inputs="all",
        published="mini-5",
    )
    monkeypatch.setitem(RECIPES, "glyphs", recipe)
    monkeypatch.setattr(pipeline, "data_of", lambda _: SMALL)
    settings = Table("tiny", ("glyphs",), ("metantk", "random"), 1, missing="make", work=tmp_path / "work")
    with pytest.raises(ConfigurationError, match=r"what does not fit: --methods random$"):
        pipeline.refuse_small_data(settings)
    pipeline.refuse_small_data(dataclasses.replace(settings, methods=("random",)))
