"""The tables: made from run folders alone, every number traceable, with gaps, next to the numbers of the paper."""

import csv
import dataclasses
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest

from experiments import genotypes
from experiments.search import search
from experiments.search.settings import Search
from experiments.tables import markup, pipeline, sheets, table
from experiments.tables.settings import METHODS as ALL_METHODS
from experiments.tables.settings import RECIPES, Recipe, Table
from experiments.training.evaluate import accuracies_of
from experiments.training.settings import Evaluate
from mamltheory.errors import ConfigurationError
from mamltheory.fewshot import training as steps
from mamltheory.fewshot.statistics import compare_runs
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.protocols import METHODS as METHODS_OF_SEARCH
from mamltheory.nas.protocols import PROTOCOLS
from mamltheory.rng import generator
from mamltheory.runtime.records import sha256
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import SIZE, evaluate_settings, files, recorded_search, train_settings

RUNS = 2
METHODS = ("metantk", "te-nas", "metanas", "random", "random-same-size", "random-te-nas-size")


def instant_search(settings):
    """In the place of a search: a cell by the seed and the kernel, and the record of a finished run."""
    with search.opened_search(settings, "cpu") as log:
        cell = random_genotype(generator(settings.seed, f"found by {settings.kernel}"), "all")
        genotypes.write_genotype(settings.out / "genotype.json", cell)
        log.close()


@pytest.fixture(scope="module")
def study(few_images, tmp_path_factory):  # noqa: ARG001
    """A table of tiny networks, made once; settings and what was printed."""
    folder = tmp_path_factory.mktemp("table")
    sizes = {k: v for k, v in SIZE.items() if k != "device"}
    training = dataclasses.replace(train_settings(folder), epochs=1, milestones=())
    evaluation = evaluate_settings(training, folder, tasks=8)
    tiny = Recipe(
        search=Search(**sizes, ways=2),
        methods=RECIPES["glyphs"].methods,
        train=training,
        evaluate={shots: dataclasses.replace(evaluation, shots=shots) for shots in (1, 5)},
        inputs="all",
        published="mini-5",
    )
    settings = Table(
        name="tiny",
        experiments=("glyphs",),
        methods=METHODS,
        runs=RUNS,
        missing="make",
        device="cpu",
        work=folder,
        out=folder / "out",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "glyphs", tiny)
        patch.setattr(search, "search_cells", instant_search)
        patch.setattr(pipeline, "SIZE_DRAWS", 150)
        with ctrl_c_during(pipeline, "record_evaluation", 3) as stopped:
            table.make_table(settings)
        with counted(steps, "train_epoch") as epochs:
            assert table.make_table(settings) == 0
        yield settings, stopped.value, len(epochs)


@pytest.fixture
def own(study, tmp_path):
    """The table's settings with a copy of its runs, to be spoilt."""
    shutil.copytree(study[0].work, tmp_path / "work")
    return dataclasses.replace(study[0], work=tmp_path / "work", out=tmp_path / "out", missing="show")


def rows_of(settings, title=""):
    """The cells of the Markdown table that begins with this title."""
    text = (settings.out / f"table_{settings.name}.md").read_text()
    body = text[text.index(f"**{title}") :].split("\n**")[0]
    return [
        [c.strip() for c in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("| ")
    ]


def test_a_stopped_table_goes_on_and_trains_nothing_twice(study):
    settings, stopped, epochs = study
    assert stopped.continue_with.startswith("the same command")
    assert epochs == len(METHODS) * RUNS - 2
    with counted(steps, "train_epoch") as again, counted(pipeline, "record_evaluation") as evaluations:
        table.make_table(settings)
    assert (again, evaluations) == ([], [])


@pytest.mark.paper("Sec. 6.2: test tasks", "Sec. 6.1: MetaNAS retrained")
def test_every_cell_is_the_mean_over_the_runs_that_its_record_names(study):
    settings = study[0]
    record = json.loads((settings.out / "table_tiny.json").read_text())
    shown = {row[0]: row for row in rows_of(settings, "Ablation on glyphs")}
    assert len(record["means"]) == len(METHODS) * 2
    for mean in record["means"]:
        accuracies = []
        for source in mean["sources"]:
            path = pipeline.Path(source["folder"]) / "run.json"
            assert sha256(path.read_bytes()) == source["sha256"]
            accuracies.append(100 * accuracies_of(read_run(path)["results"]).mean())
        assert len(accuracies) == RUNS
        text = f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}"
        assert shown[sheets.NAMES[mean["method"]]][6 if mean["shots"] == 1 else 7] == text
    for run in record["runs"]:
        stages = {"train", "evaluate-1-shot", "evaluate-5-shot"}
        searched = {"search"} if run["method"] in pipeline.SEARCHED else set()
        assert set(run["sources"]) == stages | searched


