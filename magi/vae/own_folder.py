"""The folder of an autoencoder whose network is ours: ``config.json`` and ``model.safetensors``.

The config holds the architecture, the measured statistics of the latents and the hash of the weights, so that two files
of different autoencoders do not pass for one. It knows no architecture.
"""

import json
import os
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from magi.config import Section, explain
from magi.errors import CheckpointError
from magi.weights import load_weights, read_json, read_tensors, weights_hash

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

Shape = TypeVar("Shape", bound=Section)


def save_folder(folder: Path, shape: Section, network: torch.nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` (float32), each beside and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in network.state_dict().items()}
    values = shape.model_dump(mode="json") | {"weights_sha256": weights_hash(state)}
    beside = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(state, beside)
    os.replace(beside, folder / WEIGHTS_FILE)
    beside = folder / f".{CONFIG_FILE}.{os.getpid()}"
    beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, folder / CONFIG_FILE)


def read_shape(folder: Path, kind: type[Shape], what: str, command: str) -> tuple[Shape, str]:
    """The shape in ``config.json`` and the hash that the weights should have.

    ``CheckpointError`` where it is missing, damaged or not that of ``what``, which ``command`` writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a folder that `{command}` wrote")
    values = read_json(path)
    expected_hash = values.pop("weights_sha256", None)
    if values.get("name") != kind.model_fields["name"].default or not isinstance(expected_hash, str):
        raise CheckpointError(f"{path}: not the config of {what}; give a folder that `{command}` wrote")
    try:
        return kind.model_validate(values), expected_hash
    except ValidationError as error:
        raise CheckpointError(explain(error, str(path), kind).splitlines()[0]) from None


def read_weights(folder: Path, network: torch.nn.Module, expected_hash: str) -> None:
    """Load ``model.safetensors`` into ``network``; ``CheckpointError`` for damaged, foreign or exchanged weights."""
    path = folder / WEIGHTS_FILE
    state = read_tensors(path)
    load_weights(network, state, path)
    if weights_hash(state) != expected_hash:
        raise CheckpointError(f"{path}: the weights do not have the hash in {CONFIG_FILE}; copy both files again")
