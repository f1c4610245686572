"""Softmax attention along time at one position, the paper's temporal layer (section 3); see ``contract``.

In training under a pattern of slots (``slot_attention``), in sampling to the keys and values of finished frames
(``kv_cache``): plain for any number of new frames, and prepared for one.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from magi.model.attention import SelfAttention, attention
from magi.model.packed_linear import PackedLinear, packed
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.kv_cache import KVCache, LayerCache
from magi.model.temporal.slot_attention import SlotAttention, slot_attention


class TemporalAttention(SelfAttention):
    """Attention along the slots at each position, (B, S, P, D) -> (B, Q, P, D); a ``TemporalMixer``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.mix: SlotAttention = slot_attention

    def forward(self, x_BSPD: Tensor, attend: SlotPattern | Tensor, first_query: int = 0) -> Tensor:
        """Attend from slots ``first_query``.. to all slots, under a pattern or booleans (slots, slots)."""
        if isinstance(attend, SlotPattern):
            mixed_BQPD = self.mix(*self._columns(x_BSPD, first_query), attend, self.heads)
        else:
            q, k, v = self._by_position(x_BSPD)
            mixed_BQPD = self._mixed(q, k, v, attend, len(x_BSPD))[:, first_query:]
        return self.dropout(self.proj(mixed_BQPD))

    def observe(self, x_BTPD: Tensor, layer: LayerCache) -> Tensor:
        """Append frames to the cache; frame i attends to the cache and to frames up to i."""
        q, *k_v = self._by_position(x_BTPD)
        k, v = layer.append(*k_v)
        attend = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(layer.length)
        return self.dropout(self.proj(self._mixed(q, k, v, attend if len(attend) > 1 else None, len(x_BTPD))))

    # What is written counts once the cache advances, so a slot that leaves no trace is an observed one.
    predict = observe

    def new_state(self, layers: int, rows: int, frames: int, like: Tensor) -> KVCache:
        """An empty cache."""
        return KVCache.allocate(layers, rows, self.heads, frames, self.proj.in_features // self.heads, like)

    def prepared(self, dtype: torch.dtype | None, kernels: bool) -> PreparedAttention:
        """For sampling."""
        return PreparedAttention(self, dtype, kernels)

    def _by_position(self, x_BSPD: Tensor) -> Tensor:
        """q, k and v, (3, B P, heads, S, head width)."""
        return rearrange(self.qkv(x_BSPD), "B S P (n h d) -> n (B P) h S d", n=3, h=self.heads)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None, batch: int) -> Tensor:
        return rearrange(attention(q, k, v, attend), "(B P) h Q d -> B Q P (h d)", B=batch)

    def _columns(self, x_BSPD: Tensor, first_query: int) -> tuple[Tensor | None, Tensor]:
        """Query, key and value columns of every slot; or queries from ``first_query`` on, beside keys and values."""
        if first_query == 0:
            return None, self.qkv(x_BSPD)
        # Slots whose output nobody reads give keys and values only.
        width = x_BSPD.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query_BQPD = F.linear(x_BSPD[:, first_query:], weight[:width], bias[:width])
        return query_BQPD, F.linear(x_BSPD, weight[width:], bias[width:])


class PreparedAttention:
    """One new slot of each row against the cache; a ``PreparedMixer``.

    With ``kernels`` the number of cached frames is read on the device.
    """

    def __init__(self, layer: TemporalAttention, dtype: torch.dtype | None, kernels: bool) -> None:
        self.heads, self.any_length = layer.heads, kernels
        self.qkv, self.proj = packed(layer.qkv, dtype), packed(layer.proj, dtype)

    @cached_property
    def keys_and_values(self) -> PackedLinear:
        """``qkv`` without the queries."""
        return self.qkv.split(len(self.qkv.bias) // 3)[1]

    def predict(self, normed: Tensor, layer: LayerCache, rows_M: Tensor | None = None) -> Tensor:
        """Attend to the cache and to the slot itself."""
        return self._attend(self._heads(self.qkv, normed), normed.shape, layer, rows_M)

    def observe(self, normed: Tensor, layer: LayerCache) -> Tensor:
        """The same, and write the slots' keys and values."""
        qkv_R3hd = self._heads(self.qkv, normed)
        change = self._attend(qkv_R3hd, normed.shape, layer)
        layer.write_next(qkv_R3hd[:, 1:])
        return change

    def write(self, normed: Tensor, layer: LayerCache) -> None:
        """Write the slots' keys and values."""
        layer.write_next(self._heads(self.keys_and_values, normed))

    def _heads(self, linear: PackedLinear, normed: Tensor) -> Tensor:
        columns = linear(normed.reshape(-1, normed.shape[-1]))
        return columns.view(len(columns), -1, self.heads, normed.shape[-1] // self.heads)

    def _attend(self, qkv_R3hd: Tensor, shape: torch.Size, layer: LayerCache, rows_M: Tensor | None = None) -> Tensor:
        if self.any_length:
            from magi.model.kernels.cache_attention import read_cache

            mixed_Rhd = read_cache(qkv_R3hd, layer.stored, layer.length_1, rows_M)
        else:
            known = layer.stored[:, : layer.length]
            mixed_Rhd = cached_attention(qkv_R3hd, known if rows_M is None else known[rows_M])
        return self.proj(mixed_Rhd.view(shape))


def cached_attention(qkv_R3hd: Tensor, stored_RT2hd: Tensor) -> Tensor:
    """Attention of one new slot to T finished ones and itself: qkv (R, 3, heads, d), stored (R, T, 2, heads, d).

    One query a sequence: sums, not matrix products, and the new slot's own keys never move.
    """
    # One conversion of all three: operands of two formats are converted at every operation.
    dtype = torch.promote_types(qkv_R3hd.dtype, torch.float32)
    q, own_key, own_value = qkv_R3hd.to(dtype).unbind(1)
    q = q * q.shape[-1] ** -0.5
    past = (q[:, None] * stored_RT2hd[:, :, 0]).sum(-1)
    own = (q * own_key).sum(-1)
    weight = torch.cat([past, own[:, None]], dim=1).softmax(dim=1)[..., None]
    mixed = (weight[:, :-1] * stored_RT2hd[:, :, 1]).sum(1) + weight[:, -1] * own_value
    return mixed.to(qkv_R3hd.dtype)
