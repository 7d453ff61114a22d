"""The sheets of a table: results in the form of the paper's Tables 1 and 2, comparisons, and single runs."""

import dataclasses
from collections.abc import Sequence

from mamltheory.fewshot.statistics import Comparison, Spread

from .markup import Sheet
from .paper_results import MINI, PAPER_RESULTS, TIERED, PaperResult
from .pipeline import SEARCHED
from .results import Measured, Results, compared_pairs
from .settings import (
    CELLS,
    EMBEDDED,
    EXPERIMENTS,
    ONE_SIZE,
    RECIPES,
    SHOTS,
    SIZED,
    Experiment,
    Method,
    Recipe,
)

NAMES: dict[Method, str] = {
    "metantk": "MetaNTK-NAS",
    "metantk-stable": "MetaNTK-NAS, stable",
    "te-nas": "TE-NAS",
    "regions": "Linear regions",
    "metantk-published": "MetaNTK-NAS cell, published",
    "metanas": "MetaNAS cell, retrained",
    "random": "Random cell",
    "random-same-size": "Random cell, same parameters",
    "random-te-nas-size": "Random cell, TE-NAS's parameters",
    "random-regions-size": "Random cell, parameters of linear regions",
    "halving": "Halving, its network",
    "halving-retrained": "Halving, its cell retrained",
    "halving-warm": "Halving with warm start, its network",
    "metantk-band": "MetaNTK-NAS among sampled cells",
    "random-band": "Random cells",
}
INGREDIENTS: dict[str, tuple[str, str, str]] = {
    "MetaNTK-NAS": ("✓", "", "✓"),
    "MetaNTK-NAS, stable": ("✓", "", ""),
    "TE-NAS": ("", "✓", "✓"),
    "Linear regions": ("", "", "✓"),
}
MADE: dict[str, Method] = {"MetaNTK-NAS": "metantk", "MetaNAS (retrained)": "metanas"}
"""Models of Table 1 and the methods for them here."""
OUTPUTS = {"full": "all outputs", "sum": "summed outputs"}
MISSING, NOTHING = "missing", "–"
ABLATED: dict[Experiment, int] = {"mini-5": 5, "mini-8": 8}
DEVIATION = (
    "± after an accuracy in per cent is the standard deviation over runs; a run is a search, a training and an "
    "evaluation under one seed."
)
SEARCH_TIME = "CPU time on a CPU, time from beginning to end on a GPU"
PRINTED = "Rows marked paper are printed there and were not measured by this code; ± is theirs, a deviation over runs."
QUOTED = f"{PRINTED} In the rows from MAML to MetaNAS it is what their authors gave, mostly an interval over tasks."


def sheets(results: Results) -> list[Sheet]:
    """The sheets for the experiments and methods of the table."""
    chosen, found = results.settings, []
    paper = [name for name in chosen.experiments if name not in EMBEDDED]
    if paper and "metantk" in chosen.methods:
        found.append(table_1(results))
    if set(ABLATED) & set(paper) and len(chosen.methods) > 1:
        found.append(table_2(results))
    found += [ablation(results, name) for name in chosen.experiments if name in EMBEDDED]
    found += [comparisons(results, name) for name in chosen.experiments if _compared(results, name)]
    found += [single_runs(results, name) for name in chosen.experiments if _any_run(results, name)]
    return found


def table_1(results: Results) -> Sheet:
    """Table 1: the rows of the paper, each followed by the measurements here, if any."""
    rows = []
    for printed in _models(1):
        model = next(iter(printed.values()))
        cells = str(model.cells or NOTHING)
        row = [f"{model.model} (paper)", model.architecture, cells, model.training]
        rows.append((*row, *_printed_half(printed.get(MINI)), *_printed_half(printed.get(TIERED))))
        if (method := MADE.get(model.model)) in results.settings.methods:
            made: list[Experiment] = [name for name in EXPERIMENTS if name.endswith(f"-{model.cells}")]
            halves = [_own_half(results, name, method) for name in made]
            rows.append((f"{model.model} (this code)", "Cells", cells, "RFS", *halves[0], *halves[1]))
    half = ("parameters", "search", "1-shot", "5-shot")
    columns = [("", name) for name in ("Model", "Arch.", "Cells", "Training")]
    columns += [(f"{data} 5-way", name) for data in (MINI, TIERED) for name in half]
    first = next(i for i, row in enumerate(rows) if "retrained" in row[0])
    hours = f"Search: hours on a V100 in the paper; in rows of this code {SEARCH_TIME}."
    return Sheet(
        "Table 1: few-shot accuracy", tuple(columns), tuple(rows), (QUOTED, DEVIATION, hours), (first,)
    )


