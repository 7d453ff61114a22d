"""Images per second of the training and of a plain DataLoader loop; the numbers are for CUDA, the code for both."""

import os
import time

import pytest
import torch

from mamltheory.fewshot.execution import Execution
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.nas.genotype import published_genotypes
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.rng import numpy_generator
from tests.fewshot.small import SmallNet, noise_data
from tests.reference.fewshot_training_loader import train_steps

ROUNDS = 3


def synchronised(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(network, data, config, device, execution):
    """(images per second of so many steps, warm-up excluded) of this package's training."""
    state = start_training(network, data, config, device, execution)

    def rate(steps):
        nonlocal state
        begun = synchronised(device)
        first = state.step
        state, _ = train_epoch(state, lambda done, _: done == first + steps)
        return steps * config.batch_size / (synchronised(device) - begun)

    return rate


def plain(network, data, config, device, workers, most):
    """The same of the DataLoader loop, in the mode of a training."""
    steps_of = train_steps(network.to(device).train(), data, config, device, most, workers)

    def rate(steps):
        begun = synchronised(device)
        for _ in range(steps):
            next(steps_of)
        return steps * config.batch_size / (synchronised(device) - begun)

    return rate


def medians(rates, warm, steps):
    """Interleaved rounds of all of them after a warm-up each: the median images per second by name."""
    for rate in rates.values():
        rate(warm)
    rounds = [{name: rate(steps) for name, rate in rates.items()} for _ in range(ROUNDS)]
    return {name: sorted(each[name] for each in rounds)[ROUNDS // 2] for name in rates}


def test_both_ways_of_training_are_timed_on_the_cpu_alike():
    data, config = noise_data(), TrainConfig(batch_size=8, epochs=1, milestones=(), drop_path=0.0)
    cpu = torch.device("cpu")
    rates = {
        "ours": ours(SmallNet(), data, config, cpu, Execution()),
        "plain": plain(SmallNet(), data, config, cpu, 0, 20),
    }
    seen = medians(rates, 1, 2)
    assert set(seen) == {"ours", "plain"}
    assert all(rate > 0 for rate in seen.values())


def photographs():
    """Noise of the size of 64 classes of 100 images at 84 × 84: the time does not depend on what they show."""
    random = numpy_generator(0, "benchmark images")
    splits = {}
    for name, classes, images in (("train", 64, 100), ("val", 16, 2), ("test", 20, 2)):
        pixels = random.integers(0, 256, (classes * images, 84, 84, 3), dtype="uint8")
        labels = random.permutation(classes * images) % classes
        splits[name] = ImageSplit(pixels, labels.astype("int64"), tuple(f"{name}{i}" for i in range(classes)))
    return ImageData("noise-84", **splits, mean=(0.47, 0.45, 0.41), std=(0.28, 0.27, 0.28))


def mini_5():
    return derived_network(published_genotypes()[0].genotype, NetworkSettings(), 0)


@pytest.mark.cuda
@pytest.mark.filterwarnings("default")
def test_the_mini_5_network_trains_faster_than_a_plain_float32_loop(measured):
    """Images resident on the GPU, augmented there; the plain loop has a process for each core."""
    cuda, data = torch.device("cuda"), photographs()
    # All rates share one epoch of 100 steps: 10 to warm up and 3 rounds of 20.
    config = {p: TrainConfig(precision=p, milestones=(), epochs=1) for p in ("fp32", "tf32", "bf16", "fp16")}
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    try:
        rates = {p: ours(mini_5(), data, c, cuda, Execution()) for p, c in config.items()}
        rates["fp32, contiguous"] = ours(mini_5(), data, config["fp32"], cuda, Execution(channels_last=False))
        workers = min(8, len(os.sched_getaffinity(0)))
        rates["plain"] = plain(mini_5(), data, config["fp32"], cuda, workers, 100)
        seen = medians(rates, 10, 20)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = False
    for name, rate in seen.items():
        measured(f"images per second, {name}", rate, above=0)
    assert seen["fp32"] > 0.95 * seen["plain"]
    assert max(seen["bf16"], seen["fp16"]) > seen["fp32"]
