"""Kernels of many candidates at once: the candidate is a batch dimension.

All candidates of a round share their weights, and GroupNorm acts sample by sample: the images, once for every
candidate, go through one forward and one backward pass. An operation that some candidates lack runs on the images
of the others alone, and every image averages the operations of its own candidate. Each layer's per-sample
gradients become one Gram matrix per candidate and are discarded. First cells that the next batch has in common keep
their graphs for it. A candidate may also have images and a head of its own (:class:`Heads`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, GenotypeError, UnsupportedModelError
from mamltheory.kernels.layers.jacobian import Outputs
from mamltheory.nas.genotype import EDGES, NODES, Candidates, CellType, Edge
from mamltheory.nas.network import Network, StackedCell
from mamltheory.nas.operations import leading_step
from mamltheory.nas.scoring.cell_layers import Entering, Note, pooled, run
from mamltheory.nas.scoring.checkpointing import Call, Chain, OverBudget, Rows, Stage
from mamltheory.nas.scoring.sample_gradients import COLUMNS, add_grams, symmetric_halves

MEMORY = 3 << 30
"""Default budget of a batch of candidates, in bytes: one candidate of the paper's size."""
MOST_CANDIDATES = 64
"""Candidates beyond which a batch does not fill a device any better."""
CACHED = 1 << 28
"""Bytes of a batch beyond which a CPU, whose caches it leaves, scores several candidates faster one by one."""
WAITING = 16
"""Part of the budget, one in so many, that rows may take which wait to be multiplied together."""

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

    network: one that was built with all their operations; what it is restricted to has no effect.
    x: the images of all, or with one more axis in front those of every candidate.  heads: one for every candidate, in
    place of the network's.
    outputs, weights: as for :func:`mamltheory.nas.scoring.condition_number.network_kernels`, whose kernels these are.
    memory: bytes that a batch holds (MEMORY), from which the number of its candidates follows: the first is run by
    itself, and batches grow until they would have to run cells twice.
    halved: is called whenever a batch did not fit after all and goes on with half as many candidates.
    Raises ConfigurationError when one candidate alone does not fit, GenotypeError for an operation that the network
    lacks, UnsupportedModelError for batch statistics.
    """
    memory, most = MEMORY if memory is None else memory, MOST_CANDIDATES
    room = memory if x.is_cuda else min(memory, CACHED)
    values = dict(network.named_parameters())
    names = {name for name, value in values.items() if weights == "all" or value.dim() > 1}
    size, start, before = 1, 0, None
    while start < len(candidates):
        part, following = slice(start, start + size), slice(start + size, start + 2 * size)
        own = x[part] if x.dim() == 5 else x
        some = None if heads is None else heads[part]
        batch = CandidateBatch(network, candidates[part], own, names, some)
        if before is not None:
            batch.chain.take_over(before.chain, batch.common_stages(before.candidates))
            before = None
        try:
            kernels = batch.kernels(outputs, memory, batch.common_stages(candidates[following]))
        except (OverBudget, torch.OutOfMemoryError) as over:
            if size == 1:
                raise _too_large(over, memory) from None
            size = most = size // 2
            if halved is not None:
                halved()
            continue
        yield from zip(*kernels, strict=True)
        start, before = start + size, batch
        fitting = min(room, _for_graphs(memory)) * len(batch.candidates) // batch.chain.needed
        size = max(1, min(most, fitting, len(candidates) - start))


def _for_graphs(memory: int) -> int:
    """What waiting rows leave of the budget."""
    return memory - memory // WAITING


def _too_large(over: Exception, memory: int) -> ConfigurationError:
    needed = "more than the device has"
    if isinstance(over, OverBudget):
        needed = f"{over.needed * WAITING // (WAITING - 1) + 1} bytes"
    return ConfigurationError(
        f"one candidate needs {needed} and memory={memory} was given: raise it, or take fewer channels, tasks or "
        "a lower resolution"
    )


class CandidateBatch:
    """Several candidates of one network; rows are candidate-major, image-minor.

    x: the images of all, or with one more axis in front those of every candidate.
    names: parameters that the kernels differentiate by.  heads: of the candidates, where each has its own.
    """

    def __init__(
        self,
        network: Network,
        candidates: Sequence[Candidates],
        x: Float[Tensor, "*own n c h w"],
        names: set[str],
        heads: Sequence[nn.Linear] | None = None,
    ) -> None:
        for each in candidates:
            if unknown := set(each.operators()) - set(network.candidates.operators()):
                raise GenotypeError(
                    f"the network was built without {sorted(unknown)[0]}: build it with more candidates"
                )
        self.network, self.candidates, self.count = network, list(candidates), x.shape[-4]
        self.own_images = x.dim() == 5
        self.images = x.flatten(0, 1) if self.own_images else x.repeat(len(candidates), 1, 1, 1)
        self.head = network.classifier if heads is None else Heads(heads)
        self.everyone = self.holders = tuple(range(len(candidates)))
        cells = [
            Stage(partial(self._cell, kind, cell), (max(i, 1), i + 1))
            for i, (kind, cell) in enumerate(zip(network.kinds, network.cells, strict=True))
        ]
        stages = [Stage(self._stem, (0,)), *cells, Stage(self._end, (len(cells) + 1,))]
        layers = _layers(network, names)
        if heads is not None:
            layers[self.head] = layers.pop(network.classifier)
        self.chain = Chain(stages, layers, lambda: self.holders)

    def common_stages(self, candidates: Sequence[Candidates]) -> int:
        """How many of the first stages compute the same for other candidates, on the images of all.

        Half of a round's candidates lack an operation of a reduction cell, and the normal cells before it are one.
        """
        if self.own_images or len(candidates) != len(self.candidates):
            return 0
        pairs = list(zip(self.candidates, candidates, strict=True))
        equal = {
            kind: all(one.on(kind, edge) == other.on(kind, edge) for one, other in pairs for edge in EDGES)
            for kind in set(self.network.kinds)
        }
        return 1 + sum(itertools.takewhile(bool, (equal[kind] for kind in self.network.kinds)))

    def kernels(
        self, outputs: Outputs, memory: int, kept: int = 0
    ) -> tuple[Float[Tensor, "c p p"], Float[Tensor, "c p p"]]:
        """Kernels of all candidates by all names, and by those of the head alone; float64.

        kept: how many of the first stages keep their graphs for the next batch.
        Raises OverBudget when one cell of these candidates does not fit.
        """
        ways = self.network.settings.classes if outputs == "full" else 1
        size = (len(self.candidates), *(2 * (self.count * ways,)))
        logits = self.chain.forward(self.images, ways, _for_graphs(memory), SUMS * math.prod(size))
        columns = torch.eye(logits.shape[1]).to(logits) if ways > 1 else torch.ones_like(logits[:1])
        theta, last = (torch.zeros(size, dtype=torch.float64, device=logits.device) for _ in range(2))
        waiting: list[Tensor] = []
        self.chain.backward(
            [column.expand_as(logits) for column in columns],
            partial(self._take, theta, last, waiting, self._columns(ways, memory)),
            kept,
        )
        self._add_waiting(theta, waiting)
        return symmetric_halves(theta), symmetric_halves(last)

    def _columns(self, ways: int, memory: int) -> int:
        """How many columns of rows may wait: by themselves and, when they are multiplied, side by side."""
        column = 2 * len(self.images) * ways * self.images.element_size()
        return min(COLUMNS, memory // WAITING // column)

    def _take(
        self, theta: Tensor, last: Tensor, waiting: list[Tensor], columns: int, call: Call, rows: Rows
    ) -> None:
        """Adds the Gram matrices of a layer, or has short rows wait for others, to be multiplied together."""
        for block in rows:
            if call.layer is self.head:
                add_grams(last, block, call.holders)
            if call.holders != self.everyone or block.shape[2] >= columns:
                add_grams(theta, block, call.holders)
                continue
            if sum(each.shape[2] for each in waiting) + block.shape[2] > columns:
                self._add_waiting(theta, waiting)
            waiting.append(block)

    def _add_waiting(self, theta: Tensor, waiting: list[Tensor]) -> None:
        if waiting:
            add_grams(theta, torch.cat(waiting, 2), self.everyone)
            waiting.clear()

    def _stem(self, note: Note, x: Tensor) -> Tensor:
        return run(self.network.stem, x, note)

    def _end(self, note: Note, state: Tensor) -> Tensor:
        return run(self.head, run(self.network.last, state, note).mean(dim=(2, 3)), note)

    def _cell(self, kind: CellType, cell: StackedCell, note: Note, s0: Tensor, s1: Tensor) -> Tensor:
        states = [run(cell.fit0, s0.relu(), note), run(cell.fit1, s1.relu(), note)]
        shared: dict[tuple[int, str], Entering] = {}
        for node in range(NODES):
            total = None
            for edge in EDGES:
                if edge.node == node:
                    total = self._added_edge(total, kind, cell, edge, states, shared, note)
            states.append(total)
        return torch.cat(states[2:], dim=1)

    def _added_edge(
        self,
        node: Tensor | None,
        kind: CellType,
        cell: StackedCell,
        edge: Edge,
        states: list[Tensor],
        shared: dict[tuple[int, str], Entering],
        note: Note,
    ) -> Tensor | None:
        """The node's sum with the mean of every candidate's own operations on one more edge."""
        live = [each.on(kind, edge) for each in self.candidates]
        stride, state = 2 if kind == "reduce" and edge.source < 2 else 1, states[edge.source]
        total, changeable = None, False
        for name, operation in cell.edges[f"{edge.node}_{edge.source}"].items():
            holders = tuple(i for i, names in enumerate(live) if name in names)
            if not holders:
                continue
            step = leading_step(name, stride)
            if (edge.source, step) not in shared:
                shared[edge.source, step] = Entering(pooled(cell.leading[f"{step}{stride}"], state))
            part = self._part(operation, shared[edge.source, step], holders, note)
            # The identity's part is the state itself, and a pooling's is that of other edges, too.
            if total is None:
                total, changeable = part, step == "relu"
            else:
                total, changeable = total.add_(part) if changeable else total + part, True
        if total is None:
            return node
        mean = total / self._counts(live, total)
        return mean if node is None else node.add_(mean)

    def _part(self, operation: nn.Module, entering: Entering, holders: tuple[int, ...], note: Note) -> Tensor:
        """The operation on the images of these candidates; a norm of a pooled state once for equal scales and shifts.

        Before training all norms are equal. On a GPU the comparison would have to wait for what runs.
        """
        norm = operation[0] if isinstance(operation, nn.Sequential) else None
        alone = isinstance(norm, nn.GroupNorm) and norm not in self.chain.layers and not entering.x.is_cuda
        if not alone or holders != self.everyone:
            return self._run(operation, entering, holders, note)
        for other, part in entering.normed:
            if torch.equal(norm.weight, other.weight) and torch.equal(norm.bias, other.bias):
                return part
        part = self._run(operation, entering, holders, note)
        entering.normed.append((norm, part))
        return part

    def _run(self, operation: nn.Module, entering: Entering, holders: tuple[int, ...], note: Note) -> Tensor:
        """The operation on the images of these candidates, zero on those of the others."""
        if holders == self.everyone:
            return run(operation, entering, note)
        images = torch.tensor(holders, device=entering.x.device)[:, None] * self.count
        rows = (images + torch.arange(self.count, device=images.device)).flatten()
        self.holders = holders
        part = run(operation, entering.x.index_select(0, rows), note)
        self.holders = self.everyone
        return part.new_zeros(len(self.images), *part.shape[1:]).index_copy(0, rows, part)

    def _counts(self, live: Sequence[tuple[str, ...]], like: Tensor) -> Tensor | int:
        """How many operations every row averages, and 1 for a row without any."""
        counts = [max(len(names), 1) for names in live]
        if len(set(counts)) == 1:
            return counts[0]
        rows = torch.tensor(counts, dtype=like.dtype, device=like.device).repeat_interleave(self.count)
        return rows[:, None, None, None]


class Heads(nn.Linear):
    """A head for every candidate: the first rows of what enters belong to the first.

    copies: how many heads there are.
    """

    def __init__(self, heads: Sequence[nn.Linear]) -> None:
        like = heads[0]
        super().__init__(like.in_features, like.out_features, device="meta")
        self.copies = len(heads)
        self.weight, self.bias = (
            nn.Parameter(torch.stack([getattr(head, name).detach() for head in heads]))
            for name in ("weight", "bias")
        )

    def forward(self, x: Float[Tensor, "m f"]) -> Float[Tensor, "m k"]:
        """Logits."""
        return torch.baddbmm(
            self.bias[:, None], x.unflatten(0, (len(self.weight), -1)), self.weight.mT
        ).flatten(0, 1)


def _layers(network: Network, names: set[str]) -> dict[nn.Module, tuple[str, ...]]:
    """The layers that own parameters of these names, and their own names for them."""
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            raise UnsupportedModelError(
                f"module {name!r} uses batch statistics, with which no kernel of single samples exists: build the "
                "network with NetworkSettings(norm='group'), as supernet() does"
            )
        own = [key for key, _ in layer.named_parameters(recurse=False) if f"{name}.{key}" in names]
        if own:
            found[layer] = tuple(own)
    return found
