"""Numbers to check OmniTokenizer's autoencoder by, without its weights.

``tests/data/omnitokenizer_vector.json`` holds outputs of the original forward code (FoundationVision/OmniTokenizer at
commit 701b619, fp32 on a CPU) for weights and inputs that follow from their names by the rule of ``hashed``.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magi.vae.omnitokenizer.attention import window_offsets
from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.released_names import is_window_table, released_name
from magi.vae.omnitokenizer.shape import OmniShape

VECTOR_FILE = Path(__file__).parents[1] / "data" / "omnitokenizer_vector.json"
REAL = OmniShape()
SMALL = OmniShape(
    channels=4,
    patch=4,
    temporal_patch=2,
    width=40,
    heads=4,
    head_width=8,
    encoder_blocks="tw",
    decoder_blocks="tt",
    temporal_depth=2,
    window=2,
)
SHAPES = {"real": REAL, "small": SMALL}


@cache
def vector() -> dict[str, Any]:
    """The file."""
    values: dict[str, Any] = json.loads(VECTOR_FILE.read_text(encoding="utf-8"))
    return values


def hashed(name: str, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``count`` numbers in [-1, 1) that follow from ``name``: a 32-bit mix of the index and of the name's CRC-32."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed / 2.0**31 - 1.0


def weight(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """The tensor that the rule gives to a released name."""
    last = name.rpartition(".")[2]
    if is_window_table(name):
        return window_offsets(math.isqrt(size[0]))
    values = torch.from_numpy(hashed(name, math.prod(size)).reshape(size))
    if last == "beta":
        values = torch.zeros(size)
    elif last == "bias":
        values = 0.1 * values
    elif last in ("gamma", "q_scale", "k_scale") or (last == "weight" and len(size) == 1):
        values = 1 + 0.2 * values
    elif last == "weight":
        values = values * math.sqrt(3 / math.prod(size[1:]))
    return values.float()


def released_shapes(config: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a released checkpoint of the ``real`` or ``small`` configuration."""
    listed = vector()["state_dict"][config]
    return {name: tuple(int(side) for side in size.split()[0].split("x")) for name, size in listed.items()}


def released_tensors(config: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint of that configuration, the unused ones too, by released name."""
    return {name: weight(name, size) for name, size in released_shapes(config).items()}


@cache
def network(config: str) -> OmniNetwork:
    """Our network with the rule's weights, found by their released names."""
    model = OmniNetwork(SHAPES[config]).eval().requires_grad_(False)
    model.load_state_dict(
        {name: weight(released_name(name), tuple(value.shape)) for name, value in model.state_dict().items()}
    )
    return model


def pixels(case: str) -> torch.Tensor:
    """The input of a case as pixels_BCTHW; an image is one frame."""
    size = vector()["cases"][case]["input"]["shape"]
    values = hashed("input", math.prod(size))
    values = 0.1 + 0.002 * values if case == "small_flat_eps" else 0.5 * values
    pixels = torch.from_numpy(values.astype(np.float32)).reshape(size)
    return pixels if pixels.ndim == 5 else pixels[:, :, None]
