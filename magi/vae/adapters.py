"""From the ``vae`` section of a config, or from one word of a command, to an adapter.

It knows the names of the adapters and where the shipped one lies; nothing of how they work.
"""

from pathlib import Path
from typing import get_args

from magi.config import VaeConfig
from magi.files import DEMO_FOLDER, VAE_FOLDER
from magi.vae.contract import VideoAutoencoder
from magi.vae.diffusers.small import SmallVae
from magi.vae.diffusers.weights import CONFIG_FILE
from magi.vae.normalized import ADAPTERS, PretrainedVae
from magi.vae.pixel import PixelVae
from magi.weights import read_json

NAMES: tuple[str, ...] = get_args(VaeConfig.model_fields["name"].annotation)


def load_vae(config: VaeConfig, unmeasured: bool = False) -> VideoAutoencoder:
    """Return the adapter that ``config`` names; ``ValueError`` or ``CheckpointError`` where its weights do not fit.

    With ``unmeasured``, for `magi vae check`, a pretrained one comes in its own units; otherwise one whose
    normalisation is neither measured nor published is refused.
    """
    if config.name == "pixel":
        if config.weights:
            raise ValueError(f"vae.weights {config.weights!r}: the pixel adapter has no weights; use --vae.name small")
        return PixelVae(config.pixel_stride)
    if config.normalization and config.name in ("small", "omni"):
        raise ValueError(
            f"vae.normalization {config.normalization!r}: the {config.name} adapter keeps its own beside its weights"
        )
    if config.name == "small":
        if not config.weights:
            raise ValueError("vae.weights: the small adapter needs a folder that `magi train-vae` wrote, or 'demo'")
        folder = DEMO_FOLDER / VAE_FOLDER if config.weights == "demo" else Path(config.weights)
        return SmallVae.load(folder, config.frames_per_batch)
    if config.name == "omni":
        return _load_omni(config, unmeasured)
    return pretrained_class(config.name).load(config.weights, config.normalization, config.frames_per_batch, unmeasured)


def _load_omni(config: VaeConfig, unmeasured: bool) -> VideoAutoencoder:
    from magi.vae.omnitokenizer.adapter import OmniVae

    if not config.weights:
        raise ValueError("vae.weights: the omni adapter needs a folder that `magi vae import` wrote")
    vae = OmniVae.load(Path(config.weights), config.frames_per_batch)
    if unmeasured:
        return vae.renormalised((0.0,) * vae.channels, (1.0,) * vae.channels)
    if not vae.shape.latents_std:
        raise ValueError(
            f"{config.weights}: no measured normalisation; measure it with `magi vae check omni:{config.weights} DATA`"
        )
    return vae


def pretrained_class(name: str) -> type[PretrainedVae]:
    """The adapters of diffusers' classes, imported only when one is asked for."""
    if name == "sd":
        from magi.vae.diffusers.sd import SdVae

        return SdVae
    if name == "cosmos":
        from magi.vae.diffusers.cosmos import CosmosVae

        return CosmosVae
    from magi.vae.diffusers.ltx import LtxVae

    return LtxVae


def named_vae(word: str) -> VaeConfig:
    """The config of one word of a command: 'pixel', 'pixel:STRIDE', 'demo', 'NAME:WEIGHTS', or a folder.

    A folder's config.json says which adapter takes it. ``ValueError`` for anything else.
    """
    name, colon, weights = word.partition(":")
    if name == "pixel":
        if colon and not (weights.isdecimal() and int(weights)):
            raise ValueError(f"{word}: expected pixel:STRIDE, as pixel:8")
        return VaeConfig(name="pixel", pixel_stride=int(weights)) if colon else VaeConfig(name="pixel")
    if word == "demo":
        return VaeConfig(name="small", weights="demo")
    if name in NAMES:
        if not weights:
            raise ValueError(f"{word}: name the weights too, {name}:FOLDER or {name}:owner/name")
        return VaeConfig.model_validate({"name": name, "weights": weights})
    folder = Path(word).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{word}: no such folder; expected one of an autoencoder, 'demo', 'pixel' or NAME:WEIGHTS "
                         f"with NAME one of {', '.join(NAMES[1:])}")  # fmt: skip
    return VaeConfig.model_validate({"name": _adapter_of(folder), "weights": str(folder)})


def _adapter_of(folder: Path) -> str:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: no {CONFIG_FILE}; expected the folder of an autoencoder")
    values = read_json(folder / CONFIG_FILE)
    name = ADAPTERS.get(str(values.get("_class_name"))) or values.get("name")
    if name not in ("small", "omni", *ADAPTERS.values()):
        raise ValueError(
            f"{folder / CONFIG_FILE}: no autoencoder that is known ({values.get('_class_name') or name or 'no name'}); "
            f"expected one of {', '.join(ADAPTERS)}, or a folder that `magi train-vae` or `magi vae import` wrote"
        )
    return str(name)
