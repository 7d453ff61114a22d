"""The machine behind the numbers: processor, memory, libraries, and the versions of the peers."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mamltheory.products import product_route
from mamltheory.runtime.device import choose_device, environment

from .catalogue import GROUPS

VERSION_CODE = "from importlib.metadata import version; print(version('neural-tangents'), version('jax'))"


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, memory, C library (its allocator), BLAS and CPU capability of torch, versions, and load."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "c_library": " ".join(platform.libc_ver()),
        "blas": _blas(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **environment(choose_device(device).device, product_route()),
        "threads": 1,
        # Above the number of cores, CPU times are too long, because processes share caches and memory.
        "load_average": round(os.getloadavg()[2], 1),
    }


def peer_versions(tangents_python: Path | None) -> dict[str, str | None]:
    """The version of every peer; None if it is not installed."""
    methods = {method.name: method for group in GROUPS.values() for method in group.methods}
    versions: dict[str, str | None] = {}
    for method in methods.values():
        if method.package is not None:
            versions[method.name] = _version(method.package)
        if method.interpreter is not None:
            versions[method.name] = _tangents(tangents_python)
    return versions


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tangents(python: Path | None) -> str | None:
    if python is None:
        return None
    try:
        done = subprocess.run([str(python), "-c", VERSION_CODE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "{}, jax {}".format(*done.stdout.split()) if done.returncode == 0 else None


def _processor() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _blas() -> str:
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else "unknown"


def missing_peers(versions: Mapping[str, str | None]) -> list[str]:
    """Names of the methods whose peer is not installed."""
    return [name for name, found in versions.items() if found is None]
