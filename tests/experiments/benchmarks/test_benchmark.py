"""``benchmark``: tables that say what was measured, peers that may be absent, floors by hand, and resumption."""

import json
import math
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks import benchmark, cell_scores, kernel, maml, measure, meta_kernel, report
from experiments.benchmarks.catalogue import CASES, chosen_cases
from experiments.benchmarks.clock import ProcessClock, measure_method
from experiments.benchmarks.machine import missing_peers, peer_versions
from experiments.benchmarks.measure import relative_difference, resized
from experiments.benchmarks.problems import Case
from experiments.benchmarks.processes import ask_process
from experiments.benchmarks.settings import Benchmark
from mamltheory.errors import ConfigurationError
from mamltheory.nas.network import supernet
from mamltheory.strict_json import sealed
from tests.experiments.stops import counted

FEW = ("meta-gradient-l256", "metantk-l8192", "ntk-fc-l256", "depthwise")


def settings(folder, **others):
    return Benchmark(
        **{"cases": FEW, "quick": True, "rounds": 2, "out": folder / "out", "runs": folder / "runs"} | others
    )


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory):
    """A quick benchmark of one case a kind, in the environment of the tests."""
    folder = tmp_path_factory.mktemp("benchmark")
    assert benchmark.run_benchmark(settings(folder)) == 0
    return folder, json.loads((folder / "out" / "benchmark_cpu_quick.json").read_text())["data"]


