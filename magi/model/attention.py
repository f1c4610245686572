"""Softmax attention, and the spatial layer: full and bidirectional among the positions of one slot (paper section 3).

What runs along time is in ``temporal``. Attention weights have no dropout, projections have (the fused kernels have
none; MAR uses 0.1 on both).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SHORT_KEYS = 64
"""Up to this many keys, plain matrix products beat the fused attention of a CPU, 2 to 4 times forward and backward."""


def attention(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None = None) -> Tensor:
    """Softmax attention of (..., queries, d) over (..., keys, d); ``attend`` (queries, keys) is True where allowed.

    The one place where a path is chosen: fused attention is the reference, and what runs on a GPU.
    """
    if q.device.type == "cpu" and k.shape[-2] <= SHORT_KEYS:
        return short_attention(q, k, v, attend)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attend)


def short_attention(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None = None) -> Tensor:
    """The same by plain matrix products, in float32 at least: batched products of bfloat16 are slow on a CPU."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        score = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)
        if attend is not None:
            score = score.masked_fill(~attend, -torch.inf)
        return (score.softmax(dim=-1) @ v.to(dtype)).to(q.dtype)


class SelfAttention(nn.Module):
    """The layers that attention in space and along time have."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)


class SpatialAttention(SelfAttention):
    """Attention among the P positions of each slot: (B, S, P, D) -> (B, S, P, D)."""

    def forward(self, x_BSPD: Tensor) -> Tensor:
        # Unbound next to the heads, so that the backward pass writes one tensor in the layout of the linear layer.
        layout = "B S P (three h d) -> (B S) P three h d"
        columns = rearrange(self.qkv(x_BSPD), layout, three=3, h=self.heads).unbind(2)
        mixed = attention(*(part.transpose(1, 2) for part in columns))
        mixed_BSPD = rearrange(mixed, "(B S) h P d -> B S P (h d)", B=x_BSPD.shape[0])
        return self.dropout(self.proj(mixed_BSPD))
