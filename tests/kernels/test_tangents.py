"""Every analytic kernel that neural-tangents has as well, against it. Its Python is named by TANGENTS."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch

from mamltheory import (
    FullyConnected,
    GradientFlow,
    adapted_output,
    analytic_last_layer_ntk,
    analytic_ntk,
    generator,
    nngp,
)
from tests.paper.cases import relative, sphere

PROGRAM = Path(__file__).parents[1] / "reference" / "tangents_kernels.py"
SHAPES = [(False, False), (True, False), (False, True), (True, True)]
KINDS = [("relu", "ntk"), ("erf", "ntk"), ("gelu", "ntk"), ("sin", "ntk"), ("relu", "standard")]
NETWORKS = [
    FullyConnected(4, 1, 3, 1, activation, 1.3, 0.4, kind, *shape)
    for activation, kind in KINDS
    for shape in SHAPES
]
NETWORKS += [FullyConnected(4, 1, depth, 1, "relu", 1.3, 0.0, "ntk") for depth in (1, 5)]
X1, X2 = (scale * sphere(generator(0, "x", i), 4, 4) for i, scale in enumerate((1.0, 1.7)))
LABELS, TIME = torch.tensor([[1.0], [-0.5], [2.0], [0.3]]).double(), 0.7


def tangents_python():
    """The Python that has neural-tangents: that of TANGENTS, or this one."""
    python = os.environ.get("TANGENTS") or sys.executable
    found = subprocess.run([python, "-c", "import neural_tangents"], capture_output=True, check=False)
    return python if found.returncode == 0 else None


@cache
def answers():
    """What neural-tangents says of all networks, from one process."""
    python = tangents_python()
    if python is None:
        pytest.skip("neural-tangents is not installed: make slow TANGENTS=env/bin/python")
    shared = {"x1": X1.tolist(), "x2": X2.tolist(), "labels": LABELS.tolist(), "time": TIME}
    requests = [{**asdict(net), **shared} for net in NETWORKS]
    done = subprocess.run(
        [python, str(PROGRAM)], input=json.dumps(requests), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def name(net):
    shape = "-residual" * net.residual + "-norm" * net.layer_norm
    return f"{net.activation}-L{net.depth}-{net.parameterisation}{shape}-b{net.sigma_b}"


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(NETWORKS)), ids=[name(net) for net in NETWORKS])
def test_analytic_kernels_are_those_of_neural_tangents(index):
    """Its standard parameterisation has the terms of width 1; the last layer's kernel follows from the NNGP."""
    net, answer = NETWORKS[index], answers()[index]
    expected = {key: torch.tensor(answer[key], dtype=torch.float64) for key in ("nngp", "ntk", "outputs")}
    assert relative(nngp(net, X1, X2), expected["nngp"]) < 1e-10
    ntk = analytic_ntk(net, X1, X2, finite_width=True)
    assert relative(ntk, expected["ntk"]) < 1e-10
    last = analytic_last_layer_ntk(net, X1, X2, finite_width=True)
    moment = (expected["nngp"] - net.sigma_b**2) / net.sigma_w**2
    assert relative(last, expected["nngp"] if net.parameterisation == "ntk" else moment + 1) < 1e-10
    support = analytic_ntk(net, X2, finite_width=True)
    outputs = adapted_output(ntk, support, LABELS.reshape(-1), GradientFlow(TIME))
    # Of ReLU, neural-tangents takes the root of a rounded difference where a sample meets itself: half the digits.
    assert relative(outputs, expected["outputs"]) < (1e-8 if net.activation == "relu" else 1e-9)
