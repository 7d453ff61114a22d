"""Conv4, the network of MAML's experiments (Table 1): four blocks of convolution, norm, ReLU and pooling.

The norm is GroupNorm, as in the search: with batch statistics the output for one sample would depend on the others,
which the inner loop of the theory excludes. GroupNorm has as many parameters as BatchNorm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.rng import generator

BLOCKS = 4
MOST_GROUPS = 8


class Conv4(nn.Module):
    """Four blocks of equal width and a linear head on the flattened result; made with weights by :func:`conv4`.

    Args:
        ways: number of outputs.
        image_size: side of the images in pixels, at least 16.
        channels: width of the blocks, at least 2.

    Raises:
        ConfigurationError: one of the numbers is too small.
    """

    def __init__(self, ways: int, image_size: int, channels: int = 32) -> None:
        super().__init__()
        side = image_size // 2**BLOCKS
        if side < 1 or channels < 2 or ways < 1:
            raise ConfigurationError(
                f"image_size {image_size}, channels {channels}, ways {ways}: expected at least {2**BLOCKS} pixels, "
                "2 channels and 1 way"
            )
        self.image_size = image_size
        groups = max(g for g in range(1, min(MOST_GROUPS, channels // 2) + 1) if channels % g == 0)
        layers: list[nn.Module] = []
        for before in (3, *[channels] * (BLOCKS - 1)):
            # skip_init: torch's own first weights would be drawn from the global generator.
            layers += [skip_init(nn.Conv2d, before, channels, 3, padding=1), nn.GroupNorm(groups, channels)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.classifier = skip_init(nn.Linear, channels * side**2, ways)

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """The flattened output of the last block. Raises ShapeError for images of another size."""
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ShapeError(
                f"images of {x.shape[2]} × {x.shape[3]} pixels for a network of {self.image_size} × {self.image_size}"
            )
        return self.body(x)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """The outputs for every way."""
        return self.classifier(self.features(x))


def conv4(ways: int, image_size: int, seed: int, channels: int = 32) -> Conv4:
    """Return Conv4 with weights W ~ N(0, 2/fan_in) drawn from (seed, name of the layer), zero biases, and a zero head.

    So f₀ = 0 exactly (Assumption 5). With centred labels the first inner step has no component along the common mean
    of the features, whose eigenvalue is a hundred times larger than the others and would limit the inner rate.
    With 84 pixels and 5 ways the network has 32,901 parameters, the 30k of Table 1.

    Args:
        ways: number of outputs.
        image_size: side of the images in pixels.
        seed: seed of the weights.
        channels: width of the blocks.
    """
    network = Conv4(ways, image_size, channels)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            draw = torch.randn(module.weight.shape, generator=generator(seed, f"weights {name}"))
            with torch.no_grad():
                module.weight.copy_(draw * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    return network
