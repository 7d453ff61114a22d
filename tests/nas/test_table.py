"""Tables come back as they were written, and whatever is no table is named in one line."""

import json
import math

import numpy as np
import pytest

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.table import MOST_BYTES, load_table, table_from, table_of
from mamltheory.runtime.records import to_json
from tests.nas.tables import EPOCHS, SCORING_SECONDS, SECONDS, genotypes, record, records

FINAL = np.array([[0.5, 0.6], [0.7, 0.1234567891], [0.4, 0.3]])


def content(**changes):
    """The JSON values of a small table."""
    return table_of({"seed": 3}, records(FINAL, scores={"ntk": [1.0, None, -2.5]}, **changes))


def test_a_table_comes_back_from_its_file(tmp_path):
    random = np.random.default_rng(0)
    accuracy, loss = random.random((2, 3, 2, len(EPOCHS)))
    path = tmp_path / "table.json"
    path.write_text(to_json(content(accuracy=accuracy, loss=loss)))
    table = load_table(path)
    assert table.settings == {"seed": 3}
    assert [cell.genotype for cell in table.cells] == genotypes(3)
    for i, cell in enumerate(table.cells):
        assert cell.scoring_seconds == SCORING_SECONDS
        np.testing.assert_array_equal(cell.scores["ntk"], [[1.0, math.nan, -2.5][i]] * 2)
        for number in (0, 1):
            training = cell.trained(number)
            assert (training.number, training.factor, training.diverged) == (number, 1, False)
            assert (training.parameters, training.macs) == (40_000, 10**6)
            assert training.accuracy == {
                1: float(f"{FINAL[i, number]:.6g}"),
                5: float(f"{FINAL[i, number]:.6g}"),
            }
            assert training.curve.epochs == EPOCHS
            np.testing.assert_allclose(training.curve.val[5], accuracy[i, number], rtol=1e-5)
            np.testing.assert_allclose(training.curve.loss, loss[i, number], rtol=1e-5)
            np.testing.assert_allclose(training.curve.test[1], FINAL[i, number], rtol=1e-5)
            np.testing.assert_array_equal(training.curve.cpu_seconds, SECONDS * np.array(EPOCHS))
    again = table_from(json.loads(to_json(content(accuracy=accuracy, loss=loss))))
    assert again.cells[1].trained(1).accuracy == table.cells[1].trained(1).accuracy


def test_records_are_gathered_by_cell_whatever_their_order_and_cells_without_scores_are_left_out():
    rows = records(FINAL, scores={"ntk": [1.0, 2.0, 3.0]})
    double = record(1, genotypes(3)[1], 0, 0.9, [0.9] * 7, [0.1] * 7) | {"factor": 2}
    late = [*rows, double, record(7, genotypes(8)[7], 0, 0.9, [0.9] * 7, [0.1] * 7)]
    assert to_json(table_of({}, late[::-1])) == to_json(table_of({}, late))
    table = table_from(table_of({}, late))
    assert len(table.cells) == 3
    assert [(each.factor, each.number) for each in table.cells[1].trainings] == [(1, 0), (1, 1), (2, 0)]
    assert table.having([(0, 1), (0, 2)]) == (table.cells[1],)
    assert table.having([(0, 1), (1, 1)]) == table.cells
    assert table.cells[0].trained(0, 2) is None
    assert table.cells[0].trained() is table.cells[0].trained(0, 1)
    assert table.cells[0].trained(1).curve.at(6) == EPOCHS.index(6)
    with pytest.raises(ConfigurationError, match="nothing after epoch 7: expected one of 1, 2"):
        table.cells[0].trained(1).curve.at(7)


def test_a_training_that_diverged_keeps_its_epochs_and_has_no_accuracy():
    table = table_from(content(diverged={(0, 1): 4, (2, 0): 0}))
    stopped, never = table.cells[0].trained(1), table.cells[2].trained(0)
    assert stopped.diverged
    assert never.diverged
    assert stopped.curve.epochs == (1, 2, 3, 4)
    assert len(stopped.curve.val[1]) == 4
    assert never.curve.epochs == ()
    assert math.isnan(stopped.accuracy[1])
    assert math.isnan(never.accuracy[5])


