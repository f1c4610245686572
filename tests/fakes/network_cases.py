"""Expected numbers of the feature networks on artificial weights, from independent implementations, and how to compare.

``tests/data/feature_networks.json`` names its sources. Statistics are of the float32 output, taken in float64.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magi.evaluation.networks.synthetic_weights import fill_artificial, numbers

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "feature_networks.json").read_text())


def filled(network: nn.Module, seed: int = 0) -> Any:
    """``network`` with artificial weights."""
    fill_artificial(network, seed)
    return network.eval()


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
