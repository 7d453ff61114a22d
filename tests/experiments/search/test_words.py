"""The words of a search: what a round took out, how sure it was, how long is left, and the verdict."""

import dataclasses
import itertools
import shlex

import pytest

from experiments import __main__ as shell
from experiments.search.closing import train_command
from experiments.search.settings import SEARCH
from experiments.search.words import (
    all_rounds_words,
    cell_rows,
    first_words,
    left_words,
    p_in_words,
    round_words,
    rung_words,
    seconds_per_work,
    summary,
    task_words,
    verdict_words,
)
from mamltheory.nas.algorithms.algorithm1 import step
from mamltheory.nas.algorithms.halving import Measured, Rung
from mamltheory.nas.algorithms.rounds import Round, rounds_ahead
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Cell, Genotype
from mamltheory.nas.scoring.score import Score
from tests.experiments.search.scattered import SETTINGS, scored
from tests.experiments.tiny import nearly_done

SURE = dataclasses.replace(SETTINGS, inputs="two", repeats=4)


def rounds_of(rules, scorer):
    """The states between the rounds of a search from :func:`nearly_done`."""
    states = [nearly_done()]
    while not Round.of(states[-1], rules).is_finished:
        state = states[-1]
        while state.round_index == states[-1].round_index:
            state = step(state, scorer, rules)
        states.append(state)
    return states


@pytest.fixture(scope="module")
def states():
    return rounds_of(SURE, scored)


def test_the_rounds_ahead_are_those_that_follow(states):
    for k, state in enumerate(states):
        ahead = rounds_ahead(state.candidates, "two")
        assert len(ahead) == len(states) - 1 - k
        live = [len(each.candidates.operators()) for each in states[k:-1]]
        assert [count for count, _ in ahead] == live
        assert [count for _, count in ahead] == [len(Round.of(each, SURE).operators) for each in states[k:-1]]


def test_a_round_says_what_left_and_what_stays(states):
    lines = [round_words(a, b, "two") for a, b in itertools.pairwise(states)]
    assert lines[0].startswith("round 1 of 6: ")
    assert "; 19 operations stay; " in lines[0]
    assert all("→" not in line for line in lines[:2])
    assert lines[2].startswith("round 3 of 6: normal node 1 loses ")
    assert "12 operations stay" in lines[-1]
    for line, state in zip(lines, states[1:], strict=True):
        found = state.reports[-1].reliability
        assert ("noise" in line) == found.tied
        assert ("choices are clear" in line) == (not found.tied)
    drawn = rounds_of(SearchSettings(criteria=()), None)
    assert round_words(drawn[0], drawn[1], "all").endswith("; 19 operations stay; drawn at random")


def test_a_search_says_what_it_begins_with_and_estimates_all_rounds_from_a_part_of_the_first(states):
    ahead, start = rounds_ahead(states[0].candidates, SURE.inputs), states[0]
    operations = len(start.candidates.operators())
    assert first_words(SURE, start).startswith(f"round 1 of {len(ahead)} begins: {operations} operations, ")
    work = [live for live, _ in ahead]  # a gradient through a supernet takes as long as it has operators
    left = round(20 * sum(work) / work[0] - 10)
    assert all_rounds_words(SURE, start, 1, 2, 10.0) == f"about {left // 60}:{left % 60:02d} for all rounds"
    assert all_rounds_words(SURE, states[-2], 3, 3, 10.0).startswith("about 0:0")


def test_tasks_are_those_of_the_data_and_a_p_value_is_never_zero():
    tasks = {"ways": 2, "shots": 1, "queries": 15, "classes": 2}
    assert task_words(tasks) == "2-way 1-shot accuracy, 2 validation classes"
    assert task_words(None) == "few-shot accuracy on validation classes"
    assert (p_in_words(0.0), p_in_words(0.001), p_in_words(0.25)) == ("p < 0.001", "p = 0.001", "p = 0.25")


