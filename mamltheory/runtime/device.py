"""Where and how to compute: device with its reason, determinism, threads, and a record of all that."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from mamltheory.errors import ConfigurationError


@dataclass(frozen=True)
class Device:
    """A torch device, and why it was chosen."""

    device: torch.device
    reason: str


def choose_device(name: str = "auto") -> Device:
    """Return the torch device of a name and the reason for it, without silent fallback.

    Args:
        name: "cpu", "cuda" or "cuda:N"; "auto" takes CUDA if it is available.

    Raises:
        ConfigurationError: another name, or a CUDA device that does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if count:
            return Device(torch.device("cuda:0"), f"auto: {torch.cuda.get_device_name(0)} is available")
        return Device(torch.device("cpu"), f"auto: no CUDA device is available ({_why_no_cuda()})")
    if name == "cpu":
        return Device(torch.device("cpu"), "asked for")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise ConfigurationError(f"device is {name!r}: expected auto, cpu, cuda or cuda:N")
    index = int(number or 0)
    if index >= count:
        found = f"{count} CUDA device(s), numbered from 0" if count else f"no CUDA device ({_why_no_cuda()})"
        raise ConfigurationError(f"device is {name!r}, but there is {found}: choose another, or auto")
    return Device(torch.device("cuda", index), "asked for")


def _why_no_cuda() -> str:
    return "this torch is built without CUDA" if torch.version.cuda is None else "no usable driver or GPU"


def deterministic(enabled: bool = True) -> None:
    """Make equal settings give equal bits on the same machine and number of threads.

    On CUDA this also keeps float32 convolutions and products in full float32 (no TF32). Call it before
    the first CUDA computation.

    Args:
        enabled: False allows algorithms that are not deterministic.
    """
    if enabled:
        # cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = not enabled
    torch.backends.cuda.matmul.allow_tf32 = False


def set_threads(count: int | None = None) -> int:
    """Set the number of CPU threads, on which floating-point sums depend in the last bits.

    Args:
        count: number of threads; None leaves it as it is.

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
    versions = {package: version(package) for package in ("mamltheory", "torch", "numpy", "scipy")}
    return {
        "python": platform.python_version(),
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