def table_2(results: Results) -> Sheet:
    """Table 2: the ablation on mini-ImageNet, with the rows of the paper above the measurements here."""
    rows = []
    for printed in _models(2, by="model"):
        cells = {result.cells: result for result in printed}
        model = printed[0].model
        texts = [_printed(cells[stack], shots) for shots in SHOTS for stack in (5, 8)]
        rows.append((f"{model} (paper)", *INGREDIENTS.get(model, ("", "", "")), *texts))
    own = len(rows)
    for method in results.settings.methods:
        texts = [_own(results, name, method, shots) for shots in SHOTS for name in ABLATED]
        name = NAMES[method]
        rows.append((f"{name} (this code)", *INGREDIENTS.get(name, ("", "", "")), *texts))
    columns = [("", name) for name in ("Model", "MetaNTK", "NTK", "Linear regions")]
    columns += [(f"{shots}-shot", f"{stack} cells") for shots in SHOTS for stack in (5, 8)]
    title = "Table 2: ablation on mini-ImageNet"
    return Sheet(title, tuple(columns), tuple(rows), (PRINTED, DEVIATION), (own,))


def ablation(results: Results, experiment: Experiment) -> Sheet:
    """An experiment that is not in the paper, in the form of Table 2, with sizes and search times."""
    methods, rows = results.settings.methods, []
    one_size = set(methods) <= set(ONE_SIZE)
    for method in methods:
        name, sizes = NAMES[method], results.parameters(experiment, method)
        seconds = results.search_seconds(experiment, method)
        rows.append(
            (
                name,
                *(() if one_size else INGREDIENTS.get(name, ("", "", ""))),
                MISSING if sizes is None else _spread(sizes, 0, results.settings.runs),
                NOTHING if seconds is None else f"{seconds.mean:.0f} s",
                *(_own(results, experiment, method, shots) for shots in SHOTS),
            )
        )
    ingredients = () if one_size else ("MetaNTK", "NTK", "Linear regions")
    names = ["Model", *ingredients, "parameters", "search", "1-shot", "5-shot"]
    recipe = RECIPES[experiment]
    size = f"{recipe.train.cells} cells of {recipe.train.channels} channels, 5-way"
    title = f"{'Cells of one size' if one_size else 'Ablation'} on {recipe.data}: {size}"
    words = [_protocol(results, experiment)] * (not one_size)
    if set(methods) & set(ONE_SIZE):
        words.append(_one_size(results, experiment))
    notes = (DEVIATION, *words, f"The column search is {SEARCH_TIME}.")
    return Sheet(title, tuple(("", name) for name in names), tuple(rows), notes)


def comparisons(results: Results, experiment: Experiment) -> Sheet:
    """MetaNTK-NAS minus every other method, and each search minus random cells of its size, over runs."""
    rows, found = [], {}
    for pair in compared_pairs(results.settings):
        for shots in SHOTS:
            comparison = results.comparison(experiment, *pair, shots)
            if comparison is not None:
                found[pair, shots] = comparison
                first, second = (NAMES[method] for method in pair)
                rows.append((f"{first} − {second}", str(shots), *_comparison(comparison)))
    names = [
        "Difference (points)",
        "shots",
        "of each run",
        "mean and 95 % interval over runs",
        "between runs",
    ]
    names += ["p (sign flips)", "p (t test)"]
    compared = {pair for pair, _ in found}
    sized = {pair for pair in compared if pair[1] in (*SIZED, "random-band")}
    warm = {pair for pair in compared if pair == ("halving-warm", "halving")}
    title = " ".join(
        question
        for question, asked in (
            (f"Is MetaNTK-NAS better on {RECIPES[experiment].data}?", compared - sized - warm),
            ("Is a search better than random cells of its size?", sized),
            ("Does a warm start help?", warm),
        )
        if asked
    )
    columns = tuple(("", name) for name in names)
    return Sheet(title, columns, tuple(rows), (_method_note(), comparison_verdict(list(found.values()))))


