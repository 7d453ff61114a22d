"""The training transform of RFS (Appendix E) on a batch: random crop, colour jitter, flip, normalisation.

All random numbers come from a generator, are drawn before any pixel is touched, and belong to single images. To
apply them is deterministic. So the images may be cut into batches in any way, on any device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.fewshot.images import check_statistics

ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to grey


@dataclass(frozen=True)
class Augmentation:
    """Settings of the training transform; the defaults are those of RFS.

    Attributes:
        padding: zero pixels added on every side before a window of the original size is cut out at random; None for
            the rule of :func:`default_padding`.
        jitter: brightness, contrast and saturation are each multiplied by a factor from [1 - jitter, 1 + jitter].
        flip: whether half of the images are mirrored (wrong for characters).
    """

    padding: int | None = None
    jitter: float = 0.4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding is not None and self.padding < 0:
            raise ConfigurationError(
                f"padding is {self.padding}: give 0 or more pixels, or None for the rule"
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is {self.jitter}: give a number from 0 (none) to 1")


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of the transform for each of B images.

    Attributes:
        offsets: (row, column) by which the window is shifted, in pixels.
        mirrored: whether the image is mirrored.
        factors: of brightness, contrast and saturation.
        order: which of these three changes comes first, second and third.
    """

    offsets: Int64[Tensor, "B 2"]
    mirrored: Bool[Tensor, " B"]
    factors: Float[Tensor, "B 3"]
    order: Int64[Tensor, "B 3"]


def default_padding(image_size: int) -> int:
    """⌈8/84 of the side⌉: 8 pixels at 84 as for mini-ImageNet, 4 at 32 as in RFS for CIFAR-FS."""
    return math.ceil(image_size * 8 / 84)


def draw_augmentation(settings: Augmentation, image_size: int, count: int, random: torch.Generator) -> Draws:
    """Return the random numbers of the transform for ``count`` images.

    Args:
        settings: the settings of the transform.
        image_size: side of the images in pixels.
        count: number of images.
        random: a CPU generator.
    """
    padding = default_padding(image_size) if settings.padding is None else settings.padding
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=random)
    mirrored = torch.rand(count, generator=random) < (0.5 if settings.flip else 0.0)
    factors = 1 + settings.jitter * (2 * torch.rand(count, 3, generator=random) - 1)
    order = ORDERS[torch.randint(0, len(ORDERS), (count,), generator=random)]
    return Draws(offsets - padding, mirrored, factors, order)


def join_draws(parts: Sequence[Draws]) -> Draws:
    """The draws of several batches as those of one batch."""
    names = ("offsets", "mirrored", "factors", "order")
    return Draws(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def select_draws(draws: Draws, rows: slice) -> Draws:
    """The draws of a slice of the batch."""
    return Draws(draws.offsets[rows], draws.mirrored[rows], draws.factors[rows], draws.order[rows])


def apply_draws(
    images: UInt8[Tensor, "B H W 3"],
    draws: Draws,
    mean: Sequence[float],
    std: Sequence[float],
    layout: torch.memory_format = torch.contiguous_format,
) -> Float[Tensor, "B 3 H W"]:
    """Transform images with given draws; no step waits for the device.

    Args:
        images: the images.
        draws: one draw for each image, on the CPU.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        layout: memory format of the result.

    Returns:
        The transformed and normalised images (float32) on the device of ``images``.

    Raises:
        ShapeError: there is not one draw for each image.
    """
    if len(images) != len(draws.order):
        raise ShapeError(
            f"got {len(images)} images and draws for {len(draws.order)}: draw once for each image"
        )
    check_statistics(mean, std)
    device = images.device
    window = crop(images, draws.offsets, draws.mirrored)
    # The jitter mixes single colours: a CPU reads them twice as fast from planes as from every third number.
    planes = layout if device.type == "cuda" else torch.contiguous_format
    pixels = window.permute(0, 3, 1, 2).to(torch.float32, memory_format=planes).div_(255)
    pixels = colour_jitter(pixels, *(x.to(device, non_blocking=True) for x in (draws.factors, draws.order)))
    shift, scale = (
        torch.tensor(tuple(v)).view(1, 3, 1, 1).to(device, non_blocking=True) for v in (mean, std)
    )
    return pixels.sub_(shift).div_(scale).contiguous(memory_format=layout)


def augment(
    images: UInt8[Tensor, "B H W 3"],
    settings: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    random: torch.Generator,
) -> Float[Tensor, "B 3 H W"]:
    """Return images after the training transform with new draws: random crop, colour jitter, flip, (x − mean)/std.

    Args:
        images: the images.
        settings: the settings of the transform.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        random: a CPU generator.
    """
    return apply_draws(images, draw_augmentation(settings, images.shape[1], len(images), random), mean, std)


def crop(
    images: UInt8[Tensor, "B H W 3"], offsets: Int64[Tensor, "B 2"], mirrored: Bool[Tensor, " B"]
) -> UInt8[Tensor, "B H W 3"]:
    """Return each image shifted by its offset, with zeros outside, and then mirrored where ``mirrored`` says so.

    This equals padding with zeros and cutting out a window of the original size. It is one gather of whole pixels.
    """
    count, height, width, _ = images.shape
    padding = int(offsets.abs().max()) if count else 0  # the draws are on the CPU: no wait for the device
    offsets, mirrored = (x.to(images.device, non_blocking=True) for x in (offsets, mirrored))
    # A pixel as one 4-byte word: the gather moves words instead of bytes, about twice as fast.
    padded = images.new_zeros(count, height + 2 * padding, width + 2 * padding, 4)
    padded[:, padding : padding + height, padding : padding + width, :3] = images
    steps = torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], width - 1 - steps, steps) + offsets[:, 1:] + padding
    rows = torch.arange(height, device=images.device) + offsets[:, :1] + padding
    rows = rows + padded.shape[1] * torch.arange(count, device=images.device)[:, None]
    words = padded.view(torch.int32).view(-1)[rows[:, :, None] * padded.shape[2] + columns[:, None, :]]
    return words.view(torch.uint8).view(count, height, width, 4)[..., :3]


def colour_jitter(
    pixels: Float[Tensor, "B 3 H W"], factors: Float[Tensor, "B 3"], order: Int64[Tensor, "B 3"]
) -> Float[Tensor, "B 3 H W"]:
    """Return images on 0..1 with changed brightness, contrast and saturation, in the order drawn for each image.

    All three changes blend with a base, base + f·(x − base), clamped to 0..1. The base is black for brightness, the
    mean grey of the image for contrast, and its grey version for saturation. The order is drawn per image as in the
    RFS transform. All three have one form, so it costs nothing to mix them within a batch.
    """
    red, green, blue = LUMA
    for position in range(3):
        change = order[:, position].view(-1, 1, 1, 1)
        factor = factors.gather(1, order[:, position, None]).view(-1, 1, 1, 1)
        grey = (red * pixels[:, 0:1]).add_(pixels[:, 1:2], alpha=green).add_(pixels[:, 2:3], alpha=blue)
        mean = grey.mean((2, 3), keepdim=True)
        base = torch.where(change == 2, grey, torch.where(change == 1, mean, 0.0))
        pixels = (pixels * factor).add_(base.mul_(1 - factor)).clamp_(0, 1)
    return pixels
