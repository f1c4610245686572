"""What an autoencoder adapter promises: pixels in, latents of about unit variance out, and back.

Paper section 4 names the autoencoders; which one is used, and every constant of it, stays in this room. This module
knows no adapter, no file and no training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch

from magi.config import DataConfig, LatentShape
from magi.vae.normalization import Normalization


@dataclass(frozen=True, eq=False)
class Posterior:
    """A normal distribution for each latent; of ``posterior`` whitened: about unit variance over the data."""

    mean_BTCHW: torch.Tensor
    std_BTCHW: torch.Tensor
    """Zero where the autoencoder is deterministic."""

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Draw latents_BTCHW; the noise is drawn on the device of ``generator``, whatever the latents lie on."""
        noise_BTCHW = torch.randn(self.mean_BTCHW.shape, generator=generator, device=generator.device)
        return self.mean_BTCHW + self.std_BTCHW * noise_BTCHW.to(self.mean_BTCHW)


class VideoAutoencoder(Protocol):
    """Turns video_BTHWC (uint8 RGB) into latents_BTCHW (float32, about unit variance) and back."""

    @property
    def normalization(self) -> Normalization:
        """The statistics that latents are whitened by."""
        ...

    @property
    def id(self) -> str:
        """Name and weight hash, without statistics; latents on disk carry it."""
        ...

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""
        ...

    @property
    def temporal_stride(self) -> int:
        """Frames a latent frame covers; 1 for a 2-D autoencoder."""
        ...

    @property
    def streams(self) -> bool:
        """Whether ``decode_stream`` yields frames as latents arrive: the decoder never looks at later latents."""
        ...

    def check_frame_size(self, height: int, width: int) -> None:
        """Refuse, with a ``ValueError``, a size in pixels that the autoencoder cannot encode."""
        ...

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of ``frames`` frames; ``ValueError`` for a length the autoencoder cannot encode."""
        ...

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32 of video_BTHWC uint8, the mean of ``posterior``; deterministic, no gradients."""
        ...

    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return the distribution (float32) of the latents of video_BTHWC uint8; deterministic, without gradients."""
        ...

    def posterior_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """As ``posterior``, before whitening: what latents on disk hold."""
        ...

    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8 of latents_BTCHW; deterministic, without gradients."""
        ...

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8, the next frames, for each latents_BTCHW of one latent frame, first frame first.

        Joined along time they are what ``decode`` makes of the whole clip. Where ``streams`` is False, all frames come
        after the last latent.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write what the adapter needs to come back."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns itself."""
        ...


def decode_at_the_end(vae: VideoAutoencoder, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """``decode_stream`` of a decoder that is not causal: wait for all latents_BTCHW, then yield the whole video."""
    waiting = list(latents)
    if waiting:
        yield vae.decode(torch.cat(waiting, dim=1))


def latent_frame_count(frames: int, temporal_stride: int) -> int:
    """1 + n latent frames for 1 + n x ``temporal_stride`` frames; ``ValueError`` for other lengths."""
    if frames < 1 or (frames - 1) % temporal_stride:
        below = max(1, 1 + (frames - 1) // temporal_stride * temporal_stride)
        raise ValueError(
            f"{frames} frames: this autoencoder takes 1 + {temporal_stride} k frames; use {below} or "
            f"{below + temporal_stride} (data.frames, or the frames of a context or a request)"
        )
    return (frames - 1) // temporal_stride + 1


def check_size(height: int, width: int, spatial_stride: int) -> None:
    """Refuse, with a ``ValueError``, a size in pixels that ``spatial_stride`` does not divide."""
    if height % spatial_stride or width % spatial_stride or min(height, width) < 1:
        raise ValueError(
            f"height {height} x width {width}: both must be divisible by the autoencoder's stride {spatial_stride}; "
            f"try {max(1, round(height / spatial_stride)) * spatial_stride} x "
            f"{max(1, round(width / spatial_stride)) * spatial_stride}"
        )


def check_square(height: int, width: int, step: int) -> None:
    """Refuse, with a ``ValueError``, what is no square with a side in pixels that ``step`` divides."""
    if height != width or height < step or height % step:
        side = max(1, round(min(height, width) / step)) * step
        raise ValueError(
            f"height {height} x width {width}: this autoencoder takes squares with a side divisible by {step}; "
            f"try {side} x {side}"
        )


def check_video(video_BTHWC: torch.Tensor, spatial_stride: int) -> None:
    """Refuse, with a ``ValueError``, a tensor that is not uint8 RGB video of a divisible size."""
    if video_BTHWC.dtype != torch.uint8 or video_BTHWC.ndim != 5 or video_BTHWC.shape[-1] != 3:
        raise ValueError(
            f"expected video_BTHWC of uint8 with 3 channels last, got {tuple(video_BTHWC.shape)} of {video_BTHWC.dtype}"
        )
    check_size(video_BTHWC.shape[2], video_BTHWC.shape[3], spatial_stride)


def check_latents(latents_BTCHW: torch.Tensor, channels: int) -> None:
    """Refuse, with a ``ValueError``, a tensor that is not latents with ``channels`` channels."""
    if latents_BTCHW.ndim != 5 or latents_BTCHW.shape[2] != channels or not latents_BTCHW.is_floating_point():
        raise ValueError(
            f"expected floating-point latents_BTCHW with {channels} channels, "
            f"got {tuple(latents_BTCHW.shape)} of {latents_BTCHW.dtype}"
        )


def latent_shape(vae: VideoAutoencoder, config: DataConfig) -> LatentShape:
    """Return the size of an encoded clip of ``config``; ``ValueError`` where the autoencoder cannot encode it."""
    vae.check_frame_size(config.height, config.width)
    return LatentShape(
        frames=vae.latent_frames(config.frames),
        channels=vae.channels,
        height=config.height // vae.spatial_stride,
        width=config.width // vae.spatial_stride,
    )
