"""Appendix B, Lemma 1: the Lipschitz constant of the Jacobian of MAML, against dense Hessians and over widths."""

import pytest
import torch

from mamltheory import FullyConnected, InnerLoop, generator, train
from mamltheory.errors import ValueRangeError
from mamltheory.finite_width.bounds import theorem3_drift_bound, theorem3_path_bound
from mamltheory.finite_width.lipschitz import (
    jacobian_size,
    lipschitz_along,
    lipschitz_constant,
    lipschitz_ratio,
)
from tests.paper.cases import make_tasks, rate_setting, setting, start
from tests.paper.widths import at_widths, check_level, check_slope, combined, random_direction
from tests.reference.dense import Dense, flatten

slow = pytest.mark.slow


def constant(net, params, tasks, inner):
    return lipschitz_constant(net.model, params, tasks, inner, generator(0, "start vector"), tolerance=1e-2)


def moved(params, direction, length):
    return combined(params, direction, length)


def dense_second_derivatives(net, params, tasks, inner):
    """∇²F_a of every output a, by differences of dense Jacobians: outputs × D × D."""
    dense, h = Dense(net, params), 1e-5
    theta, columns = dense.theta0.clone(), []
    for i in range(len(theta)):
        sides = []
        for sign in (1, -1):
            dense.theta0 = theta.clone()
            dense.theta0[i] += sign * h
            sides.append(torch.cat([dense.meta_jacobian(task, inner) for task in tasks]))
        columns.append((sides[0] - sides[1]) / (2 * h))
    return torch.stack(columns, dim=2)


@pytest.mark.paper("Lemma 1", "Eq. (25)")
@pytest.mark.parametrize(
    ("algorithm", "depth", "k", "tau"), [("maml", 1, 2, 1), ("maml", 2, 1, 1), ("anil", 1, 1, 2)]
)
def test_the_lipschitz_constant_is_that_of_the_dense_second_derivatives(algorithm, depth, k, tau, measured):
    net = FullyConnected(2, 2, depth, k, "tanh")
    params, tasks, inner = start(net), make_tasks(net, 2, m=2), InnerLoop(0.4, tau, algorithm)
    hessians = dense_second_derivatives(net, params, tasks, inner)
    worst = torch.linalg.eigvalsh((hessians @ hessians).sum(0))[-1].sqrt() / net.width**0.5
    found = lipschitz_constant(net.model, params, tasks, inner, generator(0, "start"), tolerance=1e-8)
    measured("error of K", abs(found / float(worst) - 1), below=1e-6)
    direction = random_direction(params, generator(1, "direction"))
    change = (hessians @ flatten(direction)).norm() / net.width**0.5
    along = lipschitz_along(net.model, params, direction, tasks, inner)
    measured("error along a direction", abs(along / float(change) - 1), below=1e-6)
    other = moved(params, direction, 1e-6)
    assert lipschitz_ratio(net.model, params, other, tasks, inner) == pytest.approx(along, rel=1e-4)


@pytest.mark.paper("Lemma 1")
def test_no_direction_changes_the_jacobian_faster_than_the_constant_and_its_length_does_not_matter():
    net, tasks, _, inner = setting("erf", 2, 16)
    params = start(net)
    worst = lipschitz_constant(net.model, params, tasks, inner, generator(0, "start"))
    for seed in range(5):
        direction = random_direction(params, generator(seed, "direction"))
        along = lipschitz_along(net.model, params, direction, tasks, inner)
        longer = {name: 100 * part for name, part in direction.items()}
        assert lipschitz_along(net.model, params, longer, tasks, inner) == pytest.approx(along, rel=1e-12)
        assert along < worst
    again = lipschitz_constant(net.model, params, tasks, inner, generator(1, "start"))
    assert again == pytest.approx(worst, rel=2e-3)