def test_the_figure_shows_every_run_with_its_size(study):
    settings = study[0]
    kinds = {f"table_tiny{part}" for part in (".md", ".tex", ".csv", ".json")}
    assert files(settings.out) == kinds | {f"table_tiny_glyphs_sizes.{end}" for end in ("png", "pdf", "json")}
    drawn = json.loads((settings.out / "table_tiny_glyphs_sizes.json").read_text())["data"]["methods"]
    record = json.loads((settings.out / "table_tiny.json").read_text())
    for run in record["runs"]:
        points = {p["shots"]: p for p in drawn[run["method"]] if p["seed"] == run["seed"]}
        assert {p["parameters"] for p in points.values()} == {run["parameters"]}
        assert points[5]["per_cent"] == 100 * run["accuracy"]["5-shot"]["accuracy"]


def test_the_random_cell_of_the_same_size_has_the_searched_cells_parameters(study):
    record = json.loads((study[0].out / "table_tiny.json").read_text())
    sizes = {(run["method"], run["seed"]): run["parameters"] for run in record["runs"]}
    for seed in range(RUNS):
        for searched, random in (("metantk", "random-same-size"), ("te-nas", "random-te-nas-size")):
            found, like = sizes[searched, seed], sizes[random, seed]
            assert abs(like - found) <= 0.02 * found
    folders = {run.method: run for run in pipeline.runs_of(study[0]) if run.seed == 0}
    cells = {method: genotypes.read_genotype(run.genotype) for method, run in folders.items()}
    assert cells["random-same-size"] != cells["metantk"]
    assert cells["metanas"] == genotypes.published_cell("metanas-mini-5").genotype


def test_differences_are_taken_task_by_task_and_run_by_run(study):
    settings = study[0]
    record = json.loads((settings.out / "table_tiny.json").read_text())

    def accuracies(method):
        folders = [settings.work / "glyphs" / method / f"seed-{seed}/evaluate-5-shot" for seed in range(RUNS)]
        return [accuracies_of(read_run(folder)["results"]) for folder in folders]

    for first, second in (("te-nas", "random-te-nas-size"), ("metantk", "random")):
        expected = compare_runs(accuracies(first), accuracies(second))
        (found,) = [c for c in record["comparisons"] if (c["minus"], c["shots"]) == (second, 5)]
        assert (found["of"], found["result"]["differences"]) == (first, list(expected.differences))
    assert found["result"]["p_value"] == expected.p_value
    assert found["result"]["least_p_value"] == 0.5
    row = next(
        r for r in rows_of(settings, "Is MetaNTK-NAS better") if r[:2] == ["MetaNTK-NAS − Random cell", "5"]
    )
    signed = f"{100 * expected.interval.mean:+.1f} ± {100 * expected.interval.half_width:.1f}"
    assert row[3] == signed.replace("-", "−")
    text = (settings.out / "table_tiny.md").read_text()
    assert "With 2 runs the sign test cannot fall below p = 0.5" in text
    assert "few runs can hardly show anything" in text


def test_runs_of_one_seed_on_different_tasks_are_not_compared(own):
    path = own.work / "glyphs/random/seed-0/evaluate-1-shot/run.json"
    record = read_run(path)
    record["results"]["tasks_digest"] = "another"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match="evaluated on different tasks"):
        table.make_table(own)


