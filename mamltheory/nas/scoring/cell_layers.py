"""How the layers of cells run for kernels: the functions of their modules, with cheaper derivatives.

Both convolutions of a factorized reduction and the dilated one of stride 2 read every other pixel alone, and run on
the grid of these pixels; all edges that leave a state share the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.kernels.layers.convolutions import (
    Geometry,
    convolved,
    is_plain,
    reads_one_grid,
    zero_padded,
)
from mamltheory.nas.operations import Convolution, FactorizedReduce

Record = Callable[[nn.Module, Tensor, Tensor, Geometry | None], None]
"""Takes a layer, its input, its output, and the geometry of a convolution on that input."""


@dataclass(eq=False)
class Activation:
    """The input of operations, with what several of them compute from it alike.

    Attributes:
        x: the input.
        grids: every other pixel of it, by the number of the first row and column.
        normed: norms that have been applied to it, and their outputs.
    """

    x: Tensor
    grids: dict[int, Tensor] = field(default_factory=dict)
    normed: list[tuple[nn.GroupNorm, Tensor]] = field(default_factory=list)

    def grid(self, shift: int) -> Tensor:
        """Every other row and column from this one on, padded by zeros to half the size, rounded up."""
        if shift not in self.grids:
            seen = self.x[:, :, shift::2, shift::2]
            missing = [
                (size + 1) // 2 - got for size, got in zip(self.x.shape[2:], seen.shape[2:], strict=True)
            ]
            pad = (0, missing[1], 0, missing[0])
            self.grids[shift] = nn.functional.pad(seen, pad) if any(missing) else seen.contiguous()
        return self.grids[shift]


def run_layer(module: nn.Module, state: Tensor | Activation, record: Record) -> Float[Tensor, "m ..."]:
    """module(state) up to rounding, with a record of each layer on the way."""
    state = state if isinstance(state, Activation) else Activation(state)
    match module:
        case nn.Sequential():
            for layer in module:
                state = Activation(run_layer(layer, state, record))
            return state.x
        case FactorizedReduce():
            halves = [
                _convolution(layer, state.grid(shift), True, record)
                for shift, layer in enumerate((module.even, module.odd))
            ]
            return run_layer(module.norm, torch.cat(halves, 1), record)
        case nn.Conv2d() if is_plain(module):
            on_grid = reads_one_grid(module)
            return _convolution(module, state.grid(0) if on_grid else state.x, on_grid, record)
        case _:
            output = module(state.x)
            record(module, state.x, output, None)
            return output


KNOWN = (nn.Conv2d, Convolution, nn.Linear, nn.GroupNorm, nn.LayerNorm)


def runs_layer_by_layer(module: nn.Module) -> bool:
    """Whether :func:`run_layer` and its records show all that a module does with its parameters.

    Args:
        module: an operation.

    Returns:
        True for sequences of known layers, of which none is used twice, and of modules without parameters.
    """
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    known = (nn.Sequential, FactorizedReduce, *KNOWN)
    return len(names) == len([*module.parameters()]) and all(
        type(part) in known or not [*part.parameters()] for part in module.modules()
    )


def _convolution(layer: nn.Conv2d, x: Tensor, on_grid: bool, record: Record) -> Tensor:
    """The output of a plain convolution; on_grid: x is the grid of the pixels that it reads."""
    geometry = zero_padded(layer, x)[1]
    geometry = geometry.on_grid() if on_grid else geometry
    output = convolved(x, layer.weight, geometry)
    record(layer, x, output, geometry)
    return output
