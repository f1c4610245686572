"""Where the normalisation of a pretrained autoencoder goes once it is measured, and putting it there.

Knows the files of the adapters; how the numbers are measured is magi/evaluation/vae_reconstruction.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from magi.config import VaeConfig
from magi.vae.adapters import pretrained_class
from magi.vae.contract import VideoAutoencoder
from magi.vae.diffusers.weights import CONFIG_FILE, find_files
from magi.vae.normalization import Normalization, write_normalization
from magi.vae.normalized import PretrainedVae, normalization_path
from magi.weights import read_json


@dataclass(frozen=True)
class NormalizationPlace:
    """The file that holds the normalisation, and whether one is there already."""

    path: Path
    there: bool


def normalization_place(config: VaeConfig, named: Path | None = None) -> NormalizationPlace | None:
    """The place for ``config``; None for an adapter that needs none (pixel) or has its own since its training (small).

    ``named`` is the user's choice of a file. ``ValueError`` where it cannot be chosen, or must be.
    """
    if config.name in ("pixel", "small", "omni"):
        if named is not None:
            raise ValueError(f"{named}: {config.name} keeps its normalisation itself; name no file for it")
        if config.name != "omni":
            return None
        path = Path(config.weights) / CONFIG_FILE
        return NormalizationPlace(path, path.is_file() and bool(read_json(path).get("latents_std")))
    if named is None:
        if not Path(config.weights).expanduser().exists():
            raise ValueError(
                f"{config.name}:{config.weights}: no such folder here; for the weights of a hub, name a file for the "
                f"normalisation"
            )
        adapter = pretrained_class(config.name)
        named = normalization_path(find_files(config.name, config.weights, adapter.single_file))
    return NormalizationPlace(named, named.is_file())


def put_normalization(
    place: NormalizationPlace, vae: VideoAutoencoder, mean: Sequence[float], std: Sequence[float], source: str
) -> str:
    """Write the mean and deviation of each channel of an unmeasured ``vae``; return the id that it has with them."""
    from magi.vae.omnitokenizer.adapter import OmniVae

    if isinstance(vae, OmniVae):
        normalised = vae.renormalised(mean, std)
        normalised.save(place.path.parent)
        return normalised.id
    assert isinstance(vae, PretrainedVae), "this adapter keeps its own normalisation"
    measured = Normalization(weights=vae.weights_id, source=source, mean=tuple(mean), std=tuple(std))
    write_normalization(place.path, measured)
    return type(vae)(vae.network, measured).id
