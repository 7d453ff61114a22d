"""Whether a part of a network keeps samples apart, from one call of it."""

import pytest
import torch
from torch import nn

from mamltheory.kernels.layers.parts import PartCall, keeps_samples_apart
from mamltheory.rng import generator


class Sum(nn.Module):
    """x plus rows of a table, or plus a number, or plus the mean over the batch."""

    def forward(self, x, other):
        if isinstance(other, str):
            return x + x.mean(0)
        return x + (other[:, None] if isinstance(other, torch.Tensor) else other)


def called(other):
    part, x = Sum(), torch.randn(12, 3, dtype=torch.float64, generator=generator(0, "x"))
    args = (x, other)
    versions = [part._version for part in args if isinstance(part, torch.Tensor)]
    return PartCall("sum", part, args, versions, part(*args))


@pytest.mark.parametrize(
    ("other", "apart"),
    [(2.0, True), (torch.arange(12), True), (torch.ones(12).double(), True), ("mean", False)],
)
def test_a_part_that_also_takes_numbers_or_integers_is_tested_on_its_own_call(other, apart):
    order = torch.randperm(12, generator=generator(0, "order"))
    assert keeps_samples_apart(called(other), {}, order) == apart
