"""Number formats of the training: float32, TF32 products, and bfloat16 or float16 activations.

Weights, their gradients' sums, batch statistics and the loss stay in float32 in all of them. float16 has too few
exponents for small gradients: the loss is scaled up before the backward pass and the gradients down after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from mamltheory.errors import ConfigurationError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
ACTIVATIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigurationError for an unknown format, and for TF32 where there is none (CPUs)."""
    if precision not in ("fp32", "tf32", "bf16", "fp16"):
        raise ConfigurationError(f"precision is {precision!r}: expected fp32, tf32, bf16 or fp16")
    if precision == "tf32" and device.type != "cuda":
        raise ConfigurationError(
            f"precision is tf32, which {device.type} does not have: take fp32 or bf16, or a CUDA device"
        )


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; without effect for fp32 and tf32."""
    dtype = ACTIVATIONS.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The scaling of the loss, in effect for fp16 alone; its state belongs to the state of the training."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Within the block CUDA multiplies float32 numbers in full for fp32, and with TF32 otherwise."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
