"""The protocol card: what a score depends on besides the model, as JSON with a hash, and the comparison of two scores.

Two numbers are comparable when their cards are equal. The card holds every field of the protocol, the overrides, the
feature network and the hash of its weights, the clip table, the data, how numbers are computed and the versions of what
computes them. The model and its sampling settings stand beside the card, not on it. Knows no networks and no videos.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL
import torch

import magi
from magi.evaluation.protocol.protocols import EvaluationProtocol

FORMAT = 2
_I3D, _PLAIN_INPUT, _TORCH_PORT = "i3d-kinetics400-logits", "tats", "eps1e-05"
ARITHMETIC = {
    "features": "float32, no TF32, no autocast",
    "covariance_divisor": "N - 1",
    "trace_of_root": "float64 eigh, cross-checked",
    "quantisation": "round half to even, clamp, uint8",
    "storage": "lossless uint8 safetensors",
}


@dataclass(frozen=True)
class NetworkDescription:
    """A network that scores depend on: its name, the hash of its weights, and the number of its features."""

    name: str
    sha256: str
    dimension: int


@dataclass(frozen=True)
class ProtocolCard:
    """Everything that two scores must share; ``values`` is plain JSON."""

    values: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of the values in canonical JSON."""
        return hash_of(self.values)


def hash_of(values: Any) -> str:
    """SHA-256 of plain values as canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_card(
    protocol: EvaluationProtocol,
    overrides: Mapping[str, Any],
    network: NetworkDescription,
    data: Mapping[str, Any],
    seed: int,
) -> ProtocolCard:
    """The card of an evaluation: ``data`` is what describes the real clips, ``seed`` that of the run."""
    return ProtocolCard(
        {
            "format": FORMAT,
            "protocol": protocol.model_dump(mode="json"),
            "overrides": dict(overrides),
            "network": asdict(network),
            "data": dict(data),
            "seed": seed,
            "arithmetic": ARITHMETIC,
            "versions": versions(),
        }
    )


def versions() -> dict[str, str]:
    """Of what computes a score."""
    return {
        "magi": magi.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def plain_network(protocol: EvaluationProtocol) -> str:
    """The name of the one network whose distance is called FVD under ``protocol``: I3D with the published weights."""
    words: list[str] = [] if protocol.network_input == _PLAIN_INPUT else [protocol.network_input]
    words += [_TORCH_PORT] if protocol.network_eps == "torch-port" else []
    return f"{_I3D}[{','.join(words)}]" if words else _I3D


def score_name(protocol: EvaluationProtocol, network: NetworkDescription, overrides: Mapping[str, Any]) -> str:
    """How a score is printed: 'fvd' for I3D of published weights by an unchanged protocol alone, or 'ground truth'.

    Any other network, and every override, stands in brackets: ``fvd[digits3d]``, ``fvd[digits3d; count=64]``.
    """
    inside = [] if protocol.ground_truth or network.name == plain_network(protocol) else [network.name]
    inside += [f"{key}={value}" for key, value in sorted(overrides.items())]
    name = "ground truth" if protocol.ground_truth else "fvd"
    return f"{name}[{'; '.join(inside)}]" if inside else name


def differing_fields(first: Any, second: Any, path: str = "") -> list[str]:
    """``field: one, other`` for every leaf in which two cards differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = []
        for key in sorted({*first, *second}):
            below = f"{path}.{key}" if path else str(key)
            found += differing_fields(first.get(key), second.get(key), below)
        return found
    return [] if first == second else [f"{path}: {first!r}, {second!r}"]
