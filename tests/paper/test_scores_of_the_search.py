"""What the paper says of the two scores of Algorithm 1, C and R, and of the samples behind them."""

import numpy as np
import pytest
import torch

from mamltheory import empirical_meta_ntk, generator, meta_outputs, train
from mamltheory.bounds import largest_rate
from mamltheory.kernels.empirical import jacobian
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.search.algorithm1 import run_search
from mamltheory.nas.search.settings import SearchSettings
from mamltheory.tasks import query_labels
from tests.nas.scoring.test_condition_number import SMALL as SMALL_NETWORK
from tests.nas.scoring.test_condition_number import ScoreSettings, score_kernel, supernet
from tests.nas.scoring.test_condition_number import tasks as image_tasks
from tests.paper.cases import start
from tests.paper.test_finite_width import setting
from tests.reference.nas_toy import planted_scorer, planted_values


@pytest.mark.paper("Sec. 5: both scores")
def test_a_network_of_few_linear_regions_cannot_alternate_more_often(measured):
    """Expressive in the sense of R: on a line a function of R linear pieces changes its sign at most R times.

    Networks of three widths, 100 draws each, fit their output weights to alternating labels at 24 points.
    """
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)[:, None]
    labels = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12)[:, None]
    grid, alternations, pieces = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None], [], []
    for width in (2, 6, 18):
        changes, regions = [], []
        for seed in range(100):
            g = generator(seed, "hidden neurons", width)
            weight, bias = torch.randn(2, 1, width, generator=g, dtype=torch.float64)

            def hidden(z, weight=weight, bias=bias):
                units = (z @ weight + bias).relu()
                return torch.cat([units, torch.ones_like(z)], 1)

            fit = torch.linalg.lstsq(hidden(x), labels, driver="gelsd").solution
            values = (hidden(x) @ fit).flatten()
            changes.append(int((values[1:] * values[:-1] < 0).sum()))
            kinks = -bias / weight
            regions.append(1 + int(((kinks > -1) & (kinks < 1)).sum()))
            patterns = (grid @ weight + bias > 0).unique(dim=0)
            assert len(patterns) <= regions[-1]
        assert all(a <= r for a, r in zip(changes, regions, strict=True))
        alternations.append(np.mean(changes))
        pieces.append(np.mean(regions))
    assert pieces == sorted(pieces)
    measured(
        "mean alternations with the most regions over those with the fewest",
        alternations[2] / alternations[0],
        above=2,
    )


@pytest.mark.paper("Sec. 5: both scores", "Algorithm 1 (MetaNTK-NAS)")
def test_the_search_lowers_the_condition_number_and_raises_the_regions_at_once(measured):
    """Independent additive scores: of the single paths, the one that is found is good in both, not in one alone."""
    random = np.random.default_rng(0)
    places = {"C": [], "R": []}
    for seed in range(5):
        planted = planted_values(2 * seed), planted_values(2 * seed + 1)
        found = run_search(planted_scorer(*planted), SearchSettings(repeats=1)).candidates.operators()
        edges = {}
        for operator in Candidates().operators():
            edges.setdefault((operator.cell, operator.edge), []).append(operator)
        paths = [[options[random.integers(len(options))] for options in edges.values()] for _ in range(1000)]
        for name, values, sign in (("C", planted[0], 1), ("R", planted[1], -1)):
            own = sign * sum(values[o] for o in found)
            others = [sign * sum(values[o] for o in path) for path in paths]
            places[name].append(np.mean([other < own for other in others]))
    measured("share of random paths with a lower C than the found one", max(places["C"]), below=0.1)
    measured("share of random paths with a higher R than the found one", max(places["R"]), below=0.1)


@pytest.mark.paper("fn. 11")
@pytest.mark.parametrize("kernel", ["maml", "anil"])
def test_every_sample_that_enters_one_of_the_kernels_enters_the_other(kernel, measured):
    """A change of any one of a task's 6 samples, queries and supports, changes NTK and MetaNTK."""
    network = supernet(Candidates(), SMALL_NETWORK, 0).double()
    tasks = [task.to(torch.float64) for task in image_tasks()]
    used = dict.fromkeys(("ntk", kernel), 0)
    for name in used:
        settings = ScoreSettings(name, "sum")
        whole = score_kernel(network, tasks, settings)
        for part in ("query_x", "support_x"):
            samples = getattr(tasks[0], part)
            for j in range(len(samples)):
                moved = samples.clone()
                moved[j] = moved[j].flip(-1)
                parts = {"query_x": tasks[0].query_x, "support_x": tasks[0].support_x, part: moved}
                other = list(tasks)
                other[0] = type(tasks[0])(
                    parts["query_x"], tasks[0].query_y, parts["support_x"], tasks[0].support_y
                )
                change = (score_kernel(network, other, settings) - whole).norm() / whole.norm()
                used[name] += bool(change > 1e-6)
    assert used["ntk"] == len(tasks[0].query_x) + len(tasks[0].support_x) == 6
    measured(
        f"samples of the NTK over those of the kernel of {kernel}", used["ntk"] / used[kernel], below=1.001
    )
    measured(
        f"samples of the kernel of {kernel} over those of the NTK", used[kernel] / used["ntk"], below=1.001
    )


