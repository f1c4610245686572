"""The small adapter: diffusers' AutoencoderKL in a small configuration, for the user's own videos.

A 2-D autoencoder as the paper's Stable Diffusion one (section 4), with the frames folded into the batch axis. Latents
are normalised by the mean and the standard deviation that were measured for each channel after training. It knows how
to load, save, encode and decode; it does not know how it was trained (magi/training/vae_trainer.py).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from einops import rearrange
from pydantic import Field, model_validator

from magi.config import Section
from magi.vae.contract import Posterior, check_latents, check_size, check_video
from magi.vae.normalization import ChannelStatistics
from magi.vae.own_folder import read_shape, read_weights, save_folder
from magi.weights import weights_hash

_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class SmallVaeShape(Section):
    """What ``config.json`` holds: the architecture and the measured statistics of the latents."""

    name: Literal["small"] = "small"
    channels: int = Field(4, ge=1, description="channels of a latent")
    patch: int = Field(2, ge=1, description="pixels of a side folded into channels first; convolutions there cost most")
    widths: tuple[int, ...] = Field((16, 32, 48), min_length=1, description="channels of each level, finest first")
    layers: int = Field(1, ge=1, description="residual layers a level")
    norm_groups: int = Field(8, ge=1, description="groups of the group norms")
    latents_mean: tuple[float, ...] = Field((), description="of each channel; empty is 0")
    latents_std: tuple[float, ...] = Field((), description="of each channel; empty is 1")

    @property
    def spatial_stride(self) -> int:
        """The patch, doubled by every level but the last."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(width < 1 or width % self.norm_groups for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} must be multiples of norm_groups {self.norm_groups}")
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) not in (0, self.channels) or not all(np.isfinite(values)):
                raise ValueError(f"{name} must be {self.channels} finite numbers, got {list(values)}")
        if any(value <= 0 for value in self.latents_std):
            raise ValueError(f"latents_std must be positive, got {list(self.latents_std)}")
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


class SmallVae:
    """AutoencoderKL behind the contract; ``encode`` is the posterior mean."""

    temporal_stride = 1
    streams = True

    def __init__(self, shape: SmallVaeShape, network: Any = None, frames_per_batch: int = 64) -> None:
        """Wrap ``network``, by default a new one; at most ``frames_per_batch`` frames pass through it at a time."""
        if frames_per_batch < 1:
            raise ValueError(f"vae.frames_per_batch {frames_per_batch} must be at least 1")
        self.shape = shape
        self.frames_per_batch = frames_per_batch
        self.network = (build_network(shape) if network is None else network).eval().requires_grad_(False)
        self._mean_C = torch.tensor(shape.latents_mean or (0.0,) * shape.channels)
        self._std_C = torch.tensor(shape.latents_std or (1.0,) * shape.channels)

    @cached_property
    def id(self) -> str:
        """``small-`` and a hash of the weights, the architecture and the statistics."""
        digest = hashlib.sha256(_shape_json(self.shape).encode())
        digest.update(weights_hash(self.network.state_dict()).encode())
        return f"small-{digest.hexdigest()[:12]}"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.shape.channels

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""
        return self.shape.spatial_stride

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for a size in pixels that the stride does not divide."""
        check_size(height, width, self.spatial_stride)

    def latent_frames(self, frames: int) -> int:
        """Every frame is one latent frame."""
        return frames

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32, normalised, of video_BTHWC uint8; ``ValueError`` for other input."""
        return self.posterior(video_BTHWC).mean_BTCHW

    @torch.no_grad()
    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return the distribution of the normalised latents of video_BTHWC uint8; ``ValueError`` for other input."""
        check_video(video_BTHWC, self.spatial_stride)
        batch, frames = video_BTHWC.shape[:2]
        chunks = [
            self.network.encode(pixels_to_network(chunk_NHWC.to(self._device), self.shape.patch)).latent_dist
            for chunk_NHWC in self._chunks(video_BTHWC.flatten(0, 1))
        ]
        std_C11 = self._std_C[:, None, None]
        mean_NCHW = (torch.cat([chunk.mean for chunk in chunks]).float() - self._mean_C[:, None, None]) / std_C11
        std_NCHW = torch.cat([chunk.std for chunk in chunks]).float() / std_C11
        return Posterior(
            mean_NCHW.contiguous().unflatten(0, (batch, frames)), std_NCHW.contiguous().unflatten(0, (batch, frames))
        )

    @torch.no_grad()
    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8 of normalised latents_BTCHW; ``ValueError`` for another number of channels."""
        check_latents(latents_BTCHW, self.channels)
        batch, frames = latents_BTCHW.shape[:2]
        latents_NCHW = latents_BTCHW.flatten(0, 1).to(self._device, torch.float32)
        latents_NCHW = latents_NCHW * self._std_C[:, None, None] + self._mean_C[:, None, None]
        chunks = [
            network_to_pixels(self.network.decode(chunk).sample, self.shape.patch)
            for chunk in self._chunks(latents_NCHW)
        ]
        return torch.cat(chunks).contiguous().unflatten(0, (batch, frames))

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8 for each latents_BTCHW: frames do not know each other."""
        return (self.decode(latents_BTCHW) for latents_BTCHW in latents)

    @property
    def _device(self) -> torch.device:
        return self._mean_C.device

    def _chunks(self, frames: torch.Tensor) -> Iterator[torch.Tensor]:
        if len(frames) == 0:
            raise ValueError("expected at least one frame, got none")
        return iter(frames.split(self.frames_per_batch))

    def to(self, device: torch.device | str) -> Self:
        """Move the weights and the statistics; returns itself."""
        self.network.to(device)
        self._mean_C, self._std_C = self._mean_C.to(device), self._std_C.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float32), each beside and then renamed."""
        save_folder(folder, self.shape, self.network)

    @classmethod
    def load(cls, folder: Path, frames_per_batch: int = 64) -> "SmallVae":
        """Read what ``save`` wrote; a missing, damaged or foreign file is a one-line ``CheckpointError``."""
        shape, expected_hash = read_shape(folder, SmallVaeShape, "a small autoencoder", "magi train-vae")
        network = build_network(shape)
        read_weights(folder, network, expected_hash)
        return cls(shape, network, frames_per_batch)


def _shape_json(shape: SmallVaeShape) -> str:
    return json.dumps(shape.model_dump(mode="json"), sort_keys=True)


def measured_shape(shape: SmallVaeShape, latents: Iterable[torch.Tensor]) -> SmallVaeShape:
    """Return ``shape`` with the mean and standard deviation of each channel over all of ``latents_NCHW``."""
    statistics = ChannelStatistics(shape.channels)
    for latents_NCHW in latents:
        statistics.add(latents_NCHW)
    return shape.model_copy(update={"latents_mean": statistics.mean, "latents_std": statistics.std})
