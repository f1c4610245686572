"""Synthetic weights that follow from their names alone: the same on every machine, without a file or a generator.

A multiplicative hash of (crc32 of the name, position) gives numbers in [-1, 1]; scaled by fan-in they make a network
whose activations stay around 1, so that an implementation can be compared with another one without the published
weights.
"""

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def hashes(name: str, count: int) -> NDArray[np.uint32]:
    """``count`` 32-bit hashes of (``name``, 0), (``name``, 1), ...; a longer run begins with the shorter one."""
    # 2^32 wraps around in uint32, which the rule intends.
    h = np.arange(count, dtype=np.uint32) * np.uint32(_GOLDEN) + np.uint32(zlib.crc32(name.encode("ascii")))
    h ^= h >> np.uint32(16)
    h *= np.uint32(_MIX_1)
    h ^= h >> np.uint32(13)
    h *= np.uint32(_MIX_2)
    h ^= h >> np.uint32(16)
    return h


def numbers(name: str, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [-1, 1] that belong to ``name``."""
    return hashes(name, count) / 2.0**31 - 1.0


def synthetic_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 weight of a state-dict ``key``.

    Variances are around 1/16, so that the epsilon of a batch norm matters, and its scales differ from 1, so that a
    network that ignores them is noticed.
    """
    u = numbers(key, math.prod(shape))
    if key.startswith("lin"):
        values = 0.1 * (1 + u)
    elif key.endswith("running_var"):
        values = 0.0625 * (1 + 0.5 * u)
    elif key.endswith("running_mean"):
        values = 0.025 * u
    elif key.endswith("bias"):
        values = 0.1 * u
    elif len(shape) == 1:
        values = 1 + 0.2 * u
    else:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        values = u * (bound if key.startswith(("logits.", "fc.", "features.")) else bound / 4)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def fill_synthetic(network: nn.Module) -> None:
    """Give ``network`` the synthetic weights of its own keys, in place."""
    network.load_state_dict({key: synthetic_tensor(key, tuple(t.shape)) for key, t in network.state_dict().items()})
