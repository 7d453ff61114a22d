"""What a network costs to run: multiply-accumulates, the measure beside which parameters are quoted."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import UnsupportedModelError


class _Counter:
    """Counts the products of convolutions and linear layers as they are called."""

    def __init__(self) -> None:
        self.total = 0

    def note(self, layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Every number of the output is a sum over one filter, or one row, of the weights.
        self.total += output[0].numel() * layer.weight[0].numel()


def multiply_accumulates(network: nn.Module, x: Float[Tensor, "1 ..."]) -> int:
    """Products in convolutions and linear layers for one sample; norms, pooling, sums and biases do not count.

    x: any sample of the right shape; its values do not matter. The network is left in its mode.
    Raises UnsupportedModelError for a network in which neither layer occurs.
    """
    counter, mode = _Counter(), network.training
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        raise UnsupportedModelError("the network has neither convolutions nor linear layers to count")
    handles = [layer.register_forward_hook(counter.note) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        network.train(mode)
        for handle in handles:
            handle.remove()
    return counter.total