def test_the_time_that_is_left_is_that_of_the_work_ahead(states):
    first, second, third = states[:3]
    rate = seconds_per_work(SURE, first, second, 22.0)
    # Four repeats of a gradient through a supernet of 22 operators, then of 19, and the second stage of 18, 17, 15, 14.
    assert rate == pytest.approx(22.0 / (4 * 22))
    assert left_words(SURE, second, rate) == "; about 1:23 to go"
    assert left_words(SURE, states[-1], rate) == left_words(SURE, second, None) == ""
    one_by_one = dataclasses.replace(SURE, estimator="leave-one-out")
    assert seconds_per_work(one_by_one, first, second, 22.0) == pytest.approx(22.0 / (4 * 22 * 8))
    for repeats, expected in ((2, 19.0 / (2 * 19)), (4, None)):
        jobs = [job for repeat in range(repeats) for job in Round.of(second, SURE).jobs(repeat)]
        resumed = dataclasses.replace(second, scores=dict.fromkeys(jobs, Score(1.0, 1.0)))
        assert seconds_per_work(SURE, resumed, third, 19.0) == expected


def tied(report, basis="types", single=0.0):
    found = dataclasses.replace(report.reliability, single=single, null=(-0.1, 0.1), basis=basis)
    return dataclasses.replace(report, reliability=found, undecided=("normal cₖ₋₂ → 0",))


def test_the_verdict_counts_the_rounds_that_are_noise(states):
    report = states[-1].reports[0]
    noise, sure = tied(report), tied(report, "operators", single=0.9)
    said = verdict_words([noise, noise, tied(report, "parameters"), sure])
    assert said.startswith(
        "3 of 4 rounds cannot be told from noise (2 decided by the means of (cell type × operation), 1 decided by size)"
    )
    assert said.endswith("; scores do not set this cell apart from others of its size")
    assert "apart" not in verdict_words([noise, sure, sure])
    assert verdict_words([noise]).startswith("all 1 rounds cannot")
    assert verdict_words([sure, sure]) == "every round can be told from noise; 2 choices are not clear"
    nothing = dataclasses.replace(report, repeats=0, reliability=None)
    assert verdict_words([nothing]) == "nothing was scored: every choice was drawn at random"
    assert verdict_words([dataclasses.replace(report, reliability=None)]).startswith("how sure is not known")


def test_a_rung_says_how_well_its_cells_did_and_what_follows():
    rungs = (Rung(3, 1), Rung(2, 2), Rung(1, 4, "loss"))
    measured = [Measured(1.0, 0.5), Measured(0.5, 0.25), Measured(float("nan"), float("nan"), diverged=True)]
    assert rung_words(rungs, rungs[0], measured, 30.0) == (
        "rung 1 of 3: 3 cells at epoch 1; accuracy 25.0 to 50.0 %; 1 diverged and is last; the best 2 by accuracy are "
        "trained further; about 0:40 to go"
    )
    assert "to go" not in rung_words(rungs, rungs[1], measured[:2], 0.001)  # it was read
    assert (
        rung_words(rungs, rungs[2], measured[:1], 9.0)
        == "rung 3 of 3: 1 cells at epoch 4; accuracy 50.0 to 50.0 %"
    )


def test_the_next_command_is_the_preset_that_reads_the_genotype_or_the_shared_settings(tmp_path):
    assert train_command(SEARCH["glyph-smoke"]) == (
        "python -m experiments train --preset glyph-smoke  # with 8 channels"
    )
    own = dataclasses.replace(SEARCH["glyph-smoke"], out=tmp_path / "a b", split="60/20/20")
    words = shlex.split(train_command(own))
    resolved = shell.resolve("train", words[words.index("train") + 1 :])
    shared = ("data", "split", "image_size", "channels", "cells", "stem_stride")
    assert [getattr(resolved, name) for name in shared] == [getattr(own, name) for name in shared]
    assert resolved.genotype == own.out / "genotype.json"


def test_cells_are_told_node_by_node_or_by_their_one_operation():
    same = Cell(
        (
            ((("skip_connect", 0), ("skip_connect", 1))),
            ((("skip_connect", 0), ("skip_connect", 2))),
            ((("skip_connect", 1), ("skip_connect", 3))),
        )
    )
    other = Cell((*same.nodes[:2], (("conv_1x5_5x1", 0), ("skip_connect", 3))))
    assert summary(cell_rows(Genotype(other, same))).splitlines() == [
        "normal cell    node 0: skip (cₖ₋₂); skip (cₖ₋₁)",
        "               node 1: skip (cₖ₋₂); skip (0)",
        "               node 2: conv 1×5, 5×1 (cₖ₋₂); skip (1)",
        "reduce cell    all 6 edges: skip",
    ]
    lines = summary([("verdict", "so and so " * 9), ("score", "")], 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert [line[:14].strip() for line in lines] == ["verdict", "", "", ""]