def test_missing_runs_are_shown_as_missing_and_never_filled_in(own, capsys):
    shutil.rmtree(own.work / "glyphs/te-nas")
    shutil.rmtree(own.work / "glyphs/random/seed-1/evaluate-5-shot")
    assert table.make_table(own) == 0
    shown = {row[0]: row for row in rows_of(own, "Ablation on glyphs")}
    assert shown["TE-NAS"][4:] == ["missing", "–", "missing", "missing"]
    assert shown["Random cell"][7].endswith("(1 of 2 runs)")
    assert "±" not in shown["Random cell"][7]
    assert "±" in shown["Random cell"][6]
    assert f"3 of {len(METHODS) * RUNS} runs are missing or unfinished" in capsys.readouterr().out
    with (own.out / "table_tiny.csv").open() as file:
        lines = list(csv.DictReader(file))
    gaps = [line for line in lines if not line["accuracy"]]
    assert {(line["model"], line["seed"], line["shots"]) for line in gaps} == {
        ("TE-NAS", "0", "1"),
        ("TE-NAS", "0", "5"),
        ("TE-NAS", "1", "1"),
        ("TE-NAS", "1", "5"),
        ("Random cell", "1", "5"),
    }


@pytest.mark.parametrize("what", ["the training", "the settings", "the cell"])
def test_an_evaluation_of_something_else_counts_as_missing(own, what):
    folder = own.work / "glyphs/random/seed-0"
    if what == "the cell":
        shutil.copy(own.work / "glyphs/random/seed-1/genotype.json", folder)
    else:
        path = folder / ("train/run.json" if what == "the training" else "evaluate-1-shot/run.json")
        record = read_run(path)
        record["config"]["tasks"] = 4
        if what == "the training":
            record = read_run(path) | {"started": "2020-01-01T00:00:00+00:00"}
        path.write_text(json.dumps(record))
    table.make_table(own)
    shown = {row[0]: row for row in rows_of(own, "Ablation on glyphs")}
    assert shown["Random cell"][6].endswith("(1 of 2 runs)")


def without(folder, name):
    """Make the run in a folder one of an earlier version, which had no such setting."""
    record = read_run(folder)
    del record["config"][name]
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("setting", "counts"), [("C", True), ("tasks", False)])
def test_a_run_from_before_a_setting_existed_counts_where_the_table_takes_its_default(own, setting, counts):
    recipe = RECIPES["glyphs"].evaluate[1]
    assert (getattr(recipe, setting) == getattr(Evaluate(), setting)) is counts
    without(own.work / "glyphs/random/seed-0/evaluate-1-shot", setting)
    table.make_table(own)
    shown = {row[0]: row for row in rows_of(own, "Ablation on glyphs")}
    assert shown["Random cell"][6].endswith("(1 of 2 runs)") is not counts


@pytest.mark.parametrize(
    ("name", "others", "change"),
    [
        ("shots", {}, None),
        ("shots", {"shots": 2}, r"shots \(1 there, 2 now\);"),
        ("shrinkage", {"protocol": "stable"}, None),
        ("shrinkage", {"shrinkage": True}, r"shrinkage \(no there, yes now\);"),
        ("outputs", {"method": "te-nas"}, None),
        ("kernel", {"method": "te-nas"}, None),
        ("kernel", {"kernel": "anil"}, r"kernel \('maml' there, 'anil' now\);"),
        ("method", {"method": "regions"}, r"method \('metantk-nas' there, 'regions' now\);"),
        ("protocol", {"protocol": "stable"}, r"protocol \('paper' there, 'stable' now\);"),
    ],
)
def test_a_search_from_before_a_setting_existed_goes_on_with_its_default_or_the_protocols_value(
    tmp_path, name, others, change
):
    settings = Search(out=tmp_path, **others).resolved()
    recorded_search(settings)
    assert pipeline.finished_run(settings, "search") is not None
    without(tmp_path, name)
    if change is None:
        assert pipeline.finished_run(settings, "search") is not None
        assert recorded_search(settings)["starts"] == 1
    else:
        assert pipeline.finished_run(settings, "search") is None
        with pytest.raises(ConfigurationError, match=f"holds a run with other settings: {change}"):
            recorded_search(settings)


