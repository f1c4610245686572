"""The protocol card: what a score depends on besides the model, as JSON with a hash, and the comparison of two scores.

Two numbers are comparable when their cards are equal. The card holds every field of the protocol, the overrides, the
feature network and the hash of its weights, the clip table, the data, how numbers are computed and the versions of what
computes them. The model and its sampling settings stand beside the card, not on it. Knows no networks and no videos.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

import magi
from magi.errors import DataError
from magi.evaluation.networks.features import FeatureNetwork
from magi.evaluation.protocol.protocols import EvaluationProtocol

FORMAT = 1
_I3D, _PLAIN_INPUT, _TORCH_PORT = "i3d-kinetics400-logits", "tats", "eps1e-05"
ARITHMETIC = {
    "features": "float32, no TF32, no autocast",
    "covariance_divisor": "N - 1",
    "trace_of_root": "float64 eigh, cross-checked",
    "quantisation": "round half to even, clamp, uint8",
    "storage": "lossless uint8 safetensors",
}


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
    network: FeatureNetwork,
    data: Mapping[str, Any],
    seed: int,
) -> ProtocolCard:
    """The card of an evaluation: ``data`` is what describes the real clips, ``seed`` that of the run."""
    return ProtocolCard(
        {
            "format": FORMAT,
            "protocol": protocol.model_dump(mode="json"),
            "overrides": dict(overrides),
            "network": {"name": network.name, "sha256": network.hash, "dimension": network.dimension},
            "data": dict(data),
            "seed": seed,
            "arithmetic": ARITHMETIC,
            "versions": {
                "magi": magi.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
                "python": platform.python_version(),
            },
        }
    )


def plain_network(protocol: EvaluationProtocol) -> str:
    """The name of the one network whose distance is called FVD under ``protocol``: I3D with the published weights."""
    words: list[str] = [] if protocol.network_input == _PLAIN_INPUT else [protocol.network_input]
    words += [_TORCH_PORT] if protocol.network_eps == "torch-port" else []
    return f"{_I3D}[{','.join(words)}]" if words else _I3D


def score_name(protocol: EvaluationProtocol, network: FeatureNetwork, overrides: Mapping[str, Any]) -> str:
    """How a Frechet video distance is printed: 'fvd' for I3D of published weights by an unchanged protocol alone.

    Any other network, and every override, stands in brackets: ``fvd[digits3d]``, ``fvd[digits3d; count=64]``.
    """
    inside = [] if network.name == plain_network(protocol) else [network.name]
    inside += [f"{key}={value}" for key, value in sorted(overrides.items())]
    return f"fvd[{'; '.join(inside)}]" if inside else "fvd"


def differing_fields(first: Any, second: Any, path: str = "") -> list[str]:
    """``field: one, other`` for every leaf in which two cards differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = []
        for key in sorted({*first, *second}):
            below = f"{path}.{key}" if path else str(key)
            found += differing_fields(first.get(key), second.get(key), below)
        return found
    return [] if first == second else [f"{path}: {first!r}, {second!r}"]


@dataclass(frozen=True)
class Ranking:
    """Models of comparable results, best score first, with what was ignored in comparing their cards."""

    name: str
    rows: tuple[tuple[str, dict[str, Any]], ...]
    ignored: tuple[str, ...]


def read_result(path: Path) -> dict[str, Any]:
    """A results file, or the one in a folder; ``DataError`` where it is damaged or its card was changed by hand."""
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such result; 'magi evaluate' writes result.json")
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        card, stated = ProtocolCard(dict(result["card"])), result["card_sha256"]
        scores = {str(name): float(model["score"]["value"]) for name, model in result["models"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a result of 'magi evaluate' ({error})") from None
    if card.hash != stated:
        raise DataError(f"{path}: the card does not have the hash that stands beside it; evaluate again")
    if not scores:
        raise DataError(f"{path}: holds no model's score")
    return result


def rank(results: Mapping[str, Mapping[str, Any]], ignore: Sequence[str] = ()) -> Ranking:
    """Models of several results (name -> result), best first.

    ``ValueError`` names every field in which cards differ, but for those in ``ignore`` (as in 'versions.torch').
    """
    (first_name, first), *others = results.items()
    lines, ignored = [], set()
    for name, other in others:
        for line in differing_fields(first["card"], other["card"]):
            field = line.partition(":")[0]
            skipped = next((one for one in ignore if field == one or field.startswith(f"{one}.")), None)
            if skipped is None:
                lines.append(f"{first_name} and {name} differ in {line}")
            else:
                ignored.add(skipped)
    if lines:
        raise ValueError("\n".join([*lines, "results of different protocol cards are not ranked; score them alike"]))
    rows = [
        (f"{name}: {model}" if len(results) > 1 else model, values)
        for name, result in results.items()
        for model, values in result["models"].items()
    ]
    rows.sort(key=lambda row: row[1]["score"]["value"])
    return Ranking(str(first["score_name"]), tuple(rows), tuple(sorted(ignored)))
