"""Networks of cells written out layer by layer from the names of their weights, and both scores of a network.

Nothing of the package computes here: convolutions are torch's functions, norms and poolings are written out, every
operation has a ReLU without sharing, and every output has a backward pass.
"""

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from mamltheory.nas.genotype import EDGES
from tests.reference import closed_forms


def output(weights, candidates, x, kinds, norm, stem_stride=None, record=None):
    """Logits of the network of these candidates.

    weights: state of a network that has all their operations. kinds: types of the stacked cells. norm: "group" or
    "batch". stem_stride: None for no stem. record: called with the input of every ReLU.
    """
    layers = _Layers(weights, norm, record or (lambda _: None))
    if stem_stride is not None:
        x = layers.norm(layers.convolution(x, "stem.0", stem_stride, 1), "stem.1")
    s0 = s1 = x
    for number, kind in enumerate(kinds):
        after = number > 0 and kinds[number - 1] == "reduce"
        s0, s1 = s1, _cell(layers, f"cells.{number}", kind, candidates, s0, s1, after)
    features = layers.relu(layers.norm(s1, "last.0")).mean((2, 3))
    return features @ weights["classifier.weight"].T + weights["classifier.bias"]


def _cell(layers, cell, kind, candidates, s0, s1, after_reduction):
    fit = layers.halved if after_reduction else layers.pointwise
    states = [fit(layers.relu(s0), f"{cell}.fit0"), layers.pointwise(layers.relu(s1), f"{cell}.fit1")]
    for node in range(3):
        total = 0.0
        for edge in (e for e in EDGES if e.node == node):
            stride = 2 if kind == "reduce" and edge.source < 2 else 1
            names = candidates.on(kind, edge)
            for name in names:
                place = f"{cell}.edges.{node}_{edge.source}.{name}"
                total = total + layers.operation(states[edge.source], place, name, stride) / len(names)
        states.append(total)
    return torch.cat(states[2:], 1)


class _Layers:
    def __init__(self, weights, norm, record):
        self.weights, self.kind, self.record = weights, norm, record

    def relu(self, x):
        self.record(x)
        return torch.where(x > 0, x, torch.zeros_like(x))

    def convolution(self, x, name, stride=1, padding=0, dilation=1, groups=1):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def norm(self, x, name):
        n, channels, height, width = x.shape
        if self.kind == "batch":
            parts, over = x, (0, 2, 3)
        else:
            groups = max(g for g in range(1, 17) if channels % g == 0 and 2 * g <= channels)
            parts, over = x.reshape(n, groups, channels // groups, height, width), (2, 3, 4)
        mean = parts.mean(over, keepdim=True)
        variance = (parts - mean).square().mean(over, keepdim=True)
        scaled = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        scale, shift = (self.weights[f"{name}.{end}"][:, None, None] for end in ("weight", "bias"))
        return scaled * scale + shift

    def pointwise(self, x, name):
        return self.norm(self.convolution(x, f"{name}.0"), f"{name}.1")

    def halved(self, x, name):
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        size = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        even = self.convolution(x, f"{name}.even", 2)
        odd = self.convolution(shifted, f"{name}.odd", 2)
        assert even.shape[2:] == odd.shape[2:] == size
        return self.norm(torch.cat([even, odd], 1), f"{name}.norm")

    def separable(self, x, name, first, stride, dilation):
        x = self.relu(x)
        x = self.convolution(x, f"{name}.{first}", stride, dilation, dilation, x.shape[1])
        return self.norm(self.convolution(x, f"{name}.{first + 1}"), f"{name}.{first + 2}")

    def operation(self, x, place, name, stride):
        match name:
            case "skip_connect":
                return x if stride == 1 else self.halved(self.relu(x), place)
            case "conv_3x3":
                return self.separable(x, place, 0, stride, 1)
            case "dil_conv_3x3":
                return self.separable(x, place, 0, stride, 2)
            case "sep_conv_3x3":
                return self.separable(self.separable(x, place, 0, stride, 1), place, 4, 1, 1)
            case "conv_1x5_5x1":
                wide = self.convolution(self.relu(x), f"{place}.0", stride, (0, 2))
                return self.norm(self.convolution(wide, f"{place}.1", 1, (2, 0)), f"{place}.2")
            case "max_pool_3x3BN":
                return self.norm(_pooled(x, stride, lambda window: window.max()), f"{place}.0")
            case "avg_pool_3x3BN":
                return self.norm(_pooled(x, stride, lambda window: window.mean()), f"{place}.0")
        raise AssertionError(name)


def _pooled(x, stride, value):
    """The value of every 3×3 window, cut off at the frame, of every channel."""
    height, width = x.shape[2:]
    rows, columns = range(0, height, stride), range(0, width, stride)
    over = torch.func.vmap(torch.func.vmap(value))
    windows = [
        over(x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2])
        for i, j in itertools.product(rows, columns)
    ]
    return torch.stack(windows, -1).reshape(*x.shape[:2], len(rows), len(columns))


def jacobian(weights, names, forward, x):
    """n·k × D: the gradient of every output of every sample by the weights of these names."""
    values = [weights[name] for name in names]
    rows = []
    for sample in x:
        for value in forward(sample[None])[0]:
            parts = torch.autograd.grad(value, values, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([torch.zeros_like(v).flatten() if g is None else g.flatten()
                           for g, v in zip(parts, values, strict=True)])
            )  # fmt: skip
    return torch.stack(rows)


def condition_numbers(network, candidates, tasks, dynamics, outputs="full"):
    """C_N of Eq. (14) for MAML's and for ANIL's kernel, by the four terms of Eqs. (106) and (112), in float64.

    By the weights of convolutions and head, as the search takes them. outputs: "sum" for the summed outputs.
    """
    weights = {
        name: value.detach().double().requires_grad_() for name, value in network.state_dict().items()
        if value.is_floating_point()
    }  # fmt: skip
    names = [name for name, value in weights.items() if value.dim() > 1]
    head = [name.startswith("classifier.") for name in names for _ in range(weights[name].numel())]

    def forward(x):
        logits = output(weights, candidates, x.double(), network.kinds, "group", network.settings.stem_stride)
        return logits.sum(1, keepdim=True) if outputs == "sum" else logits

    samples = {id(x): x for task in tasks for x in (task.query_x, task.support_x)}
    rows = {key: jacobian(weights, names, forward, x) for key, x in samples.items()}
    last = {key: some[:, torch.tensor(head)] for key, some in rows.items()}
    return tuple(_condition_number(rows, inner, tasks, dynamics) for inner in (rows, last))


def _condition_number(rows, inner, tasks, dynamics):
    phi = closed_forms.phi(
        lambda x1, x2: rows[id(x1)] @ rows[id(x2)].T,
        lambda x1, x2: inner[id(x1)] @ inner[id(x2)].T,
        tasks,
        tasks,
        dynamics,
    )
    singular = np.linalg.svd(phi.detach().numpy(), compute_uv=False)
    return float(singular.max() / singular.min())


def linear_regions(network, candidates, patches):
    """R_N of Eq. (15) on patches: how many different sets of ReLUs they switch on, in float64."""
    weights = {name: value.detach().double() for name, value in network.state_dict().items()}
    inputs = []
    output(weights, candidates, patches.double(), network.kinds, "batch", record=inputs.append)
    return len({
        tuple(on for value in inputs for on in (value[i] > 0).flatten().tolist())
        for i in range(len(patches))
    })  # fmt: skip
