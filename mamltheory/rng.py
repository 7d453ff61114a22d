"""Random generators that depend on (seed, purpose, index) alone, never on the order of the calls."""

import hashlib
from numbers import Integral

import numpy as np
import torch

from mamltheory.errors import ValueRangeError


def derived_seed(seed: int, purpose: str, *index: int) -> int:
    """63-bit seed for one use of randomness.

    The seed is a hash. Streams of different purposes or indices are therefore independent for all practical ends,
    and the same on every machine, in every order of evaluation and for every number of workers.

    Args:
        seed: the user's seed.
        purpose: what the random numbers are for; without a slash where there are indices.
        index: whole numbers that tell the uses of one purpose apart.

    Returns:
        A seed for torch or numpy.

    Raises:
        ValueRangeError: something other than whole numbers and a word, or a purpose with a slash and indices, which
            another purpose could spell as well.
    """
    if not isinstance(purpose, str) or not all(isinstance(number, Integral) for number in (seed, *index)):
        raise ValueRangeError(
            f"seed, purpose and index are {seed!r}, {purpose!r} and {index!r}: expected a whole number, a word and "
            "whole numbers"
        )
    if "/" in purpose and index:
        raise ValueRangeError(
            f"purpose is {purpose!r}: with indices it must be free of '/', which separates them"
        )
    key = f"{int(seed)}/{purpose}/" + "/".join(str(int(i)) for i in index)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one use of randomness.

    Args:
        seed: the user's seed.
        purpose: what the random numbers are for.
        index: whole numbers that tell the uses of one purpose apart.
        device: where the generator draws.

    Returns:
        A generator whose stream depends on seed, purpose and index alone.

    Example:
        >>> import torch
        >>> from mamltheory import generator
        >>> first, again = (torch.randn(2, generator=generator(0, "init", 3)) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator(device=device).manual_seed(derived_seed(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A numpy generator for one purpose; see :func:`generator`."""
    return np.random.default_rng(derived_seed(seed, purpose, *index))
