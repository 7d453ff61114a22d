"""Which candidates and images of a batch an operation belongs to, as tensors that reach a device in one upload."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mamltheory.accelerator import uploaded

Group = tuple[int, ...]
"""Numbers of candidates of the batch."""


@dataclass(frozen=True, eq=False)
class BatchIndices:
    """Tensors by what they follow from; what concerns all candidates alike is not among them.

    Attributes:
        places: the numbers of the candidates of a group.
        rows: the numbers of their images.
        counts: for each image how many operations it averages on an edge, by that of each candidate.
    """

    places: Mapping[Group, Int[Tensor, " _"]]
    rows: Mapping[Group, Int[Tensor, " _"]]
    counts: Mapping[tuple[int, ...], Float[Tensor, "_ 1 1 1"]]


def batch_indices(edges: Iterable[Sequence[tuple[str, ...]]], images: int, like: Tensor) -> BatchIndices:
    """The indices of a batch.

    Args:
        edges: for each edge the names of the live operations of each candidate.
        images: number of images of a candidate.
        like: a tensor of the dtype and on the device of the activations.

    Returns:
        The indices of all groups and counts that occur on the edges.
    """
    groups: dict[Group, None] = {}
    counts: dict[tuple[int, ...], None] = {}
    for live in edges:
        found = [holders(name, live) for name in sorted(set().union(*live))]
        groups |= dict.fromkeys(group for group in found if len(group) < len(live))
        if len(set(averaged(live))) > 1:
            counts[averaged(live)] = None
    if not groups:
        return BatchIndices({}, {}, {})
    offsets = torch.arange(images)
    places = [torch.tensor(group) for group in groups]
    rows = [(each[:, None] * images + offsets).flatten() for each in places]
    averages = [torch.tensor(each).repeat_interleave(images) for each in counts]
    parts = [*places, *rows, *averages]
    there = iter(uploaded(torch.cat(parts), like.device).split([len(each) for each in parts]))
    return BatchIndices(
        {group: next(there) for group in groups},
        {group: next(there) for group in groups},
        {each: next(there).to(like.dtype)[:, None, None, None] for each in counts},
    )


def holders(name: str, live: Sequence[tuple[str, ...]]) -> Group:
    """The candidates that have an operation of these names of each of them."""
    return tuple(i for i, names in enumerate(live) if name in names)


def averaged(live: Sequence[tuple[str, ...]]) -> tuple[int, ...]:
    """How many operations each candidate averages, and 1 for one without any."""
    return tuple(max(len(names), 1) for names in live)
