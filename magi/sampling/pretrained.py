"""Loads a model from where it is (the shipped one, a run, an export, a hub id) and writes exports.

An export is FOLDER/{config.yaml, model.safetensors, README.md, vae/, classes.json, manifest.json}: safetensors, JSON
and YAML alone, so loading an untrusted folder never runs code. The manifest has the hashes of weights and classes. The
config may be edited, so it has none: its last line tells that it is whole. Exports of earlier versions have neither. It
does not know how frames are generated.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from magi.config import Config, VaeConfig
from magi.config_files import dump_config, load_config
from magi.errors import CheckpointError
from magi.files import (
    CARD_FILE,
    CHECKPOINTS_FOLDER,
    CLASSES_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    NORMALIZATION_FILE,
    SHIPPED,
    TEXT_ENCODER_FILE,
    VAE_FOLDER,
    read_text,
    write_text,
)
from magi.model.magi import Magi
from magi.sampling.model_card import model_card
from magi.text.encoder import FrozenChoice
from magi.vae.adapters import load_vae
from magi.vae.contract import VideoAutoencoder, latent_shape
from magi.weights import (
    HUB_ID,
    download,
    load_ema,
    load_weights,
    read_tensors,
    verify_manifest,
    write_manifest,
    write_tensors,
)

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.yaml", "*.md"]
_END = "..."
"""The end of a document in YAML."""


@dataclass(frozen=True)
class Pretrained:
    """A model with everything that it is used with; ``classes`` are names by label, if they are known."""

    model: Magi
    vae: VideoAutoencoder
    config: Config
    classes: tuple[str, ...] | None
    text: FrozenChoice | None = None
    """The frozen text encoder of a model that reads its states."""


def find_model(source: str | Path) -> Path:
    """Folder of a model: 'demo', 'platform' and 'text' are shipped, then local folders, then a hub id ``owner/name``.

    ValueError for something that is none of these; only a name that looks like a hub id reaches for the network.
    """
    shipped = SHIPPED.get(str(source))
    folder = shipped or Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source}: a file; expected the folder of a run or of an export")
    if shipped:
        raise ValueError(f"{folder}: the shipped model is missing from this installation; install magi again")
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise ValueError(f"{source}: no such folder; expected a run, an export, 'demo' or a hub id owner/name")
    return download(source, _HUB_PATTERNS, source)


def load_pretrained(source: str | Path) -> Pretrained:
    """Read a model on the CPU, float32: of a run the averaged (EMA) weights of the newest intact checkpoint.

    Raises ValueError for a source or config that does not fit, CheckpointError for missing or damaged weights.
    """
    folder = find_model(source)
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: neither a run nor an export, it has no {CONFIG_FILE}")
    config = load_config(folder / CONFIG_FILE)
    exported = _is_export(folder)
    # Layers draw initial weights, here only to be overwritten; the global random state is not ours to move.
    with torch.random.fork_rng(devices=[]):
        vae = load_vae(_own_vae(config.vae, folder))
        if not vae.measured:
            raise CheckpointError(f"{folder / VAE_FOLDER}: no {NORMALIZATION_FILE}; copy the whole folder again")
        model = Magi(config.model, latent_shape(vae, config.data))
    if exported:
        load_weights(model, read_tensors(folder / MODEL_FILE), folder / MODEL_FILE)
    else:
        load_weights(model, load_ema(folder, model.state_dict()), folder / CHECKPOINTS_FOLDER)
    model.eval()
    classes = _read_classes(folder / CLASSES_FILE, config.model.classes)
    text = FrozenChoice.read(folder / TEXT_ENCODER_FILE) if config.model.text_encoder == "frozen" else None
    pretrained = Pretrained(model, vae, config, classes, text)
    if exported and (folder / MANIFEST_FILE).exists():
        verify_manifest(folder, _listed_files(pretrained))
    return pretrained


def _listed_files(pretrained: Pretrained) -> list[str]:
    """What the manifest of an export has hashes of."""
    has = {MODEL_FILE: True, CLASSES_FILE: bool(pretrained.classes), TEXT_ENCODER_FILE: pretrained.text is not None}
    return [name for name, there in has.items() if there]


def _is_export(folder: Path) -> bool:
    """Whether a model is an export rather than a run; ``CheckpointError`` for an export that is not whole."""
    if (folder / MANIFEST_FILE).exists():
        path = folder / CONFIG_FILE
        if not read_text(path).rstrip().endswith(f"\n{_END}"):
            raise CheckpointError(f"{path}: cut, its last line '{_END}' is missing; copy it again")
    elif (folder / CHECKPOINTS_FOLDER).exists() or not (folder / CARD_FILE).exists():
        return (folder / MODEL_FILE).exists()
    if not (folder / MODEL_FILE).exists():
        raise CheckpointError(f"{folder / MODEL_FILE}: missing from this export; copy the whole folder again")
    return True


def _own_vae(config: VaeConfig, folder: Path) -> VaeConfig:
    """A run and an export carry their own copy of the autoencoder's weights; without one the config names them."""
    if config.name == "pixel" or not (folder / VAE_FOLDER).is_dir():
        return config
    return config.model_copy(update={"weights": str(folder / VAE_FOLDER), "normalization": ""})


def _read_classes(path: Path, expected: int) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    try:
        names = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: damaged, not readable as JSON; copy it again") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: expected a list of class names")
    if expected and len(names) != expected:
        raise CheckpointError(f"{path}: {len(names)} class names for a model of {expected} classes")
    return tuple(names)


def save_export(folder: Path, pretrained: Pretrained, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Write an export, each file atomically; float16 halves the weight file and is read as float32.

    Paths of this machine (data, autoencoder, text encoder, start) are left out. ValueError for the folder of a run, or
    if a weight does not fit float16.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype: expected float32 or float16, got {dtype!r}")
    if (folder / CHECKPOINTS_FOLDER).exists():
        raise ValueError(f"{folder}: the folder of a run; export to another one")
    kind = torch.float16 if dtype == "float16" else torch.float32
    tensors = {name: tensor.to(kind) for name, tensor in pretrained.model.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"weights do not fit {dtype} (overflow); export float32")
    config = pretrained.config
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": "", "text_states": ""}),
            "vae": config.vae.model_copy(update={"weights": "", "normalization": ""}),
            "training": config.training.model_copy(update={"start_from": ""}),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # of an older export, whose files are replaced one by one
    if config.vae.name != "pixel":
        pretrained.vae.save(folder / VAE_FOLDER)
    if pretrained.classes is not None:
        write_text(folder / CLASSES_FILE, json.dumps(list(pretrained.classes), ensure_ascii=False) + "\n")
    if (text := pretrained.text) is not None:
        hub = text.source if HUB_ID.fullmatch(text.source) and not Path(text.source).exists() else ""
        replace(text, source=hub).write(folder / TEXT_ENCODER_FILE)
    write_config(folder, config)
    write_text(folder / CARD_FILE, model_card(pretrained.model, config, pretrained.vae.id, pretrained.classes, dtype))
    write_tensors(folder / MODEL_FILE, tensors)
    write_manifest(folder, _listed_files(pretrained))


def write_config(folder: Path, config: Config) -> Path:
    """Write the config of a model, with a last line that is missing where the file was cut."""
    write_text(folder / CONFIG_FILE, f"{dump_config(config)}{_END}\n")
    return folder / CONFIG_FILE