def test_a_ratio_needs_two_points_and_a_direction_a_length():
    net, tasks, _, inner = setting("erf", 1, 4)
    params = start(net)
    zero = {name: torch.zeros_like(part) for name, part in params.items()}
    with pytest.raises(ValueRangeError, match="coincide"):
        lipschitz_ratio(net.model, params, params, tasks, inner)
    with pytest.raises(ValueRangeError, match="direction is zero"):
        lipschitz_along(net.model, params, zero, tasks, inner)
    with pytest.raises(ValueRangeError, match="weight1"):
        constant(net, {**params, "weight1": params["weight1"] * float("nan")}, tasks, inner)


@pytest.mark.paper("Lemma 1", "Eq. (25)", "Eq. (66)", "Eq. (81)")
@pytest.mark.parametrize(
    ("case", "widths", "seeds", "slope", "window", "level"),
    [
        (("erf", 1), (64, 256, 1024), 2, -0.5, 0.1, (3.0, 4.4)),
        (("erf", 2), (64, 128, 256), 2, 0.0, 0.3, (1.5, 3.2)),
        pytest.param(("erf", 2), (64, 128, 256, 512), 6, 0.0, 0.2, (1.5, 3.2), marks=slow),
        pytest.param(("tanh", 1), (64, 256, 1024), 6, -0.5, 0.1, (2.0, 4.0), marks=slow),
        pytest.param(("tanh", 2), (64, 128, 256, 512), 6, 0.0, 0.2, (1.1, 2.2), marks=slow),
    ],
)
def test_the_lipschitz_constant_does_not_grow_with_the_width(
    case, widths, seeds, slope, window, level, measured
):
    """K of the lemma at θ_0 in the worst direction: l^(−1/2) with one hidden layer, a constant with two."""
    name = f"K, {case[0]} L={case[1]}"
    worst = check_slope(measured, name, widths, at_widths(case, widths, seeds, constant), slope, window)
    check_level(measured, f"K·l^{-slope:g}, {case[0]} L={case[1]}", worst[-1] * widths[-1] ** -slope, *level)


@pytest.mark.paper("Lemma 1", "Eq. (25)", "Eq. (26)", "Eq. (64)")
@pytest.mark.parametrize(("depth", "width"), [(1, 256), (2, 128)])
def test_inside_the_ball_no_pair_exceeds_the_constant(depth, width, measured):
    """θ, θ̄ on opposite sides of B(θ_0, 3 l^(−1/2)), at random and along the training's direction."""
    net, tasks, inner, eta0, _ = rate_setting("erf", depth, width)
    params, radius = start(net), 3 / width**0.5
    worst = constant(net, params, tasks, inner)
    trained = train(net.model, params, tasks, inner, eta0, 20).params
    length = float((flatten(trained) - flatten(params)).norm())
    training = {name: (trained[name] - params[name]) / length for name in params}
    for direction in (training, *(random_direction(params, generator(s, "direction")) for s in range(3))):
        pair = [moved(params, direction, sign * radius) for sign in (1, -1)]
        measured("pair/K", lipschitz_ratio(net.model, *pair, tasks, inner) / worst, below=1.1)
        for theta in pair:
            size = jacobian_size(net.model, theta, tasks, inner)
            assert size == pytest.approx(jacobian_size(net.model, params, tasks, inner), rel=0.25)


