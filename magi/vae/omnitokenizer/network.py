"""OmniTokenizer's continuous autoencoder as a network: pixels in [-0.5, 0.5] to a posterior, and latents to pixels.

Source: Wang et al., "OmniTokenizer", 2024 (KL variant). Patches of the first frame and of the groups of frames after
it have weights of their own; the encoder mixes over space, then over time, the decoder over time, then over space.
This module knows no file, no uint8 and no normalisation of latents.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from magi.vae.omnitokenizer.attention import LAYER_NORM_EPSILON
from magi.vae.omnitokenizer.shape import OmniShape
from magi.vae.omnitokenizer.transformer import spatial_transformer, temporal_transformer

_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Moments:
    """Mean and log-variance of the posterior, both BTCHW."""

    mean_BTCHW: torch.Tensor
    log_variance_BTCHW: torch.Tensor


class PatchEmbedding(nn.Sequential):
    """LayerNorm, linear map to the width of tokens, LayerNorm."""

    def __init__(self, values: int, width: int) -> None:
        super().__init__(
            nn.LayerNorm(values, eps=LAYER_NORM_EPSILON),
            nn.Linear(values, width),
            nn.LayerNorm(width, eps=LAYER_NORM_EPSILON),
        )


class Encoder(nn.Module):
    """Patches, spatial transformer, temporal transformer."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.patch, self.temporal_patch = shape.patch, shape.temporal_patch
        self.embed_first = PatchEmbedding(shape.first_patch_values, shape.width)
        self.embed_rest = PatchEmbedding(shape.patch_values, shape.width)
        self.spatial = spatial_transformer(shape.encoder_blocks, shape)
        self.temporal = temporal_transformer(shape)

    def forward(self, pixels_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return tokens_BTHWD of pixels_BCTHW: 1 + n tokens in time for 1 + n x temporal patch frames."""
        parts = [self.embed_first(to_patches(pixels_BCTHW[:, :, :1], 1, self.patch))]
        if pixels_BCTHW.shape[2] > 1:
            parts.append(self.embed_rest(to_patches(pixels_BCTHW[:, :, 1:], self.temporal_patch, self.patch)))
        tokens_BTHWD = self.spatial(torch.cat(parts, dim=1))
        return self.temporal(tokens_BTHWD)


class Decoder(nn.Module):
    """Temporal transformer, spatial transformer, a linear map to the pixels of each patch."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.patch, self.temporal_patch = shape.patch, shape.temporal_patch
        self.temporal = temporal_transformer(shape)
        self.spatial = spatial_transformer(shape.decoder_blocks, shape)
        self.pixels_first = nn.Linear(shape.width, shape.first_patch_values)
        self.pixels_rest = nn.Linear(shape.width, shape.patch_values)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return pixels_BCTHW, unbounded."""
        tokens_BTHWD = self.spatial(self.temporal(tokens_BTHWD))
        parts = [from_patches(self.pixels_first(tokens_BTHWD[:, :1]), 1, self.patch)]
        if tokens_BTHWD.shape[1] > 1:
            parts.append(from_patches(self.pixels_rest(tokens_BTHWD[:, 1:]), self.temporal_patch, self.patch))
        return torch.cat(parts, dim=2)


class OmniNetwork(nn.Module):
    """Both halves and the linear maps between tokens and latents."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.to_moments = nn.Linear(shape.width, 2 * shape.channels)
        self.from_latents = nn.Linear(shape.channels, shape.width)
        self.decoder = Decoder(shape)

    def moments(self, pixels_BCTHW: torch.Tensor) -> Moments:
        """Return the posterior of pixels_BCTHW in [-0.5, 0.5]; log-variances are clamped to [-30, 20]."""
        moments_BTHWC = self.to_moments(self.encoder(pixels_BCTHW))
        mean, log_variance = moments_BTHWC.permute(0, 1, 4, 2, 3).chunk(2, dim=2)
        return Moments(mean, log_variance.clamp(*_LOG_VARIANCE_RANGE))

    def pixels(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return pixels_BCTHW, about [-0.5, 0.5] but unbounded, of latents_BTCHW as the posterior gives them."""
        return self.decoder(self.from_latents(latents_BTCHW.permute(0, 1, 3, 4, 2)))


def to_patches(pixels_BCTHW: torch.Tensor, frames: int, side: int) -> torch.Tensor:
    """Return patches_BTHWV; the values of a patch are in the order channel, frame, row, column."""
    return rearrange(pixels_BCTHW, "b c (t f) (h p) (w q) -> b t h w (c f p q)", f=frames, p=side, q=side)


def from_patches(patches_BTHWV: torch.Tensor, frames: int, side: int) -> torch.Tensor:
    """Return pixels_BCTHW; the inverse of ``to_patches``."""
    return rearrange(patches_BTHWV, "b t h w (c f p q) -> b c (t f) (h p) (w q)", f=frames, p=side, q=side)
