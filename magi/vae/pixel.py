"""The pixel adapter: space to depth, no weights, exact both ways.

For tests and first steps; the paper uses learned autoencoders (section 4).
"""

from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from torch import nn

from magi.config import VaeConfig
from magi.files import write_json
from magi.vae.contract import Posterior
from magi.vae.normalized import NormalizedVae

_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class PixelVae(NormalizedVae):
    """Every stride x stride block of RGB pixels becomes one latent of 3 * stride^2 channels in [-1, 1]."""

    name = "pixel"
    fixed = True
    temporal_stride = 1
    spatial_stride = 0  # of an instance; here it stands for the abstract property

    def __init__(self, stride: int = 8) -> None:
        """Choose the side of a block in pixels; ``ValueError`` below 1."""
        if stride < 1:
            raise ValueError(f"vae.pixel_stride {stride} must be at least 1")
        self.spatial_stride = stride
        super().__init__(nn.Identity())

    @classmethod
    def from_config(cls, config: VaeConfig) -> Self:
        """The adapter of ``vae.pixel_stride``; ``ValueError`` where weights are named."""
        if config.weights:
            raise ValueError(f"vae.weights {config.weights!r}: the pixel adapter has no weights; use --vae.name small")
        return cls.load(config.pixel_stride)

    @classmethod
    def load(cls, weights: int, frames_per_batch: int = 64) -> Self:
        """The adapter of a stride: there are no weights."""
        return cls(weights)

    @property
    def id(self) -> str:
        """``pixel-<stride>``: there are no weights to hash."""
        return f"pixel-{self.spatial_stride}"

    @property
    def channels(self) -> int:
        """3 colours times the pixels of a block."""
        return 3 * self.spatial_stride**2

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return self._mean_C11.device if hasattr(self, "_mean_C11") else torch.device("cpu")

    def encode_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Nothing is uncertain: the standard deviation is 0."""
        s = self.spatial_stride
        blocks = rearrange(video_BTHWC, "b t (h s1) (w s2) c -> b t (s1 s2 c) h w", s1=s, s2=s)
        mean_BTCHW = blocks.to(torch.float32) / _HALF_RANGE - 1.0
        return Posterior(mean_BTCHW, torch.zeros_like(mean_BTCHW))

    def decode_raw(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Rounded and clamped to 0..255; the exact inverse of ``encode_raw``."""
        s = self.spatial_stride
        pixels = ((latents_BTCHW + 1.0) * _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "b t (s1 s2 c) h w -> b t (h s1) (w s2) c", s1=s, s2=s)

    def architecture(self) -> dict[str, Any]:
        """The stride is all there is."""
        return {"name": self.name, "stride": self.spatial_stride}

    def save_network(self, folder: Path) -> None:
        """Write ``config.json``, which names the adapter and its stride."""
        write_json(folder / "config.json", self.architecture())
