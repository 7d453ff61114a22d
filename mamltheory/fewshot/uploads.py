"""Images as tensors: rows of them on a device, all of them where there is room, and the test-time transform."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mamltheory.accelerator import free_share, uploaded
from mamltheory.fewshot.images import ImageSplit, check_statistics

PIECE = 4096  # images in one copy to a device


def take(images: np.ndarray | Tensor, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return images B×H×W×3 (uint8) on a device, for which the host does not wait.

    Args:
        images: an array, a memory map, or a tensor on a device.
        indices: the rows to take.
        device: device of the result.
    """
    if isinstance(images, Tensor):
        return images[torch.as_tensor(indices, device=images.device)].to(device)
    return uploaded(torch.from_numpy(np.ascontiguousarray(images[indices])), torch.device(device))


def resident(split: ImageSplit, device: torch.device | str) -> np.ndarray | Tensor:
    """Return the images as a tensor on a CUDA device if they fill at most half of its free memory, else the array.

    For small networks the copy of each batch over the bus is the bottleneck. A memory map is copied in pieces, without
    a copy of all images in host memory.
    """
    device = torch.device(device)
    if device.type != "cuda" or split.images.nbytes > free_share(device):
        return split.images
    images = torch.empty(split.images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), PIECE):
        images[start : start + PIECE] = take(split.images, np.arange(start, min(start + PIECE, len(images))))
    return images


def normalise(
    images: UInt8[Tensor, "B H W 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 H W"]:
    """(image/255 − mean)/std as float32 B×3×H×W: the test-time transform."""
    check_statistics(mean, std)
    scaled = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255
    shift, scale = (uploaded(torch.tensor(tuple(v)), images.device).view(1, 3, 1, 1) for v in (mean, std))
    return (scaled - shift) / scale
