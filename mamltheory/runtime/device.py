"""Where and how to compute: device with its reason, determinism, threads, and a record of all that."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mamltheory.errors import ConfigurationError
from mamltheory.version import __version__

_own_gpu = 0  # the number of the GPU that "auto" and "cuda" stand for in this process


@dataclass(frozen=True)
class Device:
    """A torch device, and why it was chosen."""

    device: torch.device
    reason: str


def choose_device(name: str = "auto") -> Device:
    """Return the torch device of a name and the reason for it, without silent fallback.

    Args:
        name: "cpu", "cuda" or "cuda:N"; "auto" takes CUDA if it is available. A rank has its own GPU without a
            number (:func:`take_gpu`).

    Raises:
        ConfigurationError: another name, or a CUDA device that does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if count:
            title = torch.cuda.get_device_name(_own_gpu)
            return Device(torch.device("cuda", _own_gpu), f"auto: {title} is available")
        return Device(torch.device("cpu"), f"auto: no CUDA device is available ({_why_no_cuda()})")
    if name == "cpu":
        return Device(torch.device("cpu"), "asked for")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise ConfigurationError(f"device is {name!r}: expected auto, cpu, cuda or cuda:N")
    index = int(number or _own_gpu)
    if index >= count:
        found = f"{count} CUDA device(s), numbered from 0" if count else f"no CUDA device ({_why_no_cuda()})"
        raise ConfigurationError(f"device is {name!r}, but there is {found}: choose another, or auto")
    return Device(torch.device("cuda", index), "asked for")


def take_gpu(local_rank: int) -> None:
    """Make one GPU that of this process, where there are GPUs: ranks of a machine take them in turn."""
    global _own_gpu
    if torch.cuda.is_available():
        _own_gpu = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(_own_gpu)  # otherwise every rank would open a context on the first GPU as well


def _why_no_cuda() -> str:
    return "this torch is built without CUDA" if torch.version.cuda is None else "no usable driver or GPU"


@contextmanager
def deterministic(device: torch.device | str) -> Iterator[None]:
    """A block in which equal settings give equal bits on equal GPUs; on a CPU a number of threads does that.

    It must begin before the first product on the GPU. An operation without a deterministic form is computed with a
    warning.

    Args:
        device: where the block computes.

    Yields:
        Nothing.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    # cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    filled, tries = memory.fill_uninitialized_memory, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=warns or not before)
    # Filling costs a kernel for every new tensor; trials of algorithms may choose another one in every process.
    memory.fill_uninitialized_memory = cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory, cudnn.benchmark = filled, tries


def set_threads(count: int | None = None) -> int:
    """Set the number of CPU threads, on which floating-point sums depend in the last bits.

    Args:
        count: number of threads; None changes nothing.

    Returns:
        The number of threads in use.

    Raises:
        ConfigurationError: count is below 1.
    """
    if count is not None:
        if count < 1:
            raise ConfigurationError(f"threads is {count}: expected at least 1")
        torch.set_num_threads(count)
    return torch.get_num_threads()


def environment(device: torch.device | str = "cpu", products: str | None = None) -> dict[str, object]:
    """What a result depends on apart from its settings: versions, device, threads, commit (None if unknown).

    Args:
        device: where the run computes.
        products: the route of matrix products, on which their last bits depend; None leaves the entry out.

    Returns:
        The entries by name.
    """
    device = torch.device(device)
    versions = {package: version(package) for package in ("numpy", "scipy")}
    return {
        "python": platform.python_version(),
        "torch": str(
            torch.__version__
        ),  # with the build, as in 2.11.0+cu130, which some wheels' metadata lack
        "mamltheory": __version__,  # the metadata of an editable install keep the version of their day
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **({} if products is None else {"products": products}),
        "commit": commit(),
    }


def commit(directory: Path | None = None) -> str | None:
    """The git commit of the checkout of this package, with "+" if it was changed; None without git."""
    directory = Path(__file__).resolve().parents[2] if directory is None else directory
    if not (directory / ".git").exists():  # an installed package may lie inside another project's checkout
        return None
    head = _git(directory, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if changes else head


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
