"""What a CUDA device makes of an operation: which operands it takes from the CPU, and when the host waits for it."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


READS = _words("""
    _local_scalar_dense is_nonzero equal nonzero masked_select bincount
    _unique2 unique_dim unique_consecutive unique_dim_consecutive
    _linalg_eigh _linalg_svd linalg_eig _linalg_eigvals linalg_lstsq _linalg_check_errors
""")
"""Operations whose result the host must see: a number, a size, or whether a factorisation failed."""

READING_OVERLOADS = frozenset({torch.ops.aten.repeat_interleave.Tensor})
"""This overload reads the repeats to know the size of its result."""

COPIES = _words("copy_ _to_copy")
"""Operations between two devices."""

INDEXED = _words("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put")
"""A tensor of the device takes indices from the CPU, which are uploaded; a mask is read for its number of ones."""

SCALARS = _words("fill fill_ masked_fill masked_fill_ index_fill index_fill_ where")
"""Operations that are not tagged as pointwise, but take 0-dimensional tensors of the CPU as pointwise ones do."""

WITHOUT_KERNEL = tuple(
    _words("empty new_empty detach alias lift_fresh is_ _has_ _local_scalar _reshape_alias set_")
)
"""Beginnings of the names of operations that start nothing on the device, and are no views."""

PRODUCTS = _words("mm bmm addmm baddbmm addmv mv dot")
CONVOLUTIONS = _words("convolution convolution_backward")

NOT_DETERMINISTIC = _words("""
    avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward
    fractional_max_pool2d_backward fractional_max_pool3d_backward max_unpool2d max_unpool3d
    upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
    grid_sampler_2d_backward grid_sampler_3d_backward nll_loss2d_forward _ctc_loss_backward put_ histc median kthvalue
""")
"""Operations for which torch has no deterministic form on CUDA, from torch.use_deterministic_algorithms.__doc__."""


def has_no_deterministic_form(name: str, tensors: Sequence[Tensor]) -> bool:
    """Whether CUDA refuses the operation under torch.use_deterministic_algorithms(True)."""
    if name in ("cumsum", "cumsum_"):
        return tensors[0].is_floating_point()
    return name in NOT_DETERMINISTIC or (name == "bincount" and len(tensors) > 1)


class Traits(NamedTuple):
    """What is known of an operation by its name and schema."""

    name: str
    reads: bool
    indexed: bool
    launches: bool
    reshapes: bool
    pointwise: bool
    writes: bool


@cache
def traits(function: torch._ops.OpOverload) -> Traits:
    """The traits of an operation.

    Args:
        function: the operation.
    """
    name = function._schema.name.partition("::")[2]
    return Traits(
        name,
        reads=name in READS or function in READING_OVERLOADS,
        indexed=name in INDEXED,
        launches=not function.is_view and not name.startswith(WITHOUT_KERNEL),
        reshapes=torch.Tag.inplace_view in function.tags,
        pointwise=torch.Tag.pointwise in function.tags or name in SCALARS,
        writes=function._schema.is_mutable,
    )


def takes(of: Traits, args: Sequence, foreign: Sequence[Tensor], first: bool) -> bool:
    """Whether CUDA takes these operands of the CPU.

    Args:
        of: the operation.
        args: its positional arguments.
        foreign: the operands on the CPU, of which there is at least one.
        first: whether its first tensor, which is the one that an operation in place writes, is on the device.
    """
    if of.name in COPIES:
        return True
    if of.indexed:
        indices = [id(each) for each in args[1] if isinstance(each, Tensor)]
        return first and all(each.dim() == 0 or id(each) in indices for each in foreign)
    return of.pointwise and (first or not of.writes) and all(each.dim() == 0 for each in foreign)


def rounded_to_tf32(x: Tensor) -> Tensor:
    """The nearest numbers with 10 bits of fraction, which TF32 multiplies, for float32; others as they are."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
