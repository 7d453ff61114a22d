"""ResNet-12 as RFS trains it (Table 1): four residual blocks, dropout and DropBlock, global average pooling.

The dropout masks are a pure function of (seed, number of the training pass), drawn on the device of the images.
The ramp of DropBlock counts training passes only, and the count is part of the state_dict. (The released RFS code
keeps it in a Python number, which a resumed run forgets and which evaluations increase.)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.rng import derived_seed, generator

WIDTHS = (64, 160, 320, 640)
SLOPE = 0.1  # of the leaky ReLU
RATE = 0.1  # share of activations that is dropped
RAMP = 40_000  # training passes until DropBlock has its full rate
SQUARE = 5  # side of the squares that DropBlock sets to zero


def _convolution(channels_in: int, channels_out: int, size: int) -> list[nn.Module]:
    # skip_init: torch's own first weights would be drawn from the global generator.
    convolution = skip_init(nn.Conv2d, channels_in, channels_out, size, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out)]


class Residual(nn.Module):
    """Three 3×3 convolutions plus a 1×1 shortcut, the last activation after the sum, then 2×2 max pooling."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *_convolution(channels_in, channels_out, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(channels_out, channels_out, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(channels_out, channels_out, 3),
        )
        self.shortcut = nn.Sequential(*_convolution(channels_in, channels_out, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Half the resolution, rounded down."""
        return F.max_pool2d(F.leaky_relu(self.path(x) + self.shortcut(x), SLOPE), 2)


class ResNet12(nn.Module):
    """Residual blocks and a linear classifier; made with its weights by :func:`resnet12`.

    Dropout follows the first half of the blocks, DropBlock the others.

    Args:
        classes: number of outputs.
        widths: channels of the blocks.

    Raises:
        ConfigurationError: there are no classes or no blocks.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        if classes < 1 or not widths:
            raise ConfigurationError(f"classes {classes}, widths {widths}: expected at least one of each")
        self.blocks = nn.ModuleList(Residual(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.classifier = skip_init(nn.Linear, widths[-1], classes)
        self._drop_seed, self._passes = 0, 0

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """Global average of the last block's output. Raises ShapeError for images that the poolings use up."""
        if min(x.shape[2:]) < 2 ** len(self.blocks):
            raise ShapeError(
                f"images of {x.shape[2]} × {x.shape[3]} pixels are halved {len(self.blocks)} times: give at least "
                f"{2 ** len(self.blocks)}"
            )
        streams = self._streams(x.device) if self.training else None
        for i, block in enumerate(self.blocks):
            x = block(x)
            if streams is not None:
                blockwise = i >= len(self.blocks) // 2
                x = drop_block(x, self._rate, streams) if blockwise else dropout(x, RATE, streams)
        self._passes += self.training
        return x.mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.classifier(self.features(x))

    @property
    def _rate(self) -> float:
        return RATE * min(self._passes / RAMP, 1.0)

    def seed_drop_path(self, seed: int) -> None:
        """Makes the dropout masks of the next training pass those of this seed."""
        self._drop_seed = int(seed)

    def _streams(self, device: torch.device) -> torch.Generator:
        return generator(self._drop_seed, "dropout", self._passes, device=device)

    def get_extra_state(self) -> Tensor:
        """Seed of the masks and number of training passes, as a tensor in the ``state_dict``."""
        return torch.tensor([self._drop_seed, self._passes])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self._drop_seed, self._passes = state.tolist()


def dropout(x: Tensor, rate: float, random: torch.Generator) -> Tensor:
    """Entries kept with probability 1 − rate and divided by it."""
    kept = torch.rand(x.shape, generator=random, device=x.device).ge(rate)
    return x * kept.to(x.dtype) / (1 - rate)


def drop_block(x: Float[Tensor, "n c h w"], rate: float, random: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return ``x`` with squares of 5 × 5 (or of the side, if it is shorter) set to zero, and the rest scaled up.

    A square begins at a place with probability rate/5² · f²/(f − 4)² for the side f, so that about ``rate`` of the
    entries become zero. The scale keeps the mean.
    """
    height, width = x.shape[2:]
    side = min(SQUARE, height, width)
    places = (height - side + 1, width - side + 1)
    probability = rate / side**2 * height * width / (places[0] * places[1])
    begun = torch.rand(*x.shape[:2], *places, generator=random, device=x.device).lt(probability)
    padded = F.pad(begun.to(x.dtype), [side - 1] * 4)
    kept = 1 - F.max_pool2d(padded, side, stride=1)
    return x * kept * (kept.numel() / kept.float().sum().clamp(min=1)).to(x.dtype)


def resnet12(classes: int, seed: int, widths: tuple[int, ...] = WIDTHS) -> ResNet12:
    """Return ResNet-12 with float32 weights on the CPU that depend on (seed, name of the layer) alone.

    Convolutions are Kaiming normal over the fan-out, the classifier is uniform within ±1/√fan_in, as in RFS.
    """
    network = ResNet12(classes, widths)
    for name, module in network.named_modules():
        random = generator(seed, f"weights {name}")
        with torch.no_grad():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=random) * (2 / fan_out) ** 0.5)
            elif isinstance(module, nn.Linear):
                for value in (module.weight, module.bias):
                    uniform = 2 * torch.rand(value.shape, generator=random) - 1
                    value.copy_(uniform / module.in_features**0.5)
    network.seed_drop_path(derived_seed(seed, "dropout"))
    return network
