"""``report``: a page of every kind of run, with its verdict first, readable without a network and in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markupsafe import Markup
from PIL import Image

from experiments import __main__ as shell
from experiments.commands import Command
from experiments.gpu_check import check
from experiments.gpu_check.report import WELL
from experiments.gpu_check.settings import STAGES, GpuCheck
from experiments.pages import charts, report
from experiments.pages.blocks import time_in_words
from experiments.pages.documents import html_of
from experiments.pages.findings import verdict_of
from experiments.pages.settings import RunReport
from experiments.search.settings import Search
from experiments.training.settings import MetaTrain
from mamltheory.runtime.folders import check_results_folder, check_run_folder
from tests.experiments.pages.runs import (
    FIGURES,
    KINDS,
    MACHINE,
    evaluated,
    halved,
    search_begun,
    trained,
    write,
)
from tests.html_pages import Elements, fetched_by

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def no_charts(monkeypatch):
    """Empty pictures in the place of charts, for tests of words: drawing takes most of the time."""
    monkeypatch.setattr(charts, "svg_of", lambda *_, **__: Markup("<svg></svg>"))


def page_of(tmp_path, *folders):
    """The text of the page of these folders."""
    assert shell.main(["report", *map(str, folders), "--out", str(tmp_path / "page.html"), "--debug"]) == 0
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def words_of(page):
    """All words of a page, in one line."""
    return " ".join(Elements(page).words)


def headline(page):
    """The words of its first heading."""
    return re.search(r"<h1>(.*?)</h1>", page).group(1)


HEADLINES = {
    "search": "4 of 6 rounds cannot be told from noise",
    "begun": "Not finished: 2 rounds are done",
    "halving": "Cell 2 of 4, +10.0 points from their mean at epoch 2",
    "band": "Cell 0 of 3 has the best scores without training",
    "train": "Loss 1.333 nats, 30.0 % of the training images right",
    "meta-train": "42.0 ± 3.0 % on unseen test classes (5-way 1-shot), 20.0 ± 2.0 % before training",
    "evaluate": "65.0 ± 2.0 % on unseen test classes (5-way 5-shot)",
    "predict": "2 images in 2 classes",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_has_the_verdict_first_and_asks_for_nothing(tmp_path, kind, capsys):
    page = page_of(tmp_path, KINDS[kind](tmp_path / "runs" / kind))
    assert headline(page) == HEADLINES[kind]
    assert capsys.readouterr().out == (f"runs/{kind}: {HEADLINES[kind]}\nwrote {tmp_path / 'page.html'}\n")
    assert fetched_by(page) == []
    elements = Elements(page)
    assert elements.words.index(HEADLINES[kind]) < 6
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(names)) == len(names)
    assert {"Settings", "Times, versions and machine"} <= set(elements.words)
    assert "abc123" in elements.words
    assert elements.open == []


@pytest.mark.usefixtures("no_charts")
def test_pages_of_trainings_and_evaluations_say_the_cpu_time_where_it_is_recorded(tmp_path):
    assert "CPU time 1 min 23 s" in words_of(page_of(tmp_path, trained(tmp_path / "train")))
    assert "CPU time 7.5 s" in words_of(page_of(tmp_path, evaluated(tmp_path / "evaluate", [5, 6])))
    words = words_of(page_of(tmp_path, KINDS["predict"](tmp_path / "predict")))
    assert "CPU time: not recorded" in words


def test_the_page_of_a_search_has_cell_size_score_and_every_round(tmp_path):
    page = page_of(tmp_path, KINDS["search"](tmp_path / "search"))
    words = words_of(page)
    for part in (
        "257,464",
        "score log C",
        "1 min 3 s",
        "normal cell",
        "reduce cell",
        "What each round removed",
    ):
        assert part in words, part
    kept = json.loads((FIGURES / "glyph-5" / "search.json").read_text())
    assert page.count("unsure") - page.count(".unsure") == sum(row[5] and row[7] for row in kept["trace"])
    assert words.count("more than noise") == 2
    assert len(Elements(page).of("td", "kept")) == 18


@pytest.mark.parametrize(
    ("ends", "rehearsal", "expected"),
    [
        ({"device": WELL, "bits": WELL}, True, "A rehearsal on the CPU: 1 fault in 2 stages"),
        ({"device": WELL}, False, "No fault in 1 stage on Card 9"),
        (
            {"device": "killed after its 3 s"},
            False,
            "No fault in 1 stage, 1 of which did not end well, on Card 9",
        ),
    ],
)
def test_the_page_of_a_check_of_a_gpu_names_faults_and_stages_that_were_killed(
    tmp_path, ends, rehearsal, expected
):
    good = {"what": "a product", "value": 3840, "unit": "", "good": True}
    bad = {"what": "equal bits", "value": "differ", "unit": "", "good": False}
    stages = {
        name: {"title": STAGES[name].title, "limit": 5.0, "seconds": 1.0, "ended": end, "lines": lines}
        for (name, end), lines in zip(ends.items(), ([good], [good, bad]), strict=False)
    }
    data = {"name": "Card 9", "rehearsal": rehearsal, "minutes": 1.0, "versions": MACHINE, "stages": stages}
    check.report_stages(tmp_path, "gpu_Card_9", data, GpuCheck(out=tmp_path))
    page = page_of(tmp_path, tmp_path)
    words = words_of(page)
    assert headline(page) == expected
    assert ("bits: equal bits is not as it should be" in words) == ("bits" in ends)
    assert ("device: killed after its 3 s" in words) == (ends["device"] != WELL)
    assert {"a product", "3840", "as it should be"} <= set(Elements(page).words)
    assert "At most 1 minute. " in words
    kind = "open" if rehearsal else "clear" if ends["device"] == WELL else "fails"
    assert f'class="verdict {kind}"' in page
    assert fetched_by(page) == []


@pytest.mark.usefixtures("no_charts")
def test_what_an_unfinished_run_lacks_is_said_with_the_command_that_continues(tmp_path):
    words = words_of(page_of(tmp_path, search_begun(tmp_path / "search")))
    assert "What is missing The run was interrupted; it continues with: python -m experiments search" in words
    assert "search.json is not there: the command writes it at its end." in words
    folder = trained(tmp_path / "train", epochs=1, of=3, status="running")
    page = page_of(tmp_path, folder)
    assert headline(page).startswith("Not finished, epoch 1 of 3")
    assert "The run has not ended" in words_of(page)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2}\n')
    (folder / "learning_curves.json").write_text("{")
    words = words_of(page_of(tmp_path, folder))
    assert "metrics.jsonl is damaged" in words
    assert "learning_curves.json cannot be read" in words
    assert "no epoch is done" in words


@pytest.mark.usefixtures("no_charts")
def test_a_halving_that_is_not_finished_counts_its_trainings(tmp_path):
    settings = Search(method="halving", parameters="36000:42000", out=tmp_path / "search")
    folder = write(settings.out, "search", settings, status="running")
    (folder / "measurements").mkdir()
    (folder / "measurements" / "000-epoch-2.json").write_text("{}")
    assert headline(page_of(tmp_path, folder)) == "Not finished: 1 short trainings are measured"


@pytest.mark.usefixtures("no_charts")
def test_results_of_another_shape_are_no_crash(tmp_path):
    folder = write(tmp_path / "search", "search", {"method": "halving"}, files={"search.json": {"rungs": 3}})
    page = page_of(tmp_path, folder)
    assert headline(page) == "The results cannot be read"
    assert "do not fit this version" in words_of(page)


@pytest.mark.usefixtures("no_charts")
def test_a_search_that_is_confirmed_says_so(tmp_path):
    confirmed = {"gain of the cells": 0.05, "half-width of the cells": 0.02}
    page = page_of(tmp_path, halved(tmp_path / "one", confirmed))
    assert headline(page) == "Trained again, its best cells are +5.0 ± 2.0 points from random cells"
    assert 'class="verdict clear"' in page
    page = page_of(tmp_path, halved(tmp_path / "two", confirmed | {"half-width of the cells": 0.08}))
    assert 'class="verdict weak"' in page


@pytest.mark.usefixtures("no_charts")
def test_two_evaluations_are_compared_on_their_tasks(tmp_path):
    better, worse = [8, 9, 10, 9], [5, 7, 6, 7]
    folders = [evaluated(tmp_path / name, rows) for name, rows in (("a", worse), ("b", better))]
    page = page_of(tmp_path, *folders)
    assert headline(page) == "b is 27.5 ± 15.2 points more accurate than a"
    assert fetched_by(page) == []
    elements = Elements(page)
    assert [each["href"] for tag, each in elements.found if tag == "a"] == ["#run-1", "#run-2"]
    assert {"run-0", "run-1", "run-2"} <= {each.get("id") for _, each in elements.found}
    other = evaluated(tmp_path / "c", better, digest="other tasks", shots=1)
    words = words_of(page_of(tmp_path, folders[0], other))
    assert "No difference is measured, because no two runs were evaluated on the same tasks" in words
    assert "The evaluations met different tasks." in words
    assert "Settings that differ" in words
    page = page_of(tmp_path, folders[1], evaluated(tmp_path / "d", [9, 8, 9, 10]))
    assert "cannot be told apart" in headline(page)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"seconds": 164.0, "starts": 1}, ("running time", "2 min 44 s")),
        ({"seconds": 164.0, "starts": 2}, ("running time (2 starts, without pauses)", "2 min 44 s")),
        ({"starts": 2}, ("time from start to end (2 starts, pauses included)", "10 h 0 min")),
    ],
)
def test_the_running_time_leaves_out_a_night_between_two_starts(entries, expected):
    night = {"started": "2026-11-30T22:00:00+00:00", "ended": "2026-12-01T08:00:00+00:00"}
    assert report._times(night | entries) == (expected,)


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("name", ["x.htm", "x.html", "x.HTML"])
def test_a_page_of_either_ending_is_a_file_and_is_replaced(tmp_path, name):
    run = trained(tmp_path / "run")
    for _ in range(2):
        assert report.write_page(RunReport((run,), tmp_path / name)) == 0
    assert (tmp_path / name).is_file()


def test_a_folder_without_results_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.setattr(Command, "load", lambda _: pytest.fail("the command was loaded"))
    assert shell.main(["report", str(tmp_path)]) == 2
    assert "holds nothing that a command wrote" in capsys.readouterr().err


@pytest.mark.usefixtures("no_charts")
def test_a_folder_of_runs_stands_for_all_of_them(tmp_path):
    runs = tmp_path / "runs"
    trained(runs / "one" / "train")
    evaluated(runs / "one" / "evaluate", [5, 6])
    trained(runs / "two" / "train", seed=7)
    (runs / "empty").mkdir()
    page = page_of(tmp_path, runs)
    assert re.findall(r'href="#run-\d">(.*?)</a>', page) == ["one/evaluate", "one/train", "two/train"]
    assert "Learning curves" in words_of(page)
    assert page == page_of(tmp_path, runs), "the same runs give the same bytes"


@pytest.mark.parametrize(
    "path", sorted(FIGURES.rglob("*.json")), ids=lambda p: p.relative_to(FIGURES).as_posix()
)
def test_every_committed_result_of_a_known_kind_has_a_verdict(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    drawn = re.compile(
        r"glyphs_t|.*cells|trace|search|genotype|verdict_bars|protocols_figure|front_page|.*(sizes|differences)"
    )
    verdict = verdict_of(path.stem, content)
    assert (verdict is None) == bool(drawn.match(path.stem))
    if verdict is not None:
        assert 10 < len(verdict.headline) < 140
        assert "nan" not in " ".join((verdict.headline, *verdict.sentences))


def test_figures_and_tables_are_shown_with_their_verdicts(tmp_path):
    for name in (
        "drift_sphere.json",
        "drift_sphere.png",
        "demo_table.json",
        "demo_table.md",
        "searched_cells.json",
    ):
        shutil.copy(FIGURES / name, tmp_path)
    page = page_of(tmp_path, tmp_path)
    assert headline(page) == "3 results"
    words = words_of(page)
    for part in (
        "Parameters and kernel move less the wider the network",
        "The path length goes as width^−0.72",
        "halving, its network",
        "searched_cells.png is not there: its numbers are in searched_cells.json.",
    ):
        assert part in words, part
    assert page.count("data:image/png;base64") == 1
    assert fetched_by(page) == []
    page = page_of(tmp_path, tmp_path / "drift_sphere.json")
    assert headline(page) == "Parameters and kernel move less the wider the network"


def test_measurements_of_the_theory_are_summed_up_by_width(tmp_path):
    lines = [{"width": w, "seed": s, "drift": w / 100 + s} for w in (64, 128) for s in (0, 2, 1)]
    page = page_of(tmp_path, write(tmp_path / "sweep", "theory sweep", {"depth": 2}, lines))
    assert headline(page) == "6 networks measured, and no figure of them in this folder"
    assert re.findall(r"<td>([\d.]+)</td>", page)[:6] == ["64", "3", "1.64", "128", "3", "2.28"]


@pytest.mark.parametrize(
    ("command", "settings"), [("meta-train", MetaTrain(steps=20)), ("theory sweep", {"depth": 2})]
)
def test_the_cpu_time_of_meta_trainings_and_measurements_is_a_fact(tmp_path, command, settings):
    lines = [{"step": 20, "loss": 1.0, "accuracy": 0.3, "val_accuracy": 0.3, "val_half_width": 0.02}]
    lines = lines if command == "meta-train" else [{"width": 8, "seed": 0, "cpu_seconds": 1.0}]
    results = {"before": [0.2, 0.02], "accuracy": 0.42, "half_width": 0.03, "cpu_seconds": 62.0}
    page = page_of(tmp_path, write(tmp_path / "run", command, settings, lines, results=results))
    assert re.findall(r"<dt>CPU time</dt><dd>(.*?)</dd>", page) == [time_in_words(62.0)]


@pytest.mark.usefixtures("no_charts")
def test_text_of_users_is_text(tmp_path):
    bad = '<script>alert("x")</script>'
    folder = trained(tmp_path / "<b>&run", data=bad)
    (folder / "notes.json").write_text(json.dumps({"seed": 0, "rows": []}))
    (folder / "notes.md").write_text(
        f"{bad} [here](http://example.org) ![x](http://example.org/x.png)\n\n| {bad} |\n|-|\n"
    )
    page = page_of(tmp_path, folder, KINDS["predict"](tmp_path / "predict"))
    elements = Elements(page)
    assert not [tag for tag, _ in elements.found if tag in ("script", "i") or (tag == "img")]
    assert bad in elements.words
    assert "<i>a</i>.png" in elements.words
    assert fetched_by(page) == []
    shown = str(html_of((folder / "notes.md").read_text()))
    assert "<script" not in shown
    assert "here" in shown
    assert fetched_by(shown) == []


@pytest.mark.usefixtures("no_charts")
def test_nothing_of_others_is_overwritten_and_pages_may_lie_among_results(tmp_path, capsys):
    folder = trained(tmp_path / "train")
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    assert shell.main(["report", str(folder), "--out", str(mine)]) == 2
    assert "is no page of this command" in capsys.readouterr().err
    assert mine.read_text() == "<p>mine</p>"
    for _ in range(2):
        assert shell.main(["report", str(folder), "--out", str(tmp_path / "pages")]) == 0
    place = next((tmp_path / "pages").iterdir())
    assert place.name.endswith("-train.html")
    check_results_folder(tmp_path / "pages", "drift")
    check_run_folder(tmp_path / "pages", "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got no run: name one or several folders"),
        (["nowhere"], "there is no folder nowhere"),
        (["."], "holds nothing that a command wrote"),
        (["a.json"], "is no result of a command"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text("{}")
    assert shell.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_page(tmp_path):
    evaluations = [evaluated(tmp_path / name, rows) for name, rows in (("a", [5, 6, 7]), ("b", [9, 9, 8]))]
    page_of(tmp_path, KINDS["search"](tmp_path / "search"), *evaluations)
    address = (tmp_path / "page.html").as_uri()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    for more in (["--window-size=1200,1600", f"--screenshot={tmp_path / 'page.png'}"], ["--dump-dom"]):
        done = subprocess.run([CHROMIUM, *flags, *more, address], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
    image = Image.open(tmp_path / "page.png").convert("RGB")
    assert image.size == (1200, 1600)
    assert len(image.getcolors(1_000_000)) > 50
    assert "4 of 6 rounds cannot be told from noise" in words_of(done.stdout)
