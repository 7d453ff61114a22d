"""Slow and obvious twins for the gradient of a score: exact leave-one-out, finite differences, dense autograd."""

import math

import torch
from torch import nn

from mamltheory.linalg import conditioning
from mamltheory.nas.scoring.condition_number import score_kernel
from tests.reference import closed_forms


def log_score(network, tasks, settings):
    kernel = score_kernel(network, tasks, settings)
    return math.log(conditioning(kernel, settings.measure, network.classifier.weight.dtype))


def leave_one_out(network, candidates, tasks, settings, operators):
    """log C of the supernet less log C without each of the operators."""
    whole = log_score(network.restrict(candidates), tasks, settings)
    parts = [log_score(network.restrict(candidates.without(o)), tasks, settings) for o in operators]
    network.restrict(candidates)
    return {o: whole - part for o, part in zip(operators, parts, strict=True)}


def equal_weights(candidates, dtype=torch.float64):
    return {
        o: torch.tensor(1 / len(candidates.on(o.cell, o.edge)), dtype=dtype) for o in candidates.operators()
    }


def slope_by_differences(network, candidates, tasks, settings, direction, step):
    """Slope of log C along a direction of weights by central differences with one extrapolation, error O(step⁴)."""

    def at(shift):
        weights = equal_weights(candidates)
        network.restrict(candidates).mix({o: w + shift * direction.get(o, 0.0) for o, w in weights.items()})
        try:
            return log_score(network, tasks, settings)
        finally:
            network.mix(None)

    wide, narrow = ((at(h) - at(-h)) / (2 * h) for h in (2 * step, step))
    return (4 * narrow - wide) / 3


def softened(network, beta=5.0):
    """The network with softplus in the place of every ReLU: its kernel is smooth in the weights."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.ReLU:
                setattr(module, name, nn.Softplus(beta))
    return network


def dense_rows(network, x, names):
    """Gradient of each sample's summed outputs, one backward pass a sample, down to the mixing weights."""
    values = [network.get_parameter(name) for name in sorted(names)]
    rows = [
        torch.autograd.grad(network(x[i : i + 1]).sum(), values, create_graph=True) for i in range(len(x))
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def dense_meta_ntk(network, tasks, names, inner_names, dynamics):
    """The four terms of Eq. (106) or (112) for summed outputs, from dense rows, down to the mixing weights."""
    samples = {id(x): x for task in tasks for x in (task.query_x, task.support_x)}
    rows = {key: dense_rows(network, x, names) for key, x in samples.items()}
    inner = {key: dense_rows(network, x, inner_names) for key, x in samples.items()}
    return closed_forms.phi(
        lambda x1, x2: rows[id(x1)] @ rows[id(x2)].T,
        lambda x1, x2: inner[id(x1)] @ inner[id(x2)].T,
        tasks,
        tasks,
        dynamics,
    )
