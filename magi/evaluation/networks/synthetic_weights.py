"""Artificial weights and images from names alone: the same numbers on every machine, without a file or a generator.

A multiplicative hash of (crc32 of the name, position) gives numbers in [-1, 1]; scaled by fan-in they make a network
whose activations stay around 1, so that an implementation can be compared with another one without the published
weights, and a protocol can be run from end to end. Scores from such weights mean nothing about videos, and a network
that holds them says so in its name. Knows no network.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
_BATCHES_TRACKED = "num_batches_tracked"


def hashes(name: str, count: int) -> NDArray[np.uint32]:
    """``count`` 32-bit hashes of (``name``, 0), (``name``, 1), ...; a longer run begins with the shorter one."""
    # 2^32 wraps around in uint32, which is what the rule wants.
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


def artificial_tensor(key: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The float32 weight of a state-dict ``key``; seed 0 is the rule as published, other seeds change every name.

    Variances are around 1/16, so that the epsilon of a batch norm matters, and its scales differ from 1, so that a
    network that ignores them is noticed.
    """
    u = numbers(key if seed == 0 else f"{seed}/{key}", math.prod(shape))
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


def fill_artificial(network: nn.Module, seed: int = 0) -> None:
    """Give ``network`` the artificial weights of its own keys, in place."""
    shapes: Mapping[str, Tensor] = network.state_dict()
    network.load_state_dict(
        {
            key: torch.zeros_like(tensor)
            if key.endswith(_BATCHES_TRACKED)
            else artificial_tensor(key, tuple(tensor.shape), seed)
            for key, tensor in shapes.items()
        }
    )


def artificial_video(name: str, frames: int, height: int, width: int) -> Tensor:
    """video_THWC uint8 of colour ramps that drift with time, under noise; a longer one begins with the shorter."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    ramps = (x * (5 + c) + y * (3 + 2 * c) + t * (11 - 3 * c)) % 256
    noise = (hashes(name, ramps.size) >> np.uint32(24)).reshape(ramps.shape)
    return torch.from_numpy(((ramps + noise) >> 1).astype(np.uint8))
