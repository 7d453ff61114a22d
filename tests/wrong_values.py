"""Networks and tasks for calls with wrong arguments, and the values that are given in the place of right ones."""

import numpy as np
import torch
from torch import nn

import mamltheory as mt
from tests.own_networks import draw

NET = mt.FullyConnected(4, width=8, depth=1, output_dim=2)
MODEL, PARAMS = NET.model, NET.initialise(mt.generator(0, "init"))
MODULE = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
X, Y = draw(3, 4), draw(3, 2, seed=1)
TASKS = [mt.Task(X, Y, X + 1, Y), mt.Task(2 * X, Y, X - 1, Y)]
INNER = mt.InnerLoop(0.1, 1)
WRONG = {
    "nothing": None,
    "a number": 3,
    "a negative number": -1,
    "a huge number": 10**400,
    "NaN": float("nan"),
    "a truth value": True,
    "a word": "abc",
    "a class": int,
    "an array": np.zeros((2, 2)),
    "a module": MODULE,
    "a model": MODEL,
    "a network": NET,
    "a task": TASKS[0],
    "tasks": TASKS,
    "an inner loop": INNER,
    "an empty list": [],
    "an empty dict": {},
    "no axes": torch.zeros(()),
    "one axis": torch.zeros(3),
    "integers": torch.zeros(3, 4, dtype=torch.long),
    "complex numbers": torch.zeros(3, 4, dtype=torch.cfloat),
    "float32": X.float(),
    "no samples": X[:0],
    "a sparse tensor": X.to_sparse(),
}
