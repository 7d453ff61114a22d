"""A CUDA device for machines without one: what a program does with it can be seen, and is checked on every change.

Within ``fake_cuda()`` tensors may be put on "cuda". They say that they are on ``cuda:0``, compute on the CPU, and so
have the CPU's values. What CUDA refuses is refused: operands on two devices (indices and 0-dimensional tensors of the
CPU excepted, as on CUDA), ``numpy()``, generators of the other device, and, under torch's deterministic algorithms,
operations that have no deterministic form. Every launch, every wait of the host (``item()``, ``cpu()``, ``bool()``,
``nonzero``, ...) and every upload is counted, waits and uploads with the line of the package that caused them, and
uploads that the host waits for once more as ``blocking``:

>>> import torch
>>> from tests.fake_cuda import fake_cuda
>>> with fake_cuda() as card:
...     x = torch.ones(3, device="cuda")
...     x.device, (2 * x).sum().item(), card.launches["mul"], card.waits.total()
(device(type='cuda', index=0), 6.0, 1, 1)

It works by a subclass of tensors that hold one of the CPU, on a device that torch knows by name and has no kernels for,
with a mode below autograd that computes and a mode above it that translates names. Only names of torch that exist from
2.11 to 2.13 are used.

It cannot show: rounding (but TF32's, with ``tf32=True``), what cuDNN, cuBLAS and cuSOLVER do, atomics, streams, memory,
NCCL, and random numbers of the device (they are the CPU's). Optimisers take their loop over parameters instead of
CUDA's kernels for lists of tensors, so that they launch more than on a real device.
"""

from tests.fake_cuda.device import fake_cuda
from tests.fake_cuda.tensors import Card, CardError, CardTensor

__all__ = ["Card", "CardError", "CardTensor", "fake_cuda"]
