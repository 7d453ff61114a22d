"""Freed memory that the C library keeps: fresh pages were up to a third of the time of a meta-gradient."""

from functools import cache

import torch

LARGEST = 31 << 20
"""Bytes; glibc adapts to blocks of at most 32 MiB."""


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 62 MiB of freed memory for the next tensors, once per process.

    By default glibc maps every large block again and has its pages cleared. Freeing such a block raises the size from
    which glibc maps to that of the block (``mallopt``, M_MMAP_THRESHOLD), and the size that it keeps to twice that.
    The block is never touched and costs nothing. Other C libraries ignore it.
    """
    torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
