"""The small adapter: diffusers' AutoencoderKL in a small configuration, for the user's own videos.

A 2-D autoencoder as the paper's Stable Diffusion one (section 4), with the frames folded into the batch axis. How it is
trained is magi/training/small_vae/trainer.py's.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator

from magi.config import Section
from magi.files import SHIPPED, VAE_FOLDER
from magi.vae.diffusers.adapter import DiffusersVae
from magi.vae.native_folder import load_folder, save_folder
from magi.vae.normalization import Normalization

_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class SmallVaeShape(Section):
    """What ``config.json`` holds: the architecture."""

    name: Literal["small"] = "small"
    channels: int = Field(4, ge=1, description="channels of a latent")
    patch: int = Field(2, ge=1, description="pixels of a side folded into channels first; convolutions there cost most")
    widths: tuple[int, ...] = Field((16, 32, 48), min_length=1, description="channels of each level, finest first")
    layers: int = Field(1, ge=1, description="residual layers a level")
    norm_groups: int = Field(8, ge=1, description="groups of the group norms")

    @property
    def spatial_stride(self) -> int:
        """The patch, doubled by every level but the last."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(width < 1 or width % self.norm_groups for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} must be multiples of norm_groups {self.norm_groups}")
        return self


def build_network(shape: SmallVaeShape, seed: int = 0) -> Any:
    """Return diffusers' AutoencoderKL (untyped) of weights drawn from ``seed``; global generators stay as they are."""
    from diffusers import AutoencoderKL  # takes seconds to import: only where one is built

    levels = len(shape.widths)
    with torch.random.fork_rng(devices=[]):  # diffusers draws from the global generator
        torch.manual_seed(seed)
        network = AutoencoderKL(
            in_channels=3 * shape.patch**2,
            out_channels=3 * shape.patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=shape.widths,
            layers_per_block=shape.layers,
            latent_channels=shape.channels,
            norm_num_groups=shape.norm_groups,
        )
    return network.to(memory_format=torch.channels_last)  # about 1.2 times as fast on a CPU


def pixels_to_network(video_NHWC: torch.Tensor, patch: int) -> torch.Tensor:
    """Return images_NCHW float32 in [-1, 1] of video_NHWC uint8, ``patch`` x ``patch`` pixels folded into channels."""
    blocks_NHWC = rearrange(video_NHWC, "n (h p1) (w p2) c -> n h w (p1 p2 c)", p1=patch, p2=patch)
    return (blocks_NHWC.to(torch.float32) / _HALF_RANGE - 1.0).permute(0, 3, 1, 2)


def network_to_pixels(images_NCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """Return video_NHWC uint8 of images_NCHW in [-1, 1], rounded and clamped; the inverse of the above."""
    pixels = ((images_NCHW.float() + 1.0) * _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "n (p1 p2 c) h w -> n (h p1) (w p2) c", p1=patch, p2=patch)


class SmallVae(DiffusersVae):
    """AutoencoderKL behind the contract; ``encode`` is the posterior mean."""

    name = "small"
    temporal_stride = 1

    def __init__(
        self,
        shape: SmallVaeShape,
        network: Any = None,
        normalization: Normalization | None = None,
        frames_per_batch: int = 64,
    ) -> None:
        """Wrap ``network``, by default a new one; the rest is ``NormalizedVae``'s."""
        self.shape = shape
        super().__init__(build_network(shape) if network is None else network, normalization, frames_per_batch)

    @classmethod
    def load(cls, weights: Path | str, frames_per_batch: int = 64) -> Self:
        """Read what ``save`` wrote, or that of a shipped model; ``CheckpointError`` of one line for any other file."""
        if not str(weights):
            raise ValueError("vae.weights: the small adapter needs a folder that `magi train-vae` wrote, or 'demo'")
        folder = SHIPPED[str(weights)] / VAE_FOLDER if weights in SHIPPED else Path(weights)
        adapter = partial(cls, frames_per_batch=frames_per_batch)
        return load_folder(folder, SmallVaeShape, "magi train-vae", build_network, adapter)

    def save_network(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float32)."""
        save_folder(folder, self.shape, self.network)

    def architecture(self) -> dict[str, Any]:
        """The shape, which says all."""
        return self.shape.model_dump(mode="json")

    def _check_network(self) -> None:
        """Its colours are those of a patch."""

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""
        return self.shape.spatial_stride

    def _to_network(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        return pixels_to_network(video_BTHWC[:, 0], self.shape.patch)

    def _to_video(self, images: torch.Tensor) -> torch.Tensor:
        return network_to_pixels(images, self.shape.patch)[:, None]
