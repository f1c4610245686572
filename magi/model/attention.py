"""Self-attention inside a frame and along time (paper section 3).

Spatial attention is full and bidirectional among the positions of one slot. Temporal attention runs along the slots
at one position: in training under a pattern of slots (``slot_attention``), in sampling over a cache, under a boolean
mask. Attention weights have no dropout, projections have (the fused kernels have none; MAR uses 0.1 on both).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magi.model.kv_cache import LayerCache
from magi.model.slot_attention import SlotAttention, slot_attention
from magi.model.teacher_forcing import SlotPattern

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
    """The layers that both directions of attention have."""

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


class TemporalAttention(SelfAttention):
    """Attention along the slots at each position, (B, S, P, D) -> (B, Q, P, D) with Q = S - first_query."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.mix: SlotAttention = slot_attention

    def forward(
        self,
        x_BSPD: Tensor,
        attend: SlotPattern | Tensor | None,
        first_query: int = 0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend from slots ``first_query``.. to all slots, or with a cache to its frames and then these slots.

        ``attend`` is a pattern of slots (in training), or booleans (slots, keys), True where allowed; None allows
        everything.
        """
        if isinstance(attend, SlotPattern):
            assert cache is None, "a pattern is of the slots themselves"
            mixed_BQPD = self.mix(*self._columns(x_BSPD, first_query), attend, self.heads)
        else:
            mixed_BQPD = self._attend(x_BSPD, attend, first_query, cache)
        return self.dropout(self.proj(mixed_BQPD))

    def _attend(self, x_BSPD: Tensor, attend: Tensor | None, first_query: int, cache: LayerCache | None) -> Tensor:
        query_BQPD, projected_BSPE = self._columns(x_BSPD, first_query)
        layout, parts = "B S P (n h d) -> n (B P) h S d", 3 if query_BQPD is None else 2
        q, *k_v = rearrange(projected_BSPE, layout, n=parts, h=self.heads)
        if query_BQPD is not None:
            k_v, (q,) = [q, *k_v], rearrange(query_BQPD, layout, n=1, h=self.heads)
        k, v = cache.append(*k_v) if cache is not None else k_v
        mixed = attention(q, k, v, None if attend is None else attend[first_query:])
        return rearrange(mixed, "(B P) h Q d -> B Q P (h d)", B=x_BSPD.shape[0])

    def _columns(self, x_BSPD: Tensor, first_query: int) -> tuple[Tensor | None, Tensor]:
        """Query, key and value columns of every slot; or queries from ``first_query`` on, beside keys and values."""
        if first_query == 0:
            return None, self.qkv(x_BSPD)
        # Slots whose output nobody reads give keys and values only.
        width = x_BSPD.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query_BQPD = F.linear(x_BSPD[:, first_query:], weight[:width], bias[:width])
        return query_BQPD, F.linear(x_BSPD, weight[width:], bias[width:])