def rows_of(table):
    """Cells of a Markdown table by the first one."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


@pytest.mark.slow
def test_every_case_has_a_record_with_times_and_a_row_for_every_method(benchmarked):
    folder, data = benchmarked
    assert set(data["cases"]) == set(FEW)
    for name, record in data["cases"].items():
        assert tuple(record["methods"]) == CASES[name].methods
        measured = [each for each in record["methods"].values() if each["status"] == "measured"]
        assert all(len(each["seconds"]) == 2 and min(each["seconds"]) >= 0 for each in measured)
    assert {path.suffix for path in (folder / "out").iterdir()} == {".png", ".pdf", ".json", ".md"}


@pytest.mark.slow
def test_the_numbers_of_the_table_are_those_of_the_json(benchmarked):
    folder, data = benchmarked
    text = (folder / "out" / "benchmark_cpu_quick.md").read_text()
    assert text == report.benchmark_tables(data)
    record = data["cases"]["meta-gradient-l256"]
    section = text.split(f"## {record['title']}\n")[1].split("## ")[0]
    for name, cells in rows_of(section).items():
        each = record["methods"][name]
        if each["status"] == "measured":
            assert cells[0] == f"{np.median(each['seconds']):.3g}"
            assert cells[5] == f"{each['agreement']:.1e}"


@pytest.mark.slow
def test_every_method_present_agrees_with_the_slow_way(benchmarked):
    for record in benchmarked[1]["cases"].values():
        for name, each in record["methods"].items():
            if each["status"] == "measured":
                assert each["agreement"] < 1e-4
            if name.startswith("ours"):
                assert each["agreement_float64"] < 1e-12


@pytest.mark.slow
def test_a_peer_that_is_not_there_is_said_to_be_absent(benchmarked):
    data = benchmarked[1]
    missing = missing_peers(data["peers"])
    assert "neural-tangents" in missing  # no Python was named for it
    assert data["cases"]["ntk-fc-l256"]["methods"]["neural-tangents"] == {"status": "not installed"}
    table = rows_of(report.case_table(data["cases"]["ntk-fc-l256"], None, "cpu"))
    assert table["neural-tangents"][0] == "not installed"


def test_a_peer_that_fails_is_a_row_and_not_an_end(tmp_path):
    case = Case("case", "a case", kernel.GROUP, kernel.FC, ("ours", "torch.func"))
    good = {"first_seconds": 1.0, "peak_bytes": 2.0, "seconds": 1.0, "calls": 1, "rate": 3.0}
    answers, asked = {"torch.func": {"error": "out of luck"}}, []

    def ask(method, request):
        asked.append(method.name)
        if request["save"]:
            np.savez(request["save"], np.ones(2))
        return answers.get(method.name, good)

    plan = measure.Plan(2, 1.0, False, 0, tmp_path)
    record = measure.measure_case(case, plan, ask, ())
    assert record["methods"]["torch.func"] == {"status": "failed: out of luck"}
    assert record["methods"]["ours"]["agreement"] == 0
    assert asked[:3] == ["ours", "torch.func", "ours"]  # rounds are interleaved
    assert list(tmp_path.iterdir()) == []
    answers["ours"] = {"error": "wrong"}
    with pytest.raises(measure.MeasurementError, match="ours failed on case: wrong"):
        measure.measure_case(case, plan, ask, ())


def test_a_method_that_raises_is_an_answer_with_its_error():
    def prepare(job):
        return {}[job], None

    answer = measure_method({"save": None, "warm_up": "none"}, prepare, ProcessClock())
    assert answer["error"] == "KeyError: 'none'"
    assert "in prepare" in answer["traceback"]


def ask_in_a_process(folder, method, **sizes):
    """The answer of a fresh process about the depthwise convolution, with tiny sizes for the warm-up."""
    case = CASES["depthwise"]
    folder.mkdir(exist_ok=True)
    plan = measure.Plan(1, 1.0, False, 0, folder)
    request = plan.request(case.group, case.group.method(method), {**case.sizes, **sizes})
    return ask_process(
        settings(folder, quick=False, runs=folder), "default", case.group.method(method), request
    )


def test_a_fresh_process_measures_a_method(tmp_path):
    answer = ask_in_a_process(tmp_path, "ours", samples=2)
    assert set(answer) == {"first_seconds", "peak_bytes", "seconds", "calls", "rate"}
    assert answer["seconds"] > 0
    assert answer["rate"] > 0
    assert 1 <= answer["calls"] <= 50


def test_a_process_that_fails_is_an_answer_and_the_log_says_why(tmp_path):
    answer = ask_in_a_process(tmp_path, "ours", samples=-1)
    assert answer["error"].startswith("RuntimeError: ")
    assert "Traceback" in (tmp_path / "workers.log").read_text()


@pytest.mark.slow
def test_finished_cases_are_not_measured_again_unless_their_settings_change(benchmarked, monkeypatch):
    folder, data = benchmarked
    again = []

    def measured(case, plan, *_):
        again.append((case.name, plan.rounds))
        return data["cases"][case.name]

    monkeypatch.setattr(benchmark, "measure_case", measured)
    with counted(benchmark, "measure_scaling") as grown:
        found = benchmark.measure_pieces(settings(folder), chosen_cases(FEW), data["peers"])
    assert (again, list(grown)) == ([], [])
    assert found["cases"] == data["cases"]
    for others in ({"rounds": 1}, {"rounds": 1}, {"rounds": 1, "again": True}):
        benchmark.measure_pieces(settings(folder, **others), chosen_cases(["depthwise"]), data["peers"])
    assert again == [("depthwise", 1)] * 2
    newer = data["peers"] | {"opacus": "another version"}
    benchmark.measure_pieces(settings(folder, rounds=1), chosen_cases(["depthwise"]), newer)
    assert len(again) == 3


def test_a_broken_or_foreign_record_does_not_count_as_finished(tmp_path, capsys):
    path = tmp_path / "case.json"
    assert benchmark.finished_record(path, {"rounds": 1}) is None
    path.write_text('{"identity": {"rounds": 1}, "record": {"a": 2}}')
    assert benchmark.finished_record(path, {"rounds": 1}) == {"a": 2}
    assert benchmark.finished_record(path, {"rounds": 2}) is None
    path.write_text('{"identity": {"rou')
    assert benchmark.finished_record(path, {"rounds": 1}) is None
    path.write_bytes(sealed('{"identity": {"rounds": 1}, "record": {"a": 2}}').replace(b"2}", b"3}"))
    assert benchmark.finished_record(path, {"rounds": 1}) is None
    assert f"{path} is damaged" in capsys.readouterr().out


def test_the_floor_of_the_meta_gradient_is_nine_products_and_those_of_the_thin_layers():
    sizes = maml.BASE | {"width": 2048, "tau": 1}
    tall = 16 * 10
    product = 2 * tall * 2048 * 2048
    head = 9 * 2 * tall * 2048 * 1
    first = 2 * (2 * 2 * tall * 16 * 2048)  # value and gradient, for support and query
    assert maml.meta_gradient_flop(sizes) == 9 * product + head + first
    assert 33 * product < maml.meta_gradient_flop(sizes | {"tau": 5}) < 33.5 * product


def test_the_floor_of_the_metantk_counts_tangents_of_support_passes():
    sizes = {
        "width": 3,
        "depth": 1,
        "outputs": 1,
        "dimension": 2,
        "tasks": 1,
        "queries": 1,
        "supports": 1,
        "tau": 1,
    }
    # one tangent pass and its way back, forward and one row, one inner step; one pair of rows through two layers
    assert meta_kernel.metantk_flop(sizes) == 4 * 3 + 2 * 2 * 3 + 4 * 3 + (2 + 3 + 3 + 1)


def test_the_floor_of_the_ntk_counts_forward_backward_and_symmetric_grams():
    sizes = {"width": 3, "depth": 1, "outputs": 2, "dimension": 5, "samples": 4}
    forward, backward = 2 * 4 * (5 * 3 + 3 * 2), 2 * 8 * 3 * 2
    assert kernel.kernel_flop(sizes) == forward + backward + 4**2 * (5 + 3) + 8**2 * (3 + 2)
    conv = kernel.CONV | {"samples": 1, "outputs": 1}
    places = [32**2, 16**2, 16**2, 8**2, 8**2]
    maps = [9 * 3 * 48] + [9 * 48 * 48] * 4
    products = [p * m for p, m in zip(places, maps, strict=True)]
    layers = 4 * sum(products) + 2 * sum(products[1:]) + sum(maps)
    assert kernel.kernel_flop(conv) == layers + 4 * 48 + 48 + 1


def test_parameters_are_those_of_the_networks():
    for group, sizes in ((kernel.GROUP, kernel.FC | {"width": 7}), (kernel.CONVOLUTIONAL, kernel.CONV)):
        module = group.build(sizes, torch.float32, torch.device("cpu"), 0).module
        assert group.parameters(sizes) == sum(value.numel() for value in module.parameters())


def test_problems_are_the_same_in_both_precisions_and_peers_hold_the_same_weights():
    sizes = maml.GROUP.quick | {"depth": 2, "outputs": 2, "activation": "erf", "dimension": 4, "tau": 1}
    one, two = (
        maml.GROUP.build(sizes, dtype, torch.device("cpu"), 3) for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(one.params["weight2"].double(), two.params["weight2"], rtol=1e-6, atol=0)
    x = two.tasks[0].query_x
    torch.testing.assert_close(two.module(x), two.net.model(two.params, x))


def test_relative_difference_is_the_worst_tensors_and_infinite_for_other_shapes():
    a, b = np.array([1.0, -4.0]), np.array([100.0])
    assert relative_difference([a, b], [a, b]) == 0
    assert relative_difference([a + 0.2, b + 1], [a, b]) == pytest.approx(0.05)
    assert relative_difference([a, b[None]], [a, b]) == math.inf
    assert math.isnan(relative_difference([a * np.nan], [a]))


def test_resizing_samples_of_tasks_changes_queries_and_supports():
    assert resized(maml.BASE, "samples", 3) == maml.BASE | {"queries": 3, "supports": 3}
    assert resized(kernel.FC, "samples", 3) == kernel.FC | {"samples": 3}


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_floor_of_scores_is_what_torch_counts(candidates):
    sizes = {**cell_scores.SCORING.quick, "candidates": candidates}
    problem = cell_scores.build_scoring_problem(sizes, torch.float32, torch.device("cpu"), 0)
    images, total = torch.cat([x for task in problem.repeat.tasks for x in (task.query_x, task.support_x)]), 0
    for each in problem.candidates:
        network = supernet(each, problem.repeat.network.settings, 0)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            network(images)
        weights = sum(
            layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        )
        total += 3 * counted.get_total_flops() + len(images) ** 2 * weights
    assert cell_scores.scoring_flop(sizes) == total


def test_scores_in_float32_are_those_of_networks_one_by_one_in_float64():
    sizes = {**cell_scores.SCORING.quick, "channels": 8, "image": 12, "ways": 3}
    exact, single = (
        torch.stack(make(cell_scores.build_scoring_problem(sizes, dtype, torch.device("cpu"), 0))())
        for make, dtype in (
            (cell_scores.scores_one_by_one, torch.float64),
            (cell_scores.SCORING.method(cell_scores.OURS).make, torch.float32),
        )
    )
    torch.testing.assert_close(single, exact, rtol=1e-3, atol=0)


def touched_pages(size):
    """Fresh pages of the system, independent of memory that the allocator kept."""
    with mmap.mmap(-1, size) as pages:
        for place in range(0, size, mmap.PAGESIZE):
            pages[place] = 1
        return sum(pages[:: mmap.PAGESIZE])


def test_the_clock_sees_memory_that_was_freed_before_the_end():
    size = 16_000 * mmap.PAGESIZE
    result, seconds, peak = ProcessClock().first(lambda: touched_pages(size))
    assert result == 16_000
    assert seconds > 0
    if peak is not None:
        assert 0.9 * size < peak < 2 * size


def test_unknown_cases_are_refused_and_names_match_by_their_beginning():
    assert {case.group.name for case in chosen_cases(["metantk"])} == {"MetaNTK"}
    with pytest.raises(ConfigurationError, match="no case is called 'mentantk'"):
        chosen_cases(["mentantk"])
    with pytest.raises(ConfigurationError, match="expected the program of a Python"):
        Benchmark(neural_tangents_python=Path("no", "such", "python"))


def test_peers_are_looked_up_and_never_needed():
    versions = peer_versions(None)
    assert {"higher", "opacus", "neural-tangents"} <= set(versions)
    assert versions["neural-tangents"] is None


def test_cases_that_do_not_grow_with_the_width_leave_numbers_and_no_figure(tmp_path):
    assert benchmark.run_benchmark(settings(tmp_path, cases=("depthwise",), rounds=1)) == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md"}
    assert (
        "depthwise"
        in json.loads((tmp_path / "out" / "benchmark_cpu_quick.json").read_text())["data"]["cases"]
    )
