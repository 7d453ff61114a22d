"""Kernels of many candidates at once: the candidate is a batch dimension.

All candidates of a round share their weights, and GroupNorm acts sample by sample: the images, once for each
candidate, go through one forward and one backward pass. An operation that some candidates lack runs on the images
of the others alone, and each image averages the operations of its candidate. Each layer's per-sample gradients become
one Gram matrix per candidate and are discarded. First cells that the next batch has in common keep their graphs for
it. Candidates may also differ in their images and heads (:class:`Heads`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.accelerator import float32_products, memory_budget, out_of_memory
from mamltheory.errors import ConfigurationError, GenotypeError, UnsupportedModelError
from mamltheory.kernels.layers.gram import add_grams, symmetric_halves
from mamltheory.kernels.layers.jacobian import Outputs
from mamltheory.kernels.layers.pooling import pooled
from mamltheory.kernels.layers.recorder import LayerCall, layers_of
from mamltheory.kernels.layers.tiles import OverBudget
from mamltheory.nas.genotype import Candidates, CellType, Edge
from mamltheory.nas.network import Network, StackedCell
from mamltheory.nas.scoring.batch_indices import Group, averaged, batch_indices, holders
from mamltheory.nas.scoring.cell_layers import Activation, run_layer
from mamltheory.nas.scoring.checkpointing import Chain, Rows, Stage

Record = Callable[..., None]
"""The recorder of a stage, see :class:`mamltheory.nas.scoring.checkpointing.Stage`."""

MEMORY = 3 << 30
"""Default budget of a batch of candidates on a CPU, in bytes: one candidate of the paper's size."""
MOST_CANDIDATES = 64
"""Candidates beyond which a batch does not fill a device any better."""
CACHED = 1 << 28
"""Bytes of a batch beyond which a CPU, whose caches it leaves, scores several candidates faster one after the other."""
SUMS = 32
"""Bytes for each entry of a kernel: two sums in float64, a product, and what symmetrising them takes."""


