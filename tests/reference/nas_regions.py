"""Slow twins of the region count: the released way, and exact counting of one-dimensional networks."""

import itertools
from fractions import Fraction

import torch

from mamltheory.nas.genotype import EDGES
from mamltheory.nas.operations import leading_step


def unshared_patterns(network, candidates, x):
    """Signs of the ReLUs when every operation of every edge has a ReLU of its own, as released: n × bits."""
    signs = []

    def relu(value):
        signs.append((value.clamp(min=0) > 0).flatten(1))
        return value.clamp(min=0)

    def operation(cell, edge, name, stride, value):
        step = leading_step(name, stride)
        value = relu(value) if step == "relu" else cell.leading[f"{step}{stride}"](value)
        for layer in (
            cell.edges[f"{edge.node}_{edge.source}"][name].children() if name != "skip_connect" else ()
        ):
            value = relu(value) if isinstance(layer, torch.nn.ReLU) else layer(value)
        return cell.edges[f"{edge.node}_{edge.source}"][name](value) if name == "skip_connect" else value

    with torch.no_grad():
        s0 = s1 = x
        for kind, cell in zip(network.kinds, network.cells, strict=True):
            states = [cell.fit0(relu(s0)), cell.fit1(relu(s1))]
            for node in range(3):
                total = 0.0
                for edge in (e for e in EDGES if e.node == node):
                    stride = 2 if kind == "reduce" and edge.source < 2 else 1
                    live = candidates.on(kind, edge)
                    outputs = [operation(cell, edge, name, stride, states[edge.source]) for name in live]
                    total = total + (sum(outputs[1:], outputs[0]) / len(outputs) if outputs else 0.0)
                states.append(total)
            s0, s1 = s1, torch.cat(states[2:], dim=1)
        norm, _ = network.last
        relu(norm(s1))
    return torch.cat(signs, dim=1)


def count_by_products(patterns):
    """Σ_i 1/#{j: same pattern}, from the half-precision products of all pairs of rows."""
    on, off = patterns.half(), (~patterns).half()
    same = (on @ on.T + off @ off.T) == patterns.shape[1]
    return round(float((1 / same.sum(1).double()).sum()))


def released_way(network, candidates, x):
    """One network's count: patterns with a ReLU for each operation, and all pairs of rows."""
    return count_by_products(unshared_patterns(network, candidates, x))


def exact_intervals(layers, low, high):
    """The pieces of [low, high] on which a one-dimensional ReLU network is linear, as (ends, pattern); exact.

    layers: (weights, biases) in numbers that are fractions exactly; a ReLU follows every layer.
    """
    exact = [
        ([[Fraction(w) for w in row] for row in weight], [Fraction(b) for b in bias])
        for weight, bias in layers
    ]
    # on every piece each neuron is an affine function (slope, value at 0) of the input
    pieces = [(Fraction(low), Fraction(high), [(Fraction(1), Fraction(0))], ())]
    for weight, bias in exact:
        split = []
        for start, end, neurons, pattern in pieces:
            before = [
                (sum(w * a for w, (a, _) in zip(row, neurons, strict=True)),
                 b + sum(w * c for w, (_, c) in zip(row, neurons, strict=True)))
                for row, b in zip(weight, bias, strict=True)
            ]  # fmt: skip
            kinks = {-c / a for a, c in before if a != 0 and start < -c / a < end}
            ends = sorted({start, end, *kinks})
            for left, right in itertools.pairwise(ends):
                middle = (left + right) / 2
                on = tuple(a * middle + c > 0 for a, c in before)
                after = [
                    f if live else (Fraction(0), Fraction(0)) for f, live in zip(before, on, strict=True)
                ]
                split.append((left, right, after, pattern + on))
        pieces = split
    return [(left, right, pattern) for left, right, _, pattern in pieces]
