"""What accelerators do differently: products in TF32, separate memory, which runs out in several ways, and uploads.

torch has two interfaces for the precision of float32 products. The older one is ``allow_tf32`` with
``set_float32_matmul_precision``; the newer one is ``fp32_precision`` per backend and operation. A read of the older one
raises an error where the two disagree, and ``torch.backends.cudnn.flags``, which networks may use, is such a read. So
both are set here alike, and both are restored.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

OPERATIONS = [(backend, name) for backend in ("cuda", "mkldnn") for name in ("matmul", "conv", "rnn", "all")]
OPERATIONS.append(("generic", "all"))
"""Backends and operations that have a precision. "mkldnn" computes on CPUs, where it may take bfloat16."""

_get, _put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
_lock = threading.Lock()
_blocks: Counter[bool] = Counter()  # open blocks with TF32, and without

OUT_OF_MEMORY = re.compile(
    r"out of memory"  # torch, and "CUDA error: out of memory" of the driver
    r"|_ALLOC(ATION)?_FAILED"  # cuBLAS, cuDNN, cuSOLVER and cuFFT
    r"|(not enough|insufficient) workspace|unable to find an engine"  # cuDNN without memory for its workspace
    r"|can't allocate memory|not enough memory",  # CPUs
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory."""
    # torch has a class for its own allocator alone: failures of cuBLAS, cuDNN and on CPUs are RuntimeErrors.
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def free_share(device: torch.device | str) -> int:
    """Half of the bytes that are free on a CUDA device; those that torch holds and does not use count as free."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2


def memory_budget(device: torch.device | str, on_cpu: int, processes: int = 1) -> int:
    """Bytes that a computation may hold on a device.

    Sizes of batches follow from it, and the last bits of results from these. It is therefore a power of two, so that
    a little more or less of free memory changes nothing.

    Args:
        device: where to compute.
        on_cpu: the budget on a CPU, whose caches are small and whose memory others need.
        processes: processes that share the device.

    Returns:
        ``on_cpu``, or on CUDA the power of two below each process's part of half of the free bytes.
    """
    if torch.device(device).type != "cuda":
        return on_cpu
    return 1 << max((free_share(device) // processes).bit_length() - 1, 0)


def uploaded(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the host does not wait for the copy from the CPU to a CUDA device."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class _Precision(NamedTuple):
    """Both interfaces: the precision of OPERATIONS, ``cudnn.allow_tf32``, and the name for matrix products."""

    operations: tuple[str, ...]
    cudnn: bool
    matmul: str


_found = _Precision((), False, "")


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """A block in which float32 numbers are multiplied in full precision, or in TF32 where the device has that.

    TF32 has ten bits of mantissa, which drown the least eigenvalues of a kernel. By default torch convolves in it.

    The settings belong to the process. Blocks may be nested, and open in several threads: while one of them asks for
    full precision, all have it. The end of the last block restores what the first one found.

    Args:
        tf32: whether TF32 is allowed.

    Yields:
        Nothing.
    """
    _count(tf32, 1)
    try:
        yield
    finally:
        _count(tf32, -1)


def _count(tf32: bool, change: int) -> None:
    """Counts a block that begins or ends, and sets the precision that the open ones ask for."""
    global _found
    with _lock:
        open_before, full_before = _blocks.total(), _blocks[False]
        if not open_before:
            _found = _read()
        _blocks[tf32] += change
        if not _blocks.total():
            _write(_found)
        elif not open_before or bool(full_before) != bool(_blocks[False]):
            _write(_uniform(not _blocks[False]))


def _uniform(tf32: bool) -> _Precision:
    value, name = ("tf32", "high") if tf32 else ("ieee", "highest")
    return _Precision(tuple(value if place[0] == "cuda" else "ieee" for place in OPERATIONS), tf32, name)


def _write(precision: _Precision) -> None:
    # The older interface comes first, because it changes the newer one. The functions of torch.backends would refuse
    # a change where ``torch.backends.disable_global_flags()`` was called, as torch's own test tools do.
    torch._C._set_cudnn_allow_tf32(precision.cudnn)
    torch.set_float32_matmul_precision(precision.matmul)
    for place, value in zip(OPERATIONS, precision.operations, strict=True):
        _put(*place, value)


def _read() -> _Precision:
    """What is set; the newer interface is not the same afterwards, and must be written."""
    operations = tuple(_own(*place) for place in OPERATIONS)
    # The older interface can be read where the newer one agrees.
    convolves_in_tf32 = _get("cuda", "conv") == "tf32"
    _put("cuda", "rnn", "tf32" if convolves_in_tf32 else "ieee")
    try:
        cudnn = torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        cudnn = not convolves_in_tf32
    for backend in ("cuda", "mkldnn"):
        _put(backend, "matmul", "ieee")
    return _Precision(operations, cudnn, torch.get_float32_matmul_precision())


def _own(backend: str, name: str) -> str:
    """The precision that was set for an operation, "none" where it follows its backend."""
    # torch tells the precision in effect alone. Where the two are equal, a change of the backend's shows which it is.
    above = {"all": ("generic", "all")}.get(name, (backend, "all"))
    value = _get(backend, name)
    if value == "none" or backend == "generic" or value != _get(*above):
        return value
    own_above = _own(*above)
    _put(*above, "ieee" if value == "tf32" else "tf32")
    own = value if _get(backend, name) == value else "none"
    _put(*above, own_above)
    return own
