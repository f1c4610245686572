"""Finds, checks and builds the networks of diffusers' autoencoder classes: folder, single file or hub id.

Only safetensors and JSON are read, so no weights run code; diffusers is imported when a network is
built. Knows no normalisation and no video.
"""

import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magi.errors import CheckpointError
from magi.files import NORMALIZATION_FILE, atomic_write
from magi.vae.adapters import adapter_of_class
from magi.weights import download, load_weights, read_json, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".jit", ".pkl")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([\w./-]+))?")
# Entries that change no latent of the network itself: how large training images were, and normalisations.
_NOT_ARCHITECTURE = {"sample_size", "force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std"}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class WeightFiles:
    """Where an autoencoder lies: ``folder`` is None for a single file."""

    weights: Path
    folder: Path | None


def find_files(name: str, weights: str, single_file: bool = False) -> WeightFiles:
    """Files of the ``weights`` of a config: a local folder, a single safetensors file, then a hub id.

    ``ValueError`` for something that is none of these, ``CheckpointError`` for pickled or missing weights.
    """
    if not weights:
        raise ValueError(f"vae.weights is empty: the {name} adapter needs a folder or a hub id owner/name[/folder]")
    path = Path(weights).expanduser()
    if path.is_file():
        if path.suffix in PICKLES:
            raise CheckpointError(f"{path}: pickled weights are refused, because loading them runs code; "
                                  f"use the safetensors file of the same weights")  # fmt: skip
        if not single_file:
            raise ValueError(f"{path}: a file; the {name} adapter needs a folder with {CONFIG_FILE}")
        return WeightFiles(path, None)
    if not path.is_dir():
        path = _download(weights)
    if not (path / CONFIG_FILE).is_file():
        inner = "; use its folder vae" if (path / "vae" / CONFIG_FILE).is_file() else ""
        raise CheckpointError(f"{path}: no {CONFIG_FILE}; expected the folder of a diffusers autoencoder{inner}")
    if not (path / WEIGHTS_FILE).is_file():
        pickled = sorted(entry.name for entry in path.iterdir() if entry.suffix in PICKLES)
        found = f"; {pickled[0]} is a pickle, which is refused because loading it runs code" if pickled else ""
        raise CheckpointError(f"{path}: no {WEIGHTS_FILE}{found}")
    return WeightFiles(path / WEIGHTS_FILE, path)


def _download(weights: str) -> Path:
    match = _HUB_ID.fullmatch(weights)
    if not match or ".." in weights:
        raise ValueError(f"{weights}: no such folder or file; expected one, or a hub id owner/name[/folder]")
    repository, folder = match[1], match[2] or "."
    names = (CONFIG_FILE, WEIGHTS_FILE, NORMALIZATION_FILE)
    return download(repository, [os.path.normpath(f"{folder}/{name}") for name in names], weights) / folder


def read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """The network's configuration; ``CheckpointError`` for another class, with the adapter that takes it, if any."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    found = values.get("_class_name")
    if found != class_name:
        other = adapter_of_class(str(found))
        hint = f"use --vae.name {other}" if other else "give other weights"
        raise CheckpointError(f"{path}: the config of {found or 'no diffusers class'}, not of {class_name}; {hint}")
    return values


def build_network(class_name: str, values: Mapping[str, Any], source: Path | str = "config") -> Any:
    """A network (untyped) of new weights, global generators as they were; ``CheckpointError`` if there is none."""
    import diffusers

    known = {key: value for key, value in values.items() if not key.startswith("_")}
    try:
        with torch.random.fork_rng(devices=[]):  # the weights are drawn only to be overwritten
            return getattr(diffusers, class_name).from_config(known)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CheckpointError(f"{source}: describes no {class_name} ({reason}); copy the file again") from None


def load_network(
    class_name: str, values: Mapping[str, Any], files: WeightFiles, rename: Callable[[State], State] | None = None
) -> Any:
    """The network of ``values`` with the weights of ``files``, on the CPU in float32; all weights fit, or none is used.

    ``rename`` turns older names of the weights into current ones. ``CheckpointError`` of one line for anything else.
    """
    state = read_tensors(files.weights)
    network = build_network(class_name, values, files.folder / CONFIG_FILE if files.folder else files.weights)
    load_weights(network, state if rename is None else rename(state), files.weights)
    return network.eval().requires_grad_(False)


def architecture(network: Any) -> dict[str, Any]:
    """The entries of a network's configuration that differ from its class's defaults and matter for its latents.

    Defaults are left out so that an entry which a later diffusers adds does not change anyone's identity.
    """
    parameters = inspect.signature(type(network).__init__).parameters
    return {
        key: value
        for key, value in sorted(network.config.items())
        if key in parameters and key not in _NOT_ARCHITECTURE and _plain(value) != _plain(parameters[key].default)
    }


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)  # lists and tuples are one


def save_network(network: Any, folder: Path) -> None:
    """Write ``config.json`` and the safetensors file as diffusers does, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        network.save_pretrained(temporary, max_shard_size="1000GB")
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            with atomic_write(folder / name) as path:
                shutil.move(Path(temporary) / name, path)
