"""The pixel adapter: space to depth, no weights, exact both ways.

For tests and first steps; the paper uses learned autoencoders (section 4). It knows nothing of training or files
beyond its own small JSON.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import torch
from einops import rearrange

from magi.vae.contract import Posterior, check_latents, check_size, check_video

_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class PixelVae:
    """Every stride x stride block of RGB pixels becomes one latent of 3 * stride^2 channels in [-1, 1]."""

    temporal_stride = 1
    streams = True

    def __init__(self, stride: int = 8) -> None:
        """Choose the side of a block in pixels; ``ValueError`` below 1."""
        if stride < 1:
            raise ValueError(f"vae.pixel_stride {stride} must be at least 1")
        self.spatial_stride = stride

    @property
    def id(self) -> str:
        """``pixel-<stride>``: there are no weights to hash."""
        return f"pixel-{self.spatial_stride}"

    @property
    def channels(self) -> int:
        """3 colours times the pixels of a block."""
        return 3 * self.spatial_stride**2

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for a size in pixels that the stride does not divide."""
        check_size(height, width, self.spatial_stride)

    def latent_frames(self, frames: int) -> int:
        """Every frame is one latent frame."""
        return frames

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32 in [-1, 1] of video_BTHWC uint8; ``ValueError`` for other input."""
        check_video(video_BTHWC, self.spatial_stride)
        s = self.spatial_stride
        blocks = rearrange(video_BTHWC, "b t (h s1) (w s2) c -> b t (s1 s2 c) h w", s1=s, s2=s)
        return blocks.to(torch.float32) / _HALF_RANGE - 1.0

    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return ``encode`` of video_BTHWC uint8 with no spread: nothing is uncertain."""
        mean_BTCHW = self.encode(video_BTHWC)
        return Posterior(mean_BTCHW, torch.zeros_like(mean_BTCHW))

    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8, rounded and clamped to 0..255; the exact inverse of ``encode``."""
        check_latents(latents_BTCHW, self.channels)
        s = self.spatial_stride
        pixels = ((latents_BTCHW.float() + 1.0) * _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "b t (s1 s2 c) h w -> b t (h s1) (w s2) c", s1=s, s2=s)

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8 for each latents_BTCHW: frames do not know each other."""
        return (self.decode(latents_BTCHW) for latents_BTCHW in latents)

    def save(self, folder: Path) -> None:
        """Write ``config.json``, which names the adapter and its stride."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"name": "pixel", "stride": self.spatial_stride}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def to(self, device: torch.device | str) -> Self:
        """Return itself: there is nothing to move."""
        return self
