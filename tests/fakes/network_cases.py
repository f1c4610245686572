"""Expected numbers of the feature networks on synthetic weights, from independent implementations, and how to compare.

``tests/data/feature_networks.json`` names its sources. Statistics are of the float32 output, taken in float64.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from magi.evaluation.networks.inception import Inception
from magi.evaluation.networks.load import InceptionFeatures, LpipsDistance
from magi.evaluation.networks.lpips import Lpips, LpipsTrunk
from tests.fakes.synthetic_weights import fill_synthetic, hashes, numbers

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "feature_networks.json").read_text())


def filled(network: nn.Module) -> Any:
    """``network`` with synthetic weights."""
    fill_synthetic(network)
    return network.eval()


def synthetic_inception() -> InceptionFeatures:
    """FID's Inception with synthetic weights; its name says so."""
    return InceptionFeatures(filled(Inception()), "synthetic", "synthetic")


def synthetic_lpips(trunk: LpipsTrunk) -> LpipsDistance:
    """LPIPS with synthetic weights; its name says so."""
    return LpipsDistance(filled(Lpips(trunk)), "synthetic", "synthetic")


def synthetic_video(name: str, frames: int, height: int, width: int) -> Tensor:
    """video_THWC uint8 of colour ramps that drift with time, under noise; a longer one begins with the shorter."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    ramps = (x * (5 + c) + y * (3 + 2 * c) + t * (11 - 3 * c)) % 256
    noise = (hashes(name, ramps.size) >> np.uint32(24)).reshape(ramps.shape)
    return torch.from_numpy(((ramps + noise) >> 1).astype(np.uint8))


def assert_like(output: Tensor, expected: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """The output has the expected shape, statistics, first values and position-sensitive checksum."""
    assert list(output.shape) == expected["shape"]
    values = output.double().flatten()
    first = torch.tensor(expected.get("first16", expected.get("first4")), dtype=torch.float64)
    found = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    for name, value in found.items():
        if name in expected:
            assert abs(float(value) - expected[name]) <= tolerance, f"{name} {float(value)}, not {expected[name]}"
    torch.testing.assert_close(values[: len(first)], first, rtol=0, atol=tolerance)
    # Sums of n numbers whose errors do not all have one sign.
    root = values.numel() ** 0.5
    probe = float(values @ torch.from_numpy(numbers("probe", values.numel())))
    assert abs(probe - expected["probe"]) <= tolerance * root, f"probe {probe}, not {expected['probe']}"
    if "l2" in expected:
        assert abs(float(values.norm()) - expected["l2"]) <= tolerance * root
