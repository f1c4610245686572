"""The folder of an autoencoder whose configuration is ours: ``config.json`` and ``model.safetensors``.

The config holds the architecture and the hash of the weights, so that two files of different autoencoders do not pass
for one. The statistics of the latents are in ``normalization.json``; folders of earlier versions have them in the
config. It knows no architecture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from magi.config import Section, validated
from magi.errors import CheckpointError
from magi.files import MODEL_FILE, NORMALIZATION_FILE, write_json
from magi.vae.normalization import Normalization, read_normalization
from magi.vae.normalized import NormalizedVae
from magi.weights import load_weights, read_json, read_tensors, weights_hash, write_tensors

CONFIG_FILE = "config.json"

Shape = TypeVar("Shape", bound=Section)
Vae = TypeVar("Vae", bound=NormalizedVae)


def save_folder(folder: Path, shape: Section, network: torch.nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` (float32), each atomically."""
    state = {name: tensor.float() for name, tensor in network.state_dict().items()}
    write_tensors(folder / MODEL_FILE, state)
    write_json(folder / CONFIG_FILE, shape.model_dump(mode="json") | {"weights_sha256": weights_hash(state)})


def load_folder(
    folder: Path,
    kind: type[Shape],
    command: str,
    build_network: Callable[[Shape], Any],
    adapter: Callable[[Shape, Any], Vae],
) -> Vae:
    """The ``adapter`` of the shape and the weights in ``folder``, with the statistics saved there.

    ``CheckpointError`` for a file that is missing, damaged, exchanged or not of what ``command`` writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a folder that `{command}` wrote")
    values = read_json(path)
    expected_hash = values.pop("weights_sha256", None)
    older = {name: values.pop(f"latents_{name}", ()) for name in ("mean", "std")}
    if values.get("name") != kind.model_fields["name"].default or not isinstance(expected_hash, str):
        raise CheckpointError(f"{path}: not a config that `{command}` writes; give a folder that it wrote")
    shape = validated(kind, values, str(path), CheckpointError)
    state, network = read_tensors(folder / MODEL_FILE), build_network(shape)
    load_weights(network, state, folder / MODEL_FILE)
    if weights_hash(state) != expected_hash:
        raise CheckpointError(f"{folder / MODEL_FILE}: the weights do not have the hash in {CONFIG_FILE}; copy both")
    vae = adapter(shape, network)
    found = _statistics(folder, older, vae.id)
    if found is not None:
        vae.normalize(found)
    return vae


def _statistics(folder: Path, older: dict[str, Any], weights: str) -> Normalization | None:
    if (folder / NORMALIZATION_FILE).is_file():
        return read_normalization(folder / NORMALIZATION_FILE)
    if not older["std"]:
        return None
    values = {"weights": weights, "source": "measured after training", **older}
    return validated(Normalization, values, str(folder / CONFIG_FILE), CheckpointError)
