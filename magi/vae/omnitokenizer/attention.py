"""The attention of OmniTokenizer: full with rotary positions, causal over time, and in windows with a learnt bias.

Two habits of the released weights are kept, since the weights depend on them: keys and values are computed from the
input before its norm, and the logits of normalised queries and keys are multiplied by a fixed 8. This module knows
tokens in rows (N of them, D channels); which frame or position they are is its caller's business.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

_LOGIT_SCALE = 8.0  # for every head width; not the usual 1 / sqrt(head width)
_NORM_EPSILON = 1e-12
_ROTARY_BASE = 10000.0
LAYER_NORM_EPSILON = 1e-5


class ScaleNorm(nn.Module):
    """LayerNorm over the last axis whose shift was never trained: ``beta`` is a stored buffer, zero as released."""

    beta: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``tokens`` normalised, of the same shape."""
        return F.layer_norm(tokens, self.gamma.shape, self.gamma, self.beta, LAYER_NORM_EPSILON)


class FullAttention(nn.Module):
    """Cosine attention of every token to every token, or to itself and those before it."""

    def __init__(self, width: int, heads: int, head_width: int, causal: bool) -> None:
        """``causal`` is for tokens in time; without it, tokens are a grid and queries and keys are rotated."""
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = ScaleNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_width))
        self.k_scale = nn.Parameter(torch.ones(head_width))

    def forward(self, tokens_BND: torch.Tensor, angles_NJ: torch.Tensor | None = None) -> torch.Tensor:
        """Return the residual branch of tokens_BND; ``angles_NJ``: see ``grid_angles``."""
        queries_BND = self.to_q(self.norm(tokens_BND))
        keys_BND, values_BND = self.to_kv(tokens_BND).chunk(2, dim=-1)  # of the input before its norm
        queries, keys, values = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (queries_BND, keys_BND, values_BND)
        )
        if angles_NJ is not None:
            queries, keys = rotate(queries, angles_NJ), rotate(keys, angles_NJ)
        queries = F.normalize(queries, dim=-1, eps=_NORM_EPSILON) * self.q_scale
        keys = F.normalize(keys, dim=-1, eps=_NORM_EPSILON) * self.k_scale
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal, scale=_LOGIT_SCALE)
        return self.to_out(rearrange(mixed, "b h n d -> b n (h d)"))


def grid_angles(height: int, width: int, head_width: int, device: torch.device) -> torch.Tensor:
    """Return angles_NJ float32 of the ``head_width / 2`` channel pairs of each of ``height x width`` tokens.

    Pairs alternate: the column times a frequency, then the row times the same one; a quarter of ``head_width``
    frequencies, 10000^(-4k / head_width).
    """
    steps = torch.arange(head_width // 4, dtype=torch.float32, device=device)
    frequencies_K = _ROTARY_BASE ** (-4.0 * steps / head_width)
    rows_N = torch.arange(height, device=device).repeat_interleave(width)
    columns_N = torch.arange(width, device=device).repeat(height)
    angles_NKR = torch.stack((columns_N[:, None] * frequencies_K, rows_N[:, None] * frequencies_K), dim=-1)
    return angles_NKR.flatten(1)


def rotate(heads_BHND: torch.Tensor, angles_NJ: torch.Tensor) -> torch.Tensor:
    """Return ``heads_BHND`` with each pair of neighbouring channels turned by its angle, computed in float32."""
    first, second = heads_BHND.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles_NJ.cos(), angles_NJ.sin()
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(heads_BHND.dtype)


class WindowAttention(nn.Module):
    """Attention within windows of ``window x window`` tokens, with a bias learnt for each offset and head."""

    relative_position_index: torch.Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = ScaleNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", window_offsets(window), persistent=False)

    def forward(self, tokens_BHWD: torch.Tensor) -> torch.Tensor:
        """Return the residual branch of tokens_BHWD, whose height and width are multiples of the window."""
        height, width = (side // self.window for side in tokens_BHWD.shape[1:3])
        rows_BND = rearrange(self.norm(tokens_BHWD), "b (h p) (w q) d -> (b h w) (p q) d", p=self.window, q=self.window)
        queries, keys, values = rearrange(self.qkv(rows_BND), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        bias_HNN = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias_HNN.to(queries.dtype))
        rows_BND = self.proj(rearrange(mixed, "b h n d -> b n (h d)"))
        return rearrange(
            rows_BND, "(b h w) (p q) d -> b (h p) (w q) d", h=height, w=width, p=self.window, q=self.window
        )


def window_offsets(window: int) -> torch.Tensor:
    """Return index_NN int64: the row of the bias table for each query (first axis) and key of a window.

    (query row - key row + window - 1) x (2 window - 1) + (query column - key column + window - 1).
    """
    positions_N = torch.arange(window**2)
    rows_N, columns_N = positions_N // window, positions_N % window
    rows_NN = rows_N[:, None] - rows_N + window - 1
    columns_NN = columns_N[:, None] - columns_N + window - 1
    return rows_NN * (2 * window - 1) + columns_NN
