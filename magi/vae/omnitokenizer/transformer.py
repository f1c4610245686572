"""The transformers of OmniTokenizer: residual layers of a position convolution, attention and a gated feed-forward.

A spatial transformer attends within each latent frame, a temporal one over time at each position. The position
convolution reaches over three latent frames in both. In the temporal transformers it runs over tokens in a tangled
order, which mixes later frames into earlier ones. The released weights were trained so and fail without it: it is
reproduced, and it is why neither half of this autoencoder is causal in time. This module knows no pixels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from magi.vae.omnitokenizer.attention import LAYER_NORM_EPSILON, FullAttention, ScaleNorm, WindowAttention, grid_angles
from magi.vae.omnitokenizer.shape import OmniShape

_KERNEL = 3


class PositionConvolution(nn.Module):
    """A convolution of each channel alone over 3 x 3 x 3 tokens, which looks back in time only (of its own grid)."""

    def __init__(self, width: int, tangled: bool) -> None:
        """``tangled``: see ``tangle``; for temporal transformers."""
        super().__init__()
        self.tangled = tangled
        self.dsconv = nn.Conv3d(width, width, _KERNEL, groups=width)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return the residual branch of tokens_BTHWD: zeros beyond the sides, two zero frames before the first."""
        grid = tangle(tokens_BTHWD) if self.tangled else tokens_BTHWD
        padded_BDTHW = F.pad(grid.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, _KERNEL - 1, 0))
        branch = self.dsconv(padded_BDTHW).permute(0, 2, 3, 4, 1)
        return untangle(branch) if self.tangled else branch


def tangle(tokens_BTHWD: torch.Tensor) -> torch.Tensor:
    """Return tokens counted off with time fastest (position by position), laid out as if time were slowest.

    Same shape; for one latent frame, the identity. Neighbours in the result are neighbours in time, both ways.
    """
    time, height, width = tokens_BTHWD.shape[1:4]
    return rearrange(tokens_BTHWD, "b t h w d -> b (h w t) d").unflatten(1, (time, height, width))


def untangle(tokens_BTHWD: torch.Tensor) -> torch.Tensor:
    """Return tokens in their true places; the inverse of ``tangle``."""
    time, height, width = tokens_BTHWD.shape[1:4]
    return rearrange(tokens_BTHWD.flatten(1, 3), "b (h w t) d -> b t h w d", t=time, h=height, w=width)


class FeedForward(nn.Module):
    """LayerNorm, and a linear pair around a GELU gate; the second half of the first one's outputs is the gate."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.expand = nn.Linear(width, 2 * inner, bias=False)
        self.contract = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the residual branch of ``tokens``, of the same shape."""
        values, gates = self.expand(self.norm(tokens)).chunk(2, dim=-1)
        return self.contract(values * F.gelu(gates))


class SpatialLayer(nn.Module):
    """Position convolution, full attention within each latent frame, feed-forward."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.peg = PositionConvolution(shape.width, tangled=False)
        self.attention = FullAttention(shape.width, shape.heads, shape.head_width, causal=False)
        self.feed_forward = FeedForward(shape.width, shape.feed_forward_width)
        self.head_width = shape.head_width

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        batch, _, height, width = tokens_BTHWD.shape[:4]
        tokens_BTHWD = tokens_BTHWD + self.peg(tokens_BTHWD)
        rows_BND = rearrange(tokens_BTHWD, "b t h w d -> (b t) (h w) d")
        branch_BND = self.attention(rows_BND, grid_angles(height, width, self.head_width, rows_BND.device))
        tokens_BTHWD = tokens_BTHWD + rearrange(branch_BND, "(b t) (h w) d -> b t h w d", b=batch, h=height)
        return tokens_BTHWD + self.feed_forward(tokens_BTHWD)


class WindowLayer(nn.Module):
    """Attention within windows of each latent frame, feed-forward; no position convolution."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.attention = WindowAttention(shape.width, shape.heads, shape.window)
        self.feed_forward = FeedForward(shape.width, shape.feed_forward_width)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        branch_BHWD = self.attention(tokens_BTHWD.flatten(0, 1))
        tokens_BTHWD = tokens_BTHWD + branch_BHWD.unflatten(0, tokens_BTHWD.shape[:2])
        return tokens_BTHWD + self.feed_forward(tokens_BTHWD)


class TemporalLayer(nn.Module):
    """Tangled position convolution, causal attention over time at each position, feed-forward."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.peg = PositionConvolution(shape.width, tangled=True)
        self.attention = FullAttention(shape.width, shape.heads, shape.head_width, causal=True)
        self.feed_forward = FeedForward(shape.width, shape.feed_forward_width)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        height, width = tokens_BTHWD.shape[2:4]
        tokens_BTHWD = tokens_BTHWD + self.peg(tokens_BTHWD)
        branch_BTD = self.attention(rearrange(tokens_BTHWD, "b t h w d -> (b h w) t d"))
        tokens_BTHWD = tokens_BTHWD + rearrange(branch_BTD, "(b h w) t d -> b t h w d", h=height, w=width)
        return tokens_BTHWD + self.feed_forward(tokens_BTHWD)


class OmniTransformer(nn.Module):
    """Layers, then a norm."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm_out = ScaleNorm(width)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        for layer in self.layers:
            tokens_BTHWD = layer(tokens_BTHWD)
        return self.norm_out(tokens_BTHWD)


def spatial_transformer(blocks: str, shape: OmniShape) -> OmniTransformer:
    """Return a transformer of one layer for each letter of ``blocks``: t full, w window attention."""
    return OmniTransformer([SpatialLayer(shape) if kind == "t" else WindowLayer(shape) for kind in blocks], shape.width)


def temporal_transformer(shape: OmniShape) -> OmniTransformer:
    """Return a transformer over time."""
    return OmniTransformer([TemporalLayer(shape) for _ in range(shape.temporal_depth)], shape.width)
