"""Spatial-temporal blocks: a spatial layer, then a temporal layer, each attention and MLP, pre-norm (section 3).

Knows nothing of tokens, masks or conditions: hidden states in, hidden states out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from magi.model.attention import SpatialAttention, TemporalAttention
from magi.model.kv_cache import KVCache, LayerCache
from magi.model.teacher_forcing import SlotPattern

if TYPE_CHECKING:
    from magi.config import ModelConfig


class Mlp(nn.Sequential):
    """Linear, GELU, linear, dropout."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class Block(nn.Module):
    """One spatial-temporal block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.spatial_norm = nn.LayerNorm(width, eps=1e-6)
        self.spatial_attention = SpatialAttention(width, config.heads, config.dropout)
        self.spatial_mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.spatial_mlp = Mlp(width, hidden, config.dropout)
        self.temporal_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attention = TemporalAttention(width, config.heads, config.dropout)
        self.temporal_mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_mlp = Mlp(width, hidden, config.dropout)

    def forward(
        self,
        x_BSPD: Tensor,
        attend: SlotPattern | Tensor | None,
        first_query: int = 0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        x_BSPD = x_BSPD + self.spatial_attention(self.spatial_norm(x_BSPD))
        x_BSPD = x_BSPD + self.spatial_mlp(self.spatial_mlp_norm(x_BSPD))
        mixed_BQPD = self.temporal_attention(self.temporal_norm(x_BSPD), attend, first_query, cache)
        x_BQPD = x_BSPD[:, first_query:] + mixed_BQPD
        return x_BQPD + self.temporal_mlp(self.temporal_mlp_norm(x_BQPD))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(
        self,
        x_BSPD: Tensor,
        attend: SlotPattern | Tensor | None,
        first_query: int = 0,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run all blocks; returns the slots from ``first_query`` on, (B, S - first_query, P, D).

        Slots before ``first_query`` are read as keys and values only: in the last temporal layer their queries and MLP
        would be dead work, and leaving them out is exact.
        """
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x_BSPD = block(x_BSPD, attend, first_query if i == last else 0, cache.layer(i) if cache else None)
        return x_BSPD
