"""Random generators that depend on (seed, purpose, index) alone, never on the order of the calls."""

import hashlib

import numpy as np
import torch

from mamltheory.errors import ValueRangeError


def derived_seed(seed: int, purpose: str, *index: int) -> int:
    """63-bit seed for one use of randomness.

    The hash makes streams of different purposes or indices independent for all practical ends, and
    identical on every machine, in every order of evaluation and for every number of workers.
    Raises ValueRangeError for a purpose with a slash together with indices, which another one could spell too.
    """
    if "/" in purpose and index:
        raise ValueRangeError(
            f"purpose is {purpose!r}: with indices it must be free of '/', which separates them"
        )
    key = f"{int(seed)}/{purpose}/" + "/".join(str(int(i)) for i in index)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose, for example ``generator(0, "init", 3)``."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A numpy generator for one purpose; see :func:`generator`."""
    return np.random.default_rng(derived_seed(seed, purpose, *index))