def net_factors(net, tasks, seed):
    """‖Θ̂(x, X')‖, ‖Θ̂⁻¹‖ and ‖f(X') − Y'‖ of Eq. (48) for the first task."""
    params, task = start(net, seed), tasks[0]
    query, support = (
        torch.cat([v.flatten(1) for v in jacobian(net.model, params, x).values()], 1)
        for x in (task.query_x, task.support_x)
    )
    own = support @ support.T / net.width
    residual = net.model(params, task.support_x) - task.support_y
    return [
        float(torch.linalg.matrix_norm(query @ support.T / net.width, 2)),
        float(torch.linalg.matrix_norm(torch.linalg.inv(own), 2)),
        float(residual.norm()),
    ]


@pytest.mark.paper("Eq. (48)")
@pytest.mark.parametrize("depth", [1, 2])
def test_the_factors_of_equation_48_do_not_grow_with_the_width(depth, measured):
    """Largest over 12 networks at 1024 neurons beside 64; ‖I − e^{−λτΘ̂}‖ is at most 1 whatever Θ̂ ≥ 0 is."""
    largest = []
    for width in (64, 1024):
        net, tasks, _, _ = setting("erf", depth, width)
        largest.append(np.max([net_factors(net, tasks, seed) for seed in range(12)], axis=0))
    for name, narrow, wide in zip(("‖Θ̂(X, X')‖", "‖Θ̂⁻¹‖", "‖f(X') − Y'‖"), *largest, strict=True):
        measured(f"{name}, l = 1024 over l = 64, L = {depth}", wide / narrow, below=2)


@pytest.mark.paper("Sec. 4.1: main proof ideas")
def test_up_to_a_minimum_of_zero_loss_near_the_start_the_loss_is_almost_quadratic(measured):
    """The loss on the way from θ_0 to the trained parameters, against the quadratic of the linearised outputs."""
    excess, remaining, lengths = [], [], []
    for width in (64, 1024):
        net, tasks, _, inner = setting("erf", 1, width)
        params = start(net)
        rate = 0.9 * largest_rate(empirical_meta_ntk(net.model, tasks, inner, params=params))
        record = train(net.model, params, tasks, inner, rate, 200)
        remaining.append(float(record.losses()[-1] / record.losses()[0]))
        step = {name: record.params[name] - params[name] for name in params}
        lengths.append(float(torch.stack([part.square().sum() for part in step.values()]).sum().sqrt()))
        excess.append(deviation_from_quadratic(net, params, step, tasks, inner))
    measured("loss of the trained network of 1024 neurons, of its start", remaining[1], below=1e-6)
    measured("√l ‖θ − θ_0‖, l = 1024 over l = 64", (1024 / 64) ** 0.5 * lengths[1] / lengths[0], below=2)
    measured("deviation of the loss from the quadratic, l = 1024", excess[1], below=0.02)
    assert excess[1] < 0.5 * excess[0]


def deviation_from_quadratic(net, params, step, tasks, inner):
    """Largest difference of loss and quadratic model on the segment, of the loss at θ_0."""

    def outputs(s):
        theta = {name: params[name] + s * step[name] for name in params}
        return meta_outputs(net.model, theta, tasks, inner)

    labels, zero = query_labels(tasks), torch.zeros((), dtype=torch.float64)
    first, slope = torch.func.jvp(outputs, (zero,), (torch.ones_like(zero),))
    gaps = []
    for s in torch.linspace(0, 1, 6, dtype=torch.float64):
        loss, model = (float((f - labels).square().sum()) / 2 for f in (outputs(s), first + s * slope))
        gaps.append(abs(loss - model))
    return max(gaps) / (float((first - labels).square().sum()) / 2)
