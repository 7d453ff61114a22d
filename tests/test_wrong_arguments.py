"""Every public function with every argument replaced by something else: it works, or an error of ours says why."""

import warnings

import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.errors import MamlTheoryError
from mamltheory.kernels.meta import joint_sizes
from tests.own_networks import draw
from tests.strategies import as_users_run_it
from tests.wrong_values import INNER, MODEL, MODULE, NET, PARAMS, TASKS, WRONG, X, Y

FLOW = mt.GradientFlow(0.5)
MATRIX, ROW = X @ X.T + torch.eye(3, dtype=torch.float64), draw(3, seed=2)
THETA = mt.empirical_ntk(MODEL, mt.joint_inputs(TASKS), params=PARAMS)
ON_TASKS = {"model": MODEL, "params": PARAMS, "tasks": TASKS, "inner": INNER}
SAMPLES = {"net": NET, "x1": X, "x2": X}
TRAINED = {"phi_train": MATRIX, "train_start": ROW, "labels": ROW}


def built(width):
    """A network of a width, as ``verify`` takes it."""
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


RIGHT = {
    "Converged": {"ridge": 1e-3},
    "FullyConnected": {
        "input_dim": 4,
        "width": 8,
        "depth": 1,
        "output_dim": 1,
        "activation": "erf",
        "sigma_w": 1.5,
        "sigma_b": 0.1,
        "parameterisation": "standard",
        "residual": False,
        "layer_norm": False,
    },
    "GradientDescent": {"rate": 0.1, "steps": 3},
    "GradientFlow": {"time": 1.0},
    "InnerLoop": {"lam0": 0.1, "tau": 1, "algorithm": "maml", "select": ["bias1"], "factors": {"bias1": 2.0}},
    "Optimiser": {"momentum": 0.0, "batches": ((0,), (1,))},
    "SampledDescent": {"rate": 0.1, "batches": ((0,), (1,)), "rows": 1, "momentum": 0.0},
    "ScheduledDescent": {"rates": (0.1, 0.2), "momentum": 0.0},
    "Task": {"query_x": X, "query_y": Y, "support_x": X, "support_y": Y},
    "adapt": {"model": MODEL, "params": PARAMS, "task": TASKS[0], "inner": INNER},
    "adaptation_ntk": {"model": MODEL, "inner": INNER, "x1": X, "x2": X, "params": PARAMS},
    "adapted_output": {"query_support": MATRIX, "support_support": MATRIX, "support_y": ROW, "inner": FLOW},
    "analytic_last_layer_ntk": SAMPLES,
    "analytic_meta_ntk": {"net": NET, "tasks": TASKS, "algorithm": "maml", "dynamics": FLOW},
    "analytic_ntk": SAMPLES,
    "centred": {"model": MODEL, "params0": PARAMS},
    "condition_number": {"kernel": MATRIX},
    "empirical_last_layer_ntk": {"model": MODEL, "x1": X, "params": PARAMS},
    "empirical_meta_ntk": ON_TASKS,
    "empirical_ntk": {"model": MODEL, "x1": X, "params": PARAMS, "outputs": "full", "method": "auto"},
    "first_order_meta_ntk": {"theta": THETA, "sizes": joint_sizes(THETA, TASKS), "dynamics": FLOW},
    "from_module": {"module": MODULE},
    "generator": {"seed": 0, "purpose": "a use"},
    "joint_inputs": {"tasks": TASKS},
    "kernel_regression": {
        "nngp": THETA,
        "theta": THETA,
        "tasks": TASKS[:1],
        "test_tasks": TASKS[1:],
        "inner": FLOW,
        "outer": FLOW,
    },
    "largest_inner_rate": ON_TASKS,
    "largest_rate": {"kernel": MATRIX, "momentum": 0.5},
    "linearised": {"model": MODEL, "params0": PARAMS},
    "meta_gradient": ON_TASKS,
    "meta_loss": ON_TASKS,
    "meta_method": {"model": MODEL, "tasks": TASKS, "inner": INNER},
    "meta_ntk": {"model": MODEL, "tasks": TASKS, "algorithm": "maml", "dynamics": FLOW, "params": PARAMS},
    "meta_ntk_from_ntk": {"theta": THETA, "sizes": joint_sizes(THETA, TASKS), "dynamics": FLOW},
    "meta_output": {"model": MODEL, "params": PARAMS, "task": TASKS[0], "inner": INNER},
    "meta_outputs": ON_TASKS,
    "monte_carlo_meta_ntk": {
        "build": NET,
        "tasks": TASKS,
        "inner": INNER,
        "draws": 2,
        "seed": 0,
        "scale": 1.0,
    },
    "monte_carlo_ntk": {"build": NET, "x1": X, "draws": 2, "seed": 0, "scale": 1.0, "outputs": "full"},
    "nngp": SAMPLES,
    "residual_operator": {"matrix": MATRIX, "dynamics": FLOW},
    "score": {
        "network": MODULE,
        "tasks": TASKS,
        "repeats": 2,
        "seed": 0,
        "algorithm": "maml",
        "dynamics": FLOW,
    },
    "time_operator": {"matrix": MATRIX, "dynamics": FLOW},
    "train": {**ON_TASKS, "eta0": 0.01, "steps": 2, "optimiser": mt.Optimiser(batches=((0,), (1,)))},
    "trained_output": {"phi_test_train": MATRIX, "test_start": ROW, **TRAINED, "outer": FLOW},
    "trained_output_on_training_tasks": {**TRAINED, "outer": FLOW},
    "verify": {
        "build": built,
        "widths": (4, 8),
        "tasks": TASKS[:1],
        "inner": INNER,
        "test_tasks": TASKS[1:],
        "steps": 1,
        "seeds": 2,
        "scale": float,
        "lipschitz": False,
        "after": None,
    },
}


def test_all_public_names_are_tried():
    assert RIGHT.keys() | {"KernelEstimate", "Model"} == set(mt.__all__)


@pytest.mark.parametrize("name", RIGHT)
def test_a_wrong_argument_is_an_error_of_ours(name):
    with as_users_run_it(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function, right = getattr(mt, name), RIGHT[name]
        function(**right)
        raw = {}
        for argument in right:
            for what, value in WRONG.items():
                try:
                    function(**{**right, argument: value})
                except MamlTheoryError:
                    pass
                except Exception as error:
                    raw[argument, what] = f"{type(error).__name__}: {error}"
        assert raw == {}
