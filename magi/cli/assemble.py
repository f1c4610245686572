"""From a config to the parts of a run, checked against each other before anything expensive happens.

The only place where data, autoencoder and model meet. Knows no options and no loop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from magi.cli.progress import Report
from magi.config import Config, LatentShape

if TYPE_CHECKING:
    from magi.data.clips import ClipDataset
    from magi.data.latents import LatentDataset
    from magi.model.magi import Magi
    from magi.vae.contract import VideoAutoencoder


def autoencoder(config: Config) -> "tuple[VideoAutoencoder, LatentShape]":
    """The autoencoder of a config and the size of its latents; a ``ValueError`` where sizes do not fit together."""
    from magi.vae.contract import latent_shape
    from magi.vae.load import load_vae

    vae = load_vae(config.vae)
    data, stride = config.data, vae.spatial_stride * config.model.patch_size
    if data.height % stride or data.width % stride:
        raise ValueError(
            f"data.height {data.height} x data.width {data.width}: both must be divisible by {stride} "
            f"(stride {vae.spatial_stride} of vae '{config.vae.name}' x model.patch_size {config.model.patch_size})"
        )
    latent = latent_shape(vae, data)
    if latent.frames != config.model.frames:
        raise ValueError(
            f"model.frames {config.model.frames}: a clip of data.frames {data.frames} has {latent.frames} latent "
            f"frames; set --model.frames {latent.frames}"
        )
    return vae, latent


def build_model(config: Config, latent: LatentShape) -> "Magi":
    """The model with fresh weights; the same seed gives the same weights in every process."""
    import torch

    from magi.model.magi import Magi

    return Magi(config.model, latent, torch.Generator().manual_seed(config.training.seed))


def count_parameters(config: Config, latent: LatentShape) -> int:
    """Parameters of a config's model, counted without memory for them."""
    import torch

    from magi.model.magi import Magi

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Magi(config.model, latent).parameters())


def open_data(config: Config, vae_id: str, report: Report | None) -> "ClipDataset | LatentDataset":
    """The clips of ``data.root``, a folder of videos (indexed if it is not yet) or of latents.

    ``ValueError`` where the number of classes is not the model's.
    """
    from magi.data.clips import ClipDataset
    from magi.data.index import open_index
    from magi.data.latents import LatentDataset, is_latents

    root, seed = Path(config.data.root), config.training.seed
    if not config.data.root or not root.is_dir():
        missing = f"{root}: no such folder" if config.data.root else "data.root is empty"
        raise ValueError(f"{missing}; name a folder of videos with --data.root, or write one: magi data digits {root}")
    if is_latents(root):
        latents = LatentDataset(root, config.data, seed, vae_id)
        check_classes(config, latents.classes)
        return latents
    index = open_index(config.data, report)
    check_classes(config, index.classes)
    return ClipDataset(index, config.data, seed)


def class_names(dataset: "ClipDataset | LatentDataset") -> tuple[str, ...]:
    """Names of the labels of a dataset."""
    from magi.data.latents import LatentDataset

    return dataset.classes if isinstance(dataset, LatentDataset) else dataset.index.classes


def check_classes(config: Config, classes: Sequence[str]) -> None:
    """A model with classes needs exactly those of the data; one without classes takes any data."""
    wanted = config.model.classes
    if wanted and len(classes) != wanted:
        found = f"{len(classes)} class folders ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
        raise ValueError(
            f"model.classes {wanted}: {config.data.root} has {found if classes else 'no class folders'}; "
            f"set --model.classes {len(classes)}"
        )


def summary(config: Config, latent: LatentShape, dataset: "ClipDataset | LatentDataset") -> list[str]:
    """What would be trained, on what, for how long."""
    training = config.training
    too_short = f", {dataset.too_short} videos are too short" if dataset.too_short else ""
    clips = training.steps * training.batch
    return [
        f"model     {count_parameters(config, latent):,} parameters, {latent.frames} frames of "
        f"{latent.channels} x {latent.height} x {latent.width} latents",
        f"data      {len(dataset)} videos, {len(class_names(dataset))} classes{too_short}",
        f"training  {training.steps} steps of {training.batch} clips = {clips:,} clips, "
        f"{clips / len(dataset):.1f} passes over the videos",
    ]