def candidate_kernels(
    network: Network,
    candidates: Sequence[Candidates],
    x: Float[Tensor, "*own n c h w"],
    outputs: Outputs = "full",
    weights: Literal["weights", "all"] = "weights",
    memory: int | None = None,
    halved: Callable[[], None] | None = None,
    heads: Sequence[nn.Linear] | None = None,
) -> Iterator[tuple[Float[Tensor, "p p"], Float[Tensor, "p p"]]]:
    """(Θ̂, 𝒦̂) of every candidate in turn: the empirical NTK and its last-layer part on the same images; float64.

    Args:
        network: one that was built with all their operations; the operations that it is restricted to have no effect.
        candidates: the candidates.
        x: the images of all, or with one more axis in front those of each candidate.
        outputs: as for :func:`mamltheory.nas.scoring.condition_number.network_kernels`, whose kernels these are.
        weights: likewise.
        memory: bytes that a batch holds (None: MEMORY on a CPU, on CUDA by the free memory), from which the number
            of its candidates follows: batches grow until they would have to run cells twice. On a CPU the first
            candidate runs alone.
        halved: called whenever a batch did not fit and continues with half as many candidates.
        heads: one for each candidate, in place of the network's.

    Yields:
        The two kernels of one candidate after the other, on the CPU; those of a batch come from a CUDA device in one
            transfer. ConfigurationError is raised where one candidate alone does not fit, GenotypeError where the
            network lacks an operation, and UnsupportedModelError where it uses batch statistics.
    """
    memory = memory_budget(x.device, MEMORY) if memory is None else memory
    room, most = memory if x.is_cuda else min(memory, CACHED), MOST_CANDIDATES
    values = dict(network.named_parameters())
    names = {name for name, value in values.items() if weights == "all" or value.dim() > 1}
    heads_there = stacked_heads(heads).to(x.device, non_blocking=True) if heads else None
    alone = bytes_alone(network, x, names, outputs, memory) if x.is_cuda else room
    size, start, before = batch_size(room // alone, most, len(candidates), x.is_cuda), 0, None
    while start < len(candidates):
        part, following = slice(start, start + size), slice(start + size, start + 2 * size)
        own = x[part] if x.dim() == 5 else x
        some = None if heads_there is None else heads_there.part(part)
        batch = CandidateBatch(network, candidates[part], own, names, some)
        if before is not None:
            batch.chain.reuse(before.chain, batch.common_stages(before.candidates))
            before = None
        kernels = _fitting_kernels(batch, outputs, memory, batch.common_stages(candidates[following]))
        if kernels is None:
            del batch
            torch.cuda.empty_cache()  # cuBLAS and cuDNN allocate outside of torch's cache
            size = most = size // 2
            if halved is not None:
                halved()
            continue
        yield from zip(*on_cpu(*kernels), strict=True)
        start, before = start + size, batch
        fitting = room * len(batch.candidates) // batch.chain.needed
        size = batch_size(fitting, most, len(candidates) - start, x.is_cuda)


def on_cpu(
    theta: Float[Tensor, "*c p p"], head: Float[Tensor, "*c p p"]
) -> tuple[Float[Tensor, "*c p p"], Float[Tensor, "*c p p"]]:
    """Both kernels on the CPU, from a CUDA device in one transfer: each step of their algebra would be a wait there."""
    return tuple(torch.stack([theta, head]).cpu()) if theta.is_cuda else (theta, head)


def batch_size(fitting: int, most: int, left: int, even: bool) -> int:
    """Candidates of the next batch.

    Args:
        fitting: how many fit into the budget.
        most: how many may be tried.
        left: how many are left; at least 1, or the result means nothing.
        even: whether the batches that are left should be of equal size. A GPU takes as long to be told of a small
            batch as of a large one.

    Returns:
        The number, at least 1.
    """
    size = max(1, min(most, fitting, left))
    return math.ceil(left / math.ceil(left / size)) if even and left else size


_alone: dict[tuple, int] = {}


def bytes_alone(network: Network, x: Tensor, names: set[str], outputs: Outputs, memory: int) -> int:
    """Bytes with which the whole network runs in a batch of one, from a forward pass; one for all networks of a size.

    They must not follow from the candidates that are scored first: a search that is continued begins with others.

    Args:
        network: the network.
        x: the images of all candidates, or with one more axis those of each.
        names: parameters that the kernels differentiate by.
        outputs: "full" or "sum".
        memory: bytes of the budget; the result where it is exceeded.

    Returns:
        The bytes, at most ``memory``.
    """
    size = (network.settings, network.candidates, x.shape[-4:], x.dtype, outputs, len(names))
    if size not in _alone:
        batch = CandidateBatch(network, [network.candidates], x[:1] if x.dim() == 5 else x, names)
        try:
            batch.forward(outputs, memory)
        except Exception as over:
            if not (isinstance(over, OverBudget) or out_of_memory(over)):
                raise
            return memory
        _alone[size] = batch.chain.needed
    return min(_alone[size], memory)


def _fitting_kernels(
    batch: "CandidateBatch", outputs: Outputs, memory: int, kept: int
) -> tuple[Float[Tensor, "c p p"], Float[Tensor, "c p p"]] | None:
    """:meth:`CandidateBatch.kernels`, or None where there is too little memory for several candidates."""
    try:
        return batch.kernels(outputs, memory, kept)
    except Exception as over:
        if not (isinstance(over, OverBudget) or out_of_memory(over)):
            raise
        if len(batch.candidates) == 1:
            raise ConfigurationError(_too_large(over, memory)) from None
        return None


def _too_large(over: Exception, memory: int) -> str:
    needed = f"more than the device has ({(str(over).splitlines() or [type(over).__name__])[0]})"
    if isinstance(over, OverBudget):
        needed = f"{over.needed} bytes"
    return (
        f"one candidate needs {needed} and memory={memory} was given: raise it, or take fewer channels, tasks or a "
        "lower resolution"
    )


class CandidateBatch:
    """Several candidates of one network; rows are candidate-major, image-minor."""

    def __init__(
        self,
        network: Network,
        candidates: Sequence[Candidates],
        x: Float[Tensor, "*own n c h w"],
        names: set[str],
        heads: "Heads | None" = None,
    ) -> None:
        """Prepares the stages of the batch.

        Args:
            network: one that was built with all their operations.
            candidates: the candidates.
            x: the images of all, or with one more axis in front those of each candidate.
            names: parameters that the kernels differentiate by.
            heads: one for each candidate, in place of the network's.

        Raises:
            GenotypeError: the network lacks an operation.
        """
        for each in candidates:
            if unknown := set(each.operators()) - set(network.candidates.operators()):
                raise GenotypeError(
                    f"the network was built without {sorted(unknown)[0]}: build it with more candidates"
                )
        self.network, self.candidates, self.count = network, list(candidates), x.shape[-4]
        self.own_images = x.dim() == 5
        self.images = x.flatten(0, 1) if self.own_images else x.repeat(len(candidates), 1, 1, 1)
        self.head: nn.Module = network.classifier if heads is None else heads
        self.everyone = tuple(range(len(candidates)))
        self.edges = network.candidates.space.edges
        self.live = {
            kind: {edge: [each.on(kind, edge) for each in candidates] for edge in self.edges}
            for kind in dict.fromkeys(network.kinds)
        }
        edges = itertools.chain(*(each.values() for each in self.live.values()))
        self.indices = batch_indices(edges, self.count, self.images)
        cells = [
            Stage(partial(self._cell, kind, cell), (max(i, 1), i + 1))
            for i, (kind, cell) in enumerate(network.stacked_cells())
        ]
        stages = [Stage(self._stem, (0,)), *cells, Stage(self._end, (len(cells) + 1,))]
        _refuse_batch_statistics(network)
        layers = {layer.module: layer for layer in layers_of(network, names)}
        if heads is not None and network.classifier in layers:
            layers[self.head] = replace(layers.pop(network.classifier), module=self.head)
        self.chain = Chain(stages, layers)

    def common_stages(self, candidates: Sequence[Candidates]) -> int:
        """How many of the first stages compute the same for other candidates, on the images of all."""
        # Half of a round's candidates lack an operation of a reduction cell: their normal cells before it are alike.
        if self.own_images or len(candidates) != len(self.candidates):
            return 0
        pairs = list(zip(self.candidates, candidates, strict=True))
        equal = {
            kind: all(
                one.on(kind, edge) == other.on(kind, edge) for one, other in pairs for edge in self.edges
            )
            for kind in set(self.network.kinds)
        }
        return 1 + sum(itertools.takewhile(bool, (equal[kind] for kind in self.network.kinds)))

    @float32_products()
    def kernels(
        self, outputs: Outputs, memory: int, kept: int = 0
    ) -> tuple[Float[Tensor, "c p p"], Float[Tensor, "c p p"]]:
        """Kernels of all candidates by all names, and by those of the head alone; float64.

        Args:
            outputs: "full" for each output, "sum" for their sum.
            memory: bytes of the budget.
            kept: number of first stages whose graphs are kept for the next batch.

        Returns:
            The two kernels of all candidates. It raises OverBudget when one cell of these candidates does not fit.
        """
        logits, ways, size = self.forward(outputs, memory)
        columns = torch.eye(logits.shape[1]).to(logits) if ways > 1 else torch.ones_like(logits[:1])
        theta, last = (torch.zeros(size, dtype=torch.float64, device=logits.device) for _ in range(2))

        def take(call: LayerCall, rows: Rows) -> None:
            for block in rows:
                add_grams(theta, block, call.groups, self.indices.places.get(call.groups))
                if call.layer.module is self.head:
                    add_grams(last, block, call.groups)

        self.chain.backward([column.expand_as(logits) for column in columns], take, kept)
        return symmetric_halves(theta), symmetric_halves(last)

    def forward(self, outputs: Outputs, memory: int) -> tuple[Tensor, int, tuple[int, int, int]]:
        """The forward pass, after which the chain knows what it needs.

        Args:
            outputs: "full" for each output, "sum" for their sum.
            memory: bytes of the budget.

        Returns:
            Logits of all images, the number of outputs to differentiate, and the shape of the kernels. OverBudget is
            raised as by :meth:`kernels`.
        """
        ways = self.network.settings.classes if outputs == "full" else 1
        rows = self.count * ways
        size = (len(self.candidates), rows, rows)
        return self.chain.forward(self.images, ways, memory, SUMS * math.prod(size)), ways, size

    def _stem(self, record: Record, x: Tensor) -> Tensor:
        return run_layer(self.network.stem, x, partial(record, self.everyone))

    def _end(self, record: Record, state: Tensor) -> Tensor:
        record = partial(record, self.everyone)
        return run_layer(self.head, run_layer(self.network.last, state, record).mean(dim=(2, 3)), record)

    def _cell(self, kind: CellType, cell: StackedCell, record: Record, s0: Tensor, s1: Tensor) -> Tensor:
        names = self.live[kind]

        def apply(function: Callable[..., Tensor], *values: Activation) -> Activation:
            match function:
                case nn.ReLU() | nn.MaxPool2d() | nn.AvgPool2d() | nn.Identity():
                    return Activation(pooled(function, values[0].x))
                case nn.Module():
                    return Activation(run_layer(function, values[0], partial(record, self.everyone)))
                case torch.add:
                    return Activation(values[0].x.add_(values[1].x))  # the node's sum, which is new
                case _:
                    return Activation(function(*(value.x for value in values)))

        def edge_output(edge: Edge, operations: Iterator[tuple[str, nn.Module, Activation]]) -> Activation:
            """The mean of each candidate's live operations."""

            def part(name: str, operation: nn.Module, state: Activation) -> Tensor:
                return self._part(operation, state, holders(name, names[edge]), record)

            # The first part may be the state or the part of another edge, which must not change.
            total = part(*next(operations))
            for place, operation in enumerate(operations):
                total = total.add_(part(*operation)) if place else total + part(*operation)
            counts = averaged(names[edge])
            return Activation(total / self.indices.counts.get(counts, counts[0]))

        live = {edge: set().union(*each) for edge, each in names.items()}
        return cell.walk(apply, edge_output, live, Activation(s0), Activation(s1)).x

    def _part(self, operation: nn.Module, state: Activation, group: Group, record: Record) -> Tensor:
        """The operation on the images of these candidates, zero on those of the others."""
        if group != self.everyone:
            rows = self.indices.rows[group]
            part = run_layer(operation, state.x.index_select(0, rows), partial(record, group))
            return part.new_zeros(len(self.images), *part.shape[1:]).index_copy(0, rows, part)
        # A norm of a pooled state runs once for equal scales and shifts: before training all norms are equal. On a
        # GPU the comparison would have to wait for what runs.
        norm = operation[0] if isinstance(operation, nn.Sequential) and len(operation) == 1 else None
        if not isinstance(norm, nn.GroupNorm) or norm in self.chain.layers or state.x.is_cuda:
            return run_layer(operation, state, partial(record, group))
        for other, part in state.normed:
            alike = (norm.num_groups, norm.eps) == (other.num_groups, other.eps)
            if alike and torch.equal(norm.weight, other.weight) and torch.equal(norm.bias, other.bias):
                return part
        state.normed.append((norm, run_layer(operation, state, partial(record, group))))
        return state.normed[-1][1]


class Heads(nn.Module):
    """A linear head for each candidate: the first rows of the input belong to the first."""

    def __init__(self, weight: Float[Tensor, "c k f"], bias: Float[Tensor, "c k"]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def part(self, rows: slice) -> "Heads":
        """The heads of some candidates, copied: a batch counts what its graphs hold."""
        return Heads(self.weight.detach()[rows].clone(), self.bias.detach()[rows].clone())

    def forward(self, x: Float[Tensor, "m f"]) -> Float[Tensor, "m k"]:
        """Logits."""
        return torch.baddbmm(
            self.bias[:, None], x.unflatten(0, (len(self.weight), -1)), self.weight.mT
        ).flatten(0, 1)


def stacked_heads(heads: Sequence[nn.Linear]) -> Heads:
    """The heads in one module."""
    return Heads(
        *(torch.stack([getattr(head, name).detach() for head in heads]) for name in ("weight", "bias"))
    )


def _refuse_batch_statistics(network: Network) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            raise UnsupportedModelError(
                f"module {name!r} uses batch statistics, with which no kernel of single samples exists: build the "
                "network with NetworkSettings(norm='group'), as supernet() does"
            )
