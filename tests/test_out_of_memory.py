"""A lack of memory, whoever says so, halves batches and is passed on as it is; other errors are not taken for it."""

import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.accelerator import out_of_memory
from mamltheory.errors import ConfigurationError
from mamltheory.inner_loop import plain_gradient
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.scoring import operator_gradient as gradient
from mamltheory.nas.scoring.candidate_batch import candidate_kernels
from mamltheory.nas.scoring.scorers import CellScorer
from tests.nas.cases import SMALL, WAYS, draw_tasks, shaken, tasks

FEW = Candidates(*((("conv_3x3", "skip_connect"),) * 9,) * 2)
REAL_MESSAGES = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "workspace": RuntimeError("cuDNN: not enough workspace for the convolution"),
    "engine": RuntimeError("FIND was unable to find an engine to execute this computation"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("name", REAL_MESSAGES)
def test_an_allocation_that_fails_in_any_library_is_a_lack_of_memory(name):
    assert out_of_memory(REAL_MESSAGES[name])


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not out_of_memory(error)


def failing_above(most, error):
    def hook(_, args):
        if len(args[0]) > most:
            raise error

    return hook


def test_a_batch_of_candidates_is_halved_for_the_errors_of_other_libraries_too():
    network, x, halved = shaken(2), tasks(0, 1)[0].query_x.double(), []
    scarce = failing_above(len(x), REAL_MESSAGES["cuBLAS"])
    network.cells[-1].fit1[-1].register_forward_pre_hook(scarce)
    found = list(candidate_kernels(network, [FEW] * 3, x, "sum", halved=lambda: halved.append(1)))
    assert (len(found), len(halved)) == (3, 1)
    network.stem[-1].register_forward_pre_hook(failing_above(0, REAL_MESSAGES["cuDNN"]))
    with pytest.raises(
        ConfigurationError, match=r"has \(cuDNN error: CUDNN_STATUS_ALLOC_FAILED\) .* raise it"
    ):
        list(candidate_kernels(network, [FEW], x, "sum"))


def test_another_error_of_a_candidate_is_raised_as_it_is():
    network = shaken(2)
    network.stem[-1].register_forward_pre_hook(failing_above(0, OTHERS[1]))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        list(candidate_kernels(network, [FEW] * 2, tasks(0, 1)[0].query_x.double(), "sum"))


def test_the_samples_of_a_gradient_are_halved_for_the_errors_of_other_libraries_too(monkeypatch):
    asked = []

    def gradients(*arguments):
        asked.append(arguments[-1])
        if arguments[-1] > 3:
            raise REAL_MESSAGES["cuDNN 9"]
        return gradient.OperatorGradients(1.0, dict.fromkeys(FEW.operators(), 0.0))

    monkeypatch.setattr(gradient, "operator_gradients", gradients)
    scorer = gradient.GradientScorer(CellScorer(SMALL, 0, draw_tasks), chunk=6)
    assert scorer.scores(FEW, 0, 0)[None].halvings == 1
    assert asked == [6, 3]


@pytest.mark.parametrize("name", ["allocator", "cuBLAS", "CPU"])
def test_a_kernel_of_a_module_passes_a_lack_of_memory_on_as_it_is(name):
    """It must not look like a network that cannot be differentiated, nor start the slow way."""
    error, calls = REAL_MESSAGES[name], []

    def fail(*_):
        calls.append(1)
        raise error

    network = nn.Sequential(nn.Flatten(), nn.Linear(432, WAYS))
    network[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError) as caught:
        mt.empirical_ntk(network, tasks(0, 1)[0].query_x)
    assert caught.value is error
    assert len(calls) == 1

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        backward = staticmethod(fail)

    class Network(nn.Sequential):
        def forward(self, x):
            return Backward.apply(super().forward(x))

    network, [task] = Network(nn.Flatten(), nn.Linear(432, WAYS)), tasks(0, 1)
    with pytest.raises(RuntimeError) as caught:
        mt.empirical_ntk(network, task.query_x)
    assert caught.value is error
    loss = network(task.support_x).sum
    with pytest.raises(RuntimeError) as caught:
        plain_gradient(lambda _: loss(), dict(network.named_parameters()))
    assert caught.value is error