@pytest.mark.paper("Eq. (26)")
@pytest.mark.paper("Lemma 1", "Eq. (25)", "Eq. (64)", "Eq. (66)", corrected=True)
@pytest.mark.erratum("E6", "E40")
@pytest.mark.parametrize("depth", [1, 2])
def test_no_constant_serves_every_ball_at_one_width_and_one_serves_every_ball_from_some_width_on(
    depth, measured
):
    """As printed l* is chosen before C, and at one width the balls of all C cover all parameters."""

    def grown(net, params, tasks, ball, loop):
        direction = random_direction(params, generator(0, "direction"))
        theta = moved(params, direction, ball / net.width**0.5)
        sizes = [jacobian_size(net.model, one, tasks, loop) for one in (theta, params)]
        return sizes[0] / sizes[1]

    widths = (64, 1024, 16384) if depth == 1 else (64, 256, 1024)
    ratios = []
    for width in widths:
        net, tasks, _, inner = setting("erf", depth, width)
        ratios.append(grown(net, start(net), tasks, 300, inner))
        if width == 64:
            for loop, name in ((inner, "∇F"), (InnerLoop(0.0, 0), "∇f")):
                inside, outside = (grown(net, start(net), tasks, ball, loop) for ball in (3, 1000))
                assert inside == pytest.approx(1, abs=0.05)
                measured(f"‖{name}‖ at C = 1000 over ‖{name}‖ at θ_0", outside, above=1.5)
    assert ratios[0] > ratios[1] > ratios[2]
    measured("‖J‖ at C = 300 over ‖J‖ at θ_0, wide", ratios[-1], below=1.1)


def kink_pair(params, sample, epsilon):
    """Two parameters ε apart on the two sides of the kink of the neuron of ``sample`` that is nearest to its own."""
    preactivation = params["weight1"] @ sample + params["bias1"]
    neuron = int(preactivation.abs().argmin())
    pair = []
    for sign in (1, -1):
        bias = params["bias1"].clone()
        bias[neuron] -= preactivation[neuron] - sign * epsilon / 2
        pair.append({**params, "bias1": bias})
    return pair


@pytest.mark.paper("Lemma 1", "Eq. (25)", corrected=True)
@pytest.mark.erratum("E7")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_lemma_1_needs_a_smooth_activation(activation, depth, measured):
    """Across a kink of a ReLU, within the ball, the ratio grows as 1/ε without bound; with erf it has a limit."""
    net, tasks, _, inner = setting(activation, depth, 256)
    params, ratios = start(net), []
    for epsilon in (1e-4, 1e-6):
        pair = kink_pair(params, tasks[0].support_x[0], epsilon)  # the inner loop meets it at once
        radius = max(float((flatten(theta) - flatten(params)).norm()) for theta in pair)
        assert radius < 3 / net.width**0.5
        ratios.append(lipschitz_ratio(net.model, *pair, tasks, inner))
    if activation == "relu":
        measured("ratio at ε = 1e-6 over that at 1e-4, relu", ratios[1] / ratios[0], above=10)
    else:
        measured("ratio at ε = 1e-6 over that at 1e-4, smooth", ratios[1] / ratios[0], below=1.001)
        assert ratios[1] < constant(net, params, tasks, inner)


@pytest.mark.paper("Theorem 3", "Eq. (29)", "Eq. (30)", "Eq. (99)")
@pytest.mark.parametrize(
    ("case", "width", "seeds"),
    [(("erf", 1), 256, 2), (("erf", 2), 128, 2), pytest.param(("erf", 2), 256, 8, marks=slow)],
)
def test_path_and_drift_stay_below_the_bounds_with_the_measured_constants(case, width, seeds, measured):
    """K = max{1, ‖J(θ_0)‖/√l, the worst rate of change of J at θ_0}, R0 = ‖g(θ_0)‖."""
    net, tasks, inner, eta0, sigma_min = rate_setting(*case, width)
    for seed in range(seeds):
        params = start(net, seed)
        size = jacobian_size(net.model, params, tasks, inner)
        lipschitz = max(1.0, size, constant(net, params, tasks, inner))
        record = train(net.model, params, tasks, inner, eta0, 40, kernel_steps=(10, 20, 40))
        start_residual = float((2 * record.losses()[0]).sqrt())
        path, drift = record.observations[-1].path_length, max(record.kernel_drift().values())
        bound = theorem3_path_bound(lipschitz, start_residual, sigma_min, width)
        measured("path/bound (29)", path / bound, below=0.3)
        bound = theorem3_drift_bound(lipschitz, start_residual, sigma_min, width)
        measured("drift/bound (30)", drift / bound, below=0.05)
        assert drift > 0
