"""The one table of adapters, and the ways to one: the ``vae`` section of a config, or one word of a command.

A new autoencoder is its own file, a row here, and a name in ``VaeConfig``. Sizes that were published are known without
the weights: what a plan and a dry run need. Sources: the model cards of Stable Diffusion 1.4, Cosmos Tokenizer CV4x8x8,
OmniTokenizer and LTX-Video; an adapter reads the same from its weights.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from magi.config import DataConfig, LatentShape, VaeConfig
from magi.files import SHIPPED
from magi.vae.contract import check_square, latent_frame_count
from magi.vae.normalization import read_normalization
from magi.weights import read_json

if TYPE_CHECKING:
    from magi.vae.normalized import NormalizedVae


@dataclass(frozen=True)
class PublishedSize:
    """Channels of a latent, pixels of a side and frames that one covers; the first frame is a latent frame alone."""

    channels: int
    spatial_stride: int
    temporal_stride: int
    square_step: int = 0
    """Where frames must be squares, what divides their side; 0 where they need not."""


@dataclass(frozen=True)
class Adapter:
    """Where the class of an adapter is (imported only when it is asked for), and what is known without weights."""

    place: str
    size: PublishedSize | None = None
    class_name: str = ""
    """Of diffusers, as the ``config.json`` of its weights names it; empty where the network is ours."""

    def load_class(self) -> "type[NormalizedVae]":
        """Import the module and return the class."""
        module, _, name = self.place.partition(":")
        found: type[NormalizedVae] = getattr(import_module(module), name)
        return found


ADAPTERS = {
    "pixel": Adapter("magi.vae.pixel:PixelVae"),
    "small": Adapter("magi.vae.diffusers.small:SmallVae"),
    "sd": Adapter("magi.vae.diffusers.sd:SdVae", PublishedSize(4, 8, 1), "AutoencoderKL"),
    "cosmos": Adapter("magi.vae.diffusers.cosmos:CosmosVae", PublishedSize(16, 8, 4), "AutoencoderKLCosmos"),
    "omni": Adapter("magi.vae.omnitokenizer.adapter:OmniVae", PublishedSize(8, 8, 4, square_step=64)),
    "ltx": Adapter("magi.vae.diffusers.ltx:LtxVae", PublishedSize(128, 32, 8), "AutoencoderKLLTXVideo"),
}


def adapter_of_class(class_name: str) -> str | None:
    """Name of the adapter of one of diffusers' classes."""
    return next((name for name, adapter in ADAPTERS.items() if class_name and adapter.class_name == class_name), None)


def load_vae(config: VaeConfig) -> "NormalizedVae":
    """Return the adapter that ``config`` names; ``ValueError`` or ``CheckpointError`` where its weights do not fit.

    Its statistics are those of ``config.normalization``, else those saved beside the weights, else published ones; if
    there are none, ``measured`` is False and latents are in the units of the network.
    """
    vae = ADAPTERS[config.name].load_class().from_config(config)
    if config.normalization:
        vae.normalize(read_normalization(Path(config.normalization)))
    return vae


def named_vae(word: str) -> VaeConfig:
    """The config of one word of a command: 'pixel', 'pixel:STRIDE', a shipped model, 'NAME:WEIGHTS', or a folder.

    A folder's config.json says which adapter takes it. ``ValueError`` for anything else.
    """
    name, colon, weights = word.partition(":")
    if name == "pixel":
        if colon and not (weights.isdecimal() and int(weights)):
            raise ValueError(f"{word}: expected pixel:STRIDE, as pixel:8")
        return VaeConfig(name="pixel", pixel_stride=int(weights)) if colon else VaeConfig(name="pixel")
    if word in SHIPPED:
        return VaeConfig(name="small", weights=word)
    if name in ADAPTERS:
        if not weights:
            raise ValueError(f"{word}: name the weights too, {name}:FOLDER or {name}:owner/name")
        return VaeConfig.model_validate({"name": name, "weights": weights})
    folder = Path(word).expanduser()
    if not folder.is_dir():
        names = ", ".join(name for name in ADAPTERS if name != "pixel")
        shipped = ", ".join(map(repr, SHIPPED))
        raise ValueError(f"{word}: no such folder; expected one of an autoencoder, {shipped}, 'pixel' or NAME:WEIGHTS "
                         f"with NAME one of {names}")  # fmt: skip
    return VaeConfig.model_validate({"name": _adapter_of(folder), "weights": str(folder)})


def _adapter_of(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; expected the folder of an autoencoder")
    values = read_json(path)
    name = adapter_of_class(str(values.get("_class_name"))) or values.get("name")
    if name == "pixel" or name not in ADAPTERS:
        classes = ", ".join(adapter.class_name for adapter in ADAPTERS.values() if adapter.class_name)
        raise ValueError(
            f"{path}: no autoencoder that is known ({values.get('_class_name') or name or 'no name'}); "
            f"expected one of {classes}, or a folder that `magi train-vae` or `magi vae import` wrote"
        )
    return str(name)


def published_latent(config: VaeConfig, data: DataConfig, patch: int) -> LatentShape | None:
    """The size of an encoded clip, None where only the weights tell; ``ValueError`` for one that cannot be encoded."""
    size = ADAPTERS[config.name].size
    if config.name == "pixel":
        size = PublishedSize(3 * config.pixel_stride**2, config.pixel_stride, temporal_stride=1)
    if size is None:
        return None
    stride = size.spatial_stride
    if data.height % (stride * patch) or data.width % (stride * patch):
        raise ValueError(
            f"data.height {data.height} x data.width {data.width}: both must be divisible by {stride * patch} "
            f"(stride {stride} of vae '{config.name}' x model.patch_size {patch})"
        )
    if size.square_step:
        check_square(data.height, data.width, size.square_step)
    return LatentShape(
        frames=latent_frame_count(data.frames, size.temporal_stride),
        channels=size.channels,
        height=data.height // stride,
        width=data.width // stride,
    )