@pytest.mark.parametrize("name", Search.RETIRED)
def test_a_search_that_recorded_a_retired_setting_goes_on_with_its_only_value_alone(tmp_path, name):
    settings, only = Search(out=tmp_path).resolved(), Search.RETIRED[name]
    recorded_search(settings)
    record = read_run(tmp_path)
    for value, change in ((only, None), ("other", rf"{name} \('other' there, {only!r} now\);")):
        (tmp_path / "run.json").write_text(json.dumps(record | {"config": record["config"] | {name: value}}))
        assert (pipeline.finished_run(settings, "search") is None) is (change is not None)
        if change is not None:
            with pytest.raises(ConfigurationError, match=f"holds a run with other settings: {change}"):
                recorded_search(settings)
    (tmp_path / "run.json").write_text(json.dumps(record | {"config": record["config"] | {name: only}}))
    assert recorded_search(settings)["starts"] == 1, "a finished run keeps its record"


@pytest.mark.parametrize("method", METHODS_OF_SEARCH)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_search_has_a_value_of_every_setting_from_before(protocol, method):
    settings = Search(protocol=protocol, method=method).resolved()
    before = dataclasses.replace(settings, shots=3, ties="index").before()
    assert before == {**Search.RETIRED, **vars(settings), "protocol": "paper", "method": "metantk-nas"}


def test_without_runs_the_papers_numbers_stand_beside_gaps(tmp_path, capsys):
    settings = Table(work=tmp_path, out=tmp_path)
    assert table.make_table(settings) == 0
    assert "60 of 60 runs are missing" in capsys.readouterr().out
    first, second = rows_of(settings, "Table 1"), rows_of(settings, "Table 2")
    assert (tmp_path / "table_paper.md").read_text().count("were not measured by this code") == 2
    paper = [row for row in first if row[0].endswith("(paper)")]
    assert [row[0].removesuffix(" (paper)") for row in paper[:4]] == ["MAML", "ANIL", "MetaOptNet", "RFS"]
    assert paper[8][4:] == [
        "1.77M",
        "1.54 h",
        "63.88 ± 0.81",
        "80.07 ± 0.45",
        "2.22M",
        "2.20 h",
        "71.12 ± 0.49",
        "85.71 ± 0.22",
    ]
    ours = [row for row in first + second if row[0].endswith("(this code)")]
    assert len(ours) == 2 + len(ALL_METHODS)
    assert {cell for row in ours for cell in row[4:]} == {"missing"}
    assert second[3] == [
        "TE-NAS (paper)",
        "",
        "✓",
        "✓",
        "62.51 ± 0.42",
        "63.51 ± 0.16",
        "79.02 ± 0.35",
        "79.86 ± 0.42",
    ]


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_the_latex_has_as_many_cells_in_every_row_as_columns(name, study, tmp_path):
    settings = study[0] if name == "tiny" else Table(work=tmp_path, out=tmp_path)
    table.write_files(table.collect_results(settings))
    text = (settings.out / f"table_{name}.tex").read_text()
    assert text.isascii()
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert (
        len(tables)
        == len(re.findall(r"\\begin\{table\*?\}", text))
        == len(re.findall(r"\\end\{table\*?\}", text))
        == (2 if name == "paper" else 3)
    )
    for columns, body in tables:
        assert body.startswith("\\toprule\n")
        assert body.endswith("\\bottomrule\n")
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 3
        for row in rows:
            cells = re.split(r"(?<!\\)&", row)
            spans = [
                int(found.group(1)) if (found := re.search(r"\\multicolumn\{(\d+)\}", c)) else 1
                for c in cells
            ]
            assert sum(spans) == len(columns), row
        spans = [tuple(map(int, pair)) for pair in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body)]
        assert all(a[1] < b[0] for a, b in pairwise(spans))
        assert all(end <= len(columns) for _, end in spans)
    unescaped = text.replace(r"\{", "").replace(r"\}", "")
    assert unescaped.count("{") == unescaped.count("}")
    assert not re.search(r"(?<!\\)[#_]", text)
    assert all("%" not in line.replace(r"\%", "") for line in text.splitlines()[1:])
    assert text.replace(r"\$", "").count("$") % 2 == 0


def test_special_characters_reach_latex_as_themselves_and_markdown_keeps_its_bars():
    sheet = markup.Sheet("50 % of a_b", (("", "a|b"), ("", "c")), (("x & y", "{z}"),))
    assert r"50 \% of a\_b" in markup.latex(sheet)
    assert r"x \& y & \{z\} \\" in markup.latex(sheet)
    row = markup.Sheet("t", (("", "a"),), (("x|y",),))
    assert r"| x\|y |" in markup.markdown(row)
