"""Keyed random numbers, without state: a pure function of (seed, number, purpose), so that any can be drawn alone.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
chained over the key; a generator object for each clip would cost twenty times as much. Where many numbers are drawn
at once, ``numpy_generator`` and ``torch_generator`` make a generator for a key. This module knows no clips.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# Keep draws for different purposes apart: all are keyed by (seed, number).
INTERVAL_KEY, START_KEY, EPOCH_KEY, POSTERIOR_KEY, RECORDED_KEY, ENCODED_KEY, CAPTIONED_KEY, PROMPT_KEY = range(1, 9)
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def bits(*key: int) -> int:
    """64 random bits, a pure function of the key (integers >= 0, taken modulo 2^64)."""
    state = len(key)
    for number in key:
        state = (state + _GOLDEN + number) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def integer(low: int, high: int, *key: int) -> int:
    """An integer of low..high, both included; uniform up to (high - low) / 2^64."""
    return low + (bits(*key) * (high - low + 1) >> 64)


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of 0..count-1; it costs a generator, so one an epoch and not one a sample."""
    return numpy_generator(*key).permutation(count)


def numpy_generator(*key: int) -> np.random.Generator:
    """A generator of NumPy for a key of integers >= 0; neighbouring keys share nothing (``SeedSequence``)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that mixes all of ``key``, so that neighbouring keys share nothing."""
    text = " ".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of PyTorch for a key of integers and words."""
    import torch  # the data pipeline needs none

    return torch.Generator().manual_seed(seed_of(*key))


def posterior_noise(shape: tuple[int, ...], seed: int, sample: int) -> Any:
    """A float32 tensor on the CPU, standard normal: what a clip's latents are drawn from its posterior with.

    The same for a clip of videos and of latents on disk, so training sees the same either way.
    """
    import torch  # clips of videos need none

    return torch.randn(shape, generator=torch.Generator().manual_seed(bits(seed, sample, POSTERIOR_KEY) >> 1))