def comparison_verdict(found: Sequence[Comparison]) -> str:
    """The conclusion from the comparisons, with its power."""
    runs = min(len(comparison.differences) for comparison in found)
    shown = [comparison for comparison in found if comparison.shown]
    better = sum(comparison.interval.mean > 0 for comparison in shown)
    half = sorted(100 * comparison.interval.half_width for comparison in found)[len(found) // 2]
    words = (
        f"{len(shown)} of {len(found)} intervals leave out zero ({better} in favour of the first named); by chance "
        "alone one in twenty does"
        if shown
        else f"None of {len(found)} intervals leaves out zero: no difference is shown, nor its absence"
    )
    power = (
        f"With {runs} runs the sign test cannot fall below p = {2.0 ** (1 - runs):g} and the interval has {runs - 1} "
        f"degrees of freedom: differences below about {half:.0f} points go unseen"
    )
    return f"{words}. {power}{', so that few runs can hardly show anything' if runs < 6 else ''}."


def single_runs(results: Results, experiment: Experiment) -> Sheet:
    """Every trained network with its interval over tasks, which does not cover other searches or trainings."""
    rows = [
        (
            NAMES[measured.run.method],
            f"{measured.run.seed}{f', cell {measured.run.cell + 1}' * (measured.run.method in CELLS)}",
            MISSING if measured.parameters is None else str(measured.parameters),
            *(_single(measured, shots) for shots in SHOTS),
        )
        for measured in results.measured
        if measured.run.experiment == experiment
    ]
    names = ["Model", "seed", "parameters", "1-shot", "5-shot"]
    note = "± is here the 95 % t interval over the tasks of one trained network, in per cent."
    title = f"Single runs on {RECIPES[experiment].data}, {RECIPES[experiment].train.cells} cells"
    return Sheet(title, tuple(("", name) for name in names), tuple(rows), (note,))


def _single(measured: Measured, shots: int) -> str:
    results = measured.evaluations.get(shots)
    return (
        MISSING if results is None else f"{100 * results['accuracy']:.2f} ± {100 * results['half_width']:.2f}"
    )


def _comparison(comparison: Comparison) -> tuple[str, ...]:
    each = ", ".join(f"{100 * difference:+.1f}" for difference in comparison.differences)
    interval = comparison.interval
    return (
        each.replace("-", "−"),
        f"{100 * interval.mean:+.1f} ± {100 * interval.half_width:.1f}".replace("-", "−"),
        f"{100 * comparison.run_deviation:.1f}",
        f"{comparison.p_value:.3g}",
        f"{comparison.t_p_value:.2g}",
    )


def _method_note() -> str:
    return (
        "Differences are taken task by task: both networks of a run meet the same tasks. Runs are the unit: ± is "
        "Student's 95 % interval over them, and between runs is the standard deviation of the difference beyond that "
        "of the choice of tasks. p is two-sided, by the exact test that flips signs of runs, and by the t test, which "
        "takes the differences for normal."
    )


def _evaluation(recipe: Recipe) -> str:
    heads = " and ".join(f"{e.head} (C = {e.C:g}) for {shots}-shot" for shots, e in recipe.evaluate.items())
    any_one = next(iter(recipe.evaluate.values()))
    return (
        f"Evaluation: {any_one.tasks} tasks of {any_one.ways} ways, {any_one.queries} queries per class, "
        f"{any_one.augment} augmented copies of each support image, {heads}. Training: {recipe.train.epochs} epochs."
    )


def _one_size(results: Results, experiment: Experiment) -> str:
    """How cells of one size were found and trained."""
    recipe, methods = RECIPES[experiment], results.settings.methods
    parts = [
        f"All cells have two inputs per node, and their networks {str(recipe.band).replace(':', ' to ')} parameters"
    ]
    if "halving" in methods:
        search = dataclasses.replace(recipe.search, **recipe.methods["halving"])
        counts, epochs = ", ".join(map(str, search.rungs)), ", ".join(map(str, search.rung_epochs))
        parts.append(
            f"halving trains {counts} cells for {epochs} epochs and ranks them by {', '.join(search.rank_by)} on "
            "validation classes; its network includes the luck of that training, which the retrained cell does not"
        )
    if "metantk-band" in methods:
        search = dataclasses.replace(recipe.search, **recipe.methods["metantk-band"])
        parts.append(
            f"MetaNTK-NAS takes the best of {search.samples} sampled cells by the ranks of the condition number and of "
            f"the linear regions, {search.value('repeats')} repeats of {search.value('tasks')} tasks"
        )
    if "random-band" in methods:
        parts.append(
            f"random cells are {CELLS['random-band']} a run, and their mean is one sample, so that its deviation over "
            "runs is not that of one cell"
        )
    return f"{_evaluation(recipe)} {'; '.join(parts)}."


def _protocol(results: Results, experiment: Experiment) -> str:
    recipe = RECIPES[experiment]
    search = recipe.search
    text = (
        f"{_evaluation(recipe)} Search: protocol {search.protocol}, kernel of {OUTPUTS[search.value('outputs')]}, "
        f"tasks per kernel {search.value('tasks')}, repeats {search.value('repeats')}, images of {search.image_size} "
        "pixels"
    )
    if "metantk-stable" not in results.settings.methods:
        return f"{text}."
    stable = dataclasses.replace(search, **recipe.methods["metantk-stable"])
    repeats = f"{stable.value('least_repeats')} to {stable.value('repeats')} repeats"
    return f"{text}; stable: {stable.value('tasks')} tasks, {repeats}, {stable.image_size} pixels."


def _models(table: int, by: str = "stack") -> list:
    """The rows of the paper: {data: result} for Table 1, the results of a model for Table 2."""
    rows: dict[tuple, list[PaperResult]] = {}
    for result in PAPER_RESULTS:
        if result.table == table:
            key = (result.model,) if by == "model" else (result.model, result.cells)
            rows.setdefault(key, []).append(result)
    if by == "model":
        return list(rows.values())
    return [{result.data: result for result in row} for row in rows.values()]


def _printed_half(result: PaperResult | None) -> tuple[str, ...]:
    if result is None:
        return (NOTHING,) * 4
    hours = NOTHING if result.hours is None else f"{result.hours} h"
    return (result.parameters or NOTHING, hours, *(_printed(result, shots) for shots in SHOTS))


def _printed(result: PaperResult, shots: int) -> str:
    return " ± ".join(result.accuracy[shots])


def _own_half(results: Results, experiment: Experiment, method: Method) -> tuple[str, ...]:
    if experiment not in results.settings.experiments:
        return (NOTHING,) * 4
    sizes, seconds = results.parameters(experiment, method), results.search_seconds(experiment, method)
    unknown = MISSING if method in SEARCHED else NOTHING
    return (
        MISSING if sizes is None else f"{sizes.mean / 1e6:.2f}M",
        unknown if seconds is None else f"{seconds.mean / 3600:.2f} h",
        *(_own(results, experiment, method, shots) for shots in SHOTS),
    )


def _own(results: Results, experiment: Experiment, method: Method, shots: int) -> str:
    if experiment not in results.settings.experiments:
        return NOTHING
    spread = results.accuracy(experiment, method, shots)
    return MISSING if spread is None else _spread(spread, 2, results.settings.runs)


def _spread(spread: Spread, digits: int, wanted: int) -> str:
    """Mean ± deviation, with the number of runs if it is not ``wanted``."""
    text = f"{spread.mean:.{digits}f}"
    if spread.deviation is not None:
        text += f" ± {spread.deviation:.{digits}f}"
    return text if spread.runs == wanted else f"{text} ({spread.runs} of {wanted} runs)"


def _compared(results: Results, experiment: Experiment) -> bool:
    pairs = compared_pairs(results.settings)
    return any(results.comparison(experiment, *pair, shots) for pair in pairs for shots in SHOTS)


def _any_run(results: Results, experiment: Experiment) -> bool:
    return any(m.evaluations for m in results.measured if m.run.experiment == experiment)
