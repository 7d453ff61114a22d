"""How many digits the factors of a kernel's products have: float32, or bfloat16 on the way back.

The forward pass stays in float32: a rounding there could turn a ReLU or a maximum the other way. What flows back is
linear in it, and gradients of weights are used in inner products g·g′ alone. bfloat16 (8 digits in base 2) moves
every term of g by up to 2⁻⁸ and in the mean by 2⁻⁹ of its size, one way or the other, so that with D weights

    g·g′ moves by about 2⁻⁹ |g| |g′| / √D,   g·g by 2⁻¹⁸ |g|² besides,   D = 10⁵ to 10⁷,

where factors and results of products are rounded; sums within a product, and inner products of g, are of float32.
Rounded are the factors by which flows pass back through the operations of an edge, and those of the gradients of
convolutions across channels, which have most of the products. Where all flows of a cell pass, errors would have no
others to average with: nothing is rounded there.

Condition numbers of the paper's size stay within 1e-3 of float32's, which a slow test checks; the benchmark ``scoring``
prints by how much those of 16 channels move. Fewer weights average less, and nearly singular kernels magnify what is
left: networks of 2 or 4 channels move by more, and so do those with C_N beyond 1e4.
"""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]


def factors(precision: Precision, like: Tensor) -> torch.dtype | None:
    """The dtype of factors on the way back, None for that of everything else.

    bfloat16 where it was asked for, for float32 on a CPU that multiplies it: elsewhere it would cost time, or its
    gain is unknown.
    """
    wanted = precision == "bf16" and like.dtype == torch.float32 and like.device.type == "cpu"
    return torch.bfloat16 if wanted and multiplies_bfloat16() else None


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has products of bfloat16; False where torch does not tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return known and torch.backends.mkldnn.is_available()