def test_scores_in_training_are_read_with_their_epochs():
    rows = records(FINAL, scores={"ntk": [1.0, 2.0, 3.0]})
    rows[2]["trained_scores"] = {"0": {"maml condition": -3.0}, "4": {"maml condition": None}}
    training = table_from(table_of({}, rows)).cells[1].trained(0)
    assert training.scores[0] == {"maml condition": -3.0}
    assert math.isnan(training.scores[4]["maml condition"])
    assert table_from(table_of({}, rows)).cells[1].trained(1).scores == {}


def test_numbers_that_json_lacks_are_numbers():
    damaged = content()
    damaged["cells"][0]["trainings"][0]["loss"][0] = "inf"
    damaged["cells"][0]["scores"]["ntk"] = [3, "-inf"]
    damaged["cells"][0]["trainings"][0]["val"]["1"] = ["nan"] * 6 + [10**25]
    cell = table_from(damaged).cells[0]
    curve = cell.trained(0).curve
    np.testing.assert_array_equal(cell.scores["ntk"], [3, -math.inf])
    assert curve.loss[0] == math.inf
    assert curve.val[1].dtype == float
    assert np.isnan(curve.val[1][:6]).all()


def in_training(name, value):
    return lambda table: table["cells"][1]["trainings"][1].__setitem__(name, value)


def in_cell(name, value):
    return lambda table: table["cells"][1].__setitem__(name, value)


def in_genotype(place, value):
    return lambda table: table["cells"][1]["genotype"]["normal"][0].__setitem__(place, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.pop("cells"), "the table lacks cells"),
        (lambda table: table.__setitem__("cells", {}), "expected a list"),
        (in_cell("trainings", [3]), "is 3: expected an object"),
        (in_cell("scoring_cpu_seconds", "slow"), "'slow': expected float"),
        (in_cell("scores", {"ntk": [True]}), "True: expected float"),
        (in_training("factor", 0), "expected at least 1"),
        (in_training("diverged", 1), "expected bool"),
        (in_training("loss", [0.1, "low"]), "expected float"),
        (in_training("epoch", [1.5] * 7), "expected int"),
        (in_training("loss", [0.1]), "7 epochs and series of other lengths"),
        (in_training("val", {"1": [0.5] * 8}), "7 epochs and series of other lengths"),
        (in_training("val", {"one": [0.5] * 7}), "one"),
        (in_training("epoch", [1, 2, 3, 3, 6, 8, 12]), "expected them to increase"),
        (in_training("accuracy", {}), "did not diverge lacks its final accuracy"),
        (in_genotype(0, ["conv_9x9", 0]), "unknown operation 'conv_9x9'"),
        (in_genotype(0, ["c" * 9999, 0]), "unknown operation 'ccc"),
        (in_genotype(0, ["conv_3x3", 9]), "node 0 has source 9"),
        (in_cell("genotype", {"normal": []}), "cell has 3 nodes, got 0|needs the key"),
    ],
)
def test_a_damaged_table_is_one_line_with_its_name(tmp_path, damage, message):
    table = json.loads(to_json(content()))
    damage(table)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=message) as refused:
        load_table(path)
    text = str(refused.value)
    assert text.startswith(f"{path} holds no table of cells: ")
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    "text", ["", "[1, 2", "3", "[]", '{"cells": [], "cells": []}', "\x00", '{"settings": NaN}']
)
def test_other_text_is_no_table(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"other\.json holds no table of cells: .*`tabulate`"):
        load_table(path)


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"cannot read the table .*none\.json: No such file.*`tabulate`"
    ):
        load_table(str(tmp_path / "none.json"))
    with pytest.raises(
        CheckpointError, match=r"cannot read the table .*: it is no regular file, but a folder"
    ):
        load_table(tmp_path)
    assert MOST_BYTES == 3_145_728
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"settings": {"note": "a" * MOST_BYTES}, "cells": []}))
    with pytest.raises(CheckpointError, match=rf"large\.json: it has \d+ bytes, and at most {MOST_BYTES}"):
        load_table(large)
