"""Spatial-temporal blocks: a spatial layer, then a temporal layer, each attention and MLP, pre-norm (section 3).

Knows nothing of tokens, masks or conditions: hidden states in, hidden states out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from magi.model.attention import SpatialAttention
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.contract import LayerState, TemporalMixer, TemporalState
from magi.model.temporal.gated_linear import GatedLinearAttention
from magi.model.temporal.softmax import TemporalAttention

if TYPE_CHECKING:
    from magi.config import ModelConfig


class Mlp(nn.Sequential):
    """Linear, GELU, linear, dropout."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


def temporal_mixer(config: ModelConfig) -> TemporalAttention | GatedLinearAttention:
    """The temporal layer that the config names; each is a ``TemporalMixer``."""
    if config.temporal == "gated_linear":
        return GatedLinearAttention(config.width, config.heads, config.dropout, config.state_width)
    return TemporalAttention(config.width, config.heads, config.dropout)


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
        self.temporal_attention = temporal_mixer(config)
        self.temporal_mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_mlp = Mlp(width, hidden, config.dropout)

    def forward(
        self,
        x_BSPD: Tensor,
        attend: SlotPattern | Tensor | None,
        first_query: int = 0,
        past: LayerState | None = None,
        finished: bool = False,
    ) -> Tensor:
        x_BSPD = x_BSPD + self.spatial_attention(self.spatial_norm(x_BSPD))
        x_BSPD = x_BSPD + self.spatial_mlp(self.spatial_mlp_norm(x_BSPD))
        mixer: TemporalMixer = self.temporal_attention
        normed_BSPD = self.temporal_norm(x_BSPD)
        if attend is not None:
            mixed_BQPD = mixer(normed_BSPD, attend, first_query)
        else:
            mixed_BQPD = (mixer.observe if finished else mixer.predict)(normed_BSPD, past)
        x_BQPD = x_BSPD[:, first_query:] + mixed_BQPD
        return x_BQPD + self.temporal_mlp(self.temporal_mlp_norm(x_BQPD))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, x_BSPD: Tensor, attend: SlotPattern | Tensor, first_query: int = 0) -> Tensor:
        """Training: all blocks; returns the slots from ``first_query`` on, (B, S - first_query, P, D).

        ``attend`` is a pattern of slots, or booleans (query slots, key slots). Slots before ``first_query`` are read as
        keys and values only: in the last temporal layer their queries and MLP would be dead work, and leaving them out
        is exact.
        """
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x_BSPD = block(x_BSPD, attend, first_query if i == last else 0)
        return x_BSPD

    def follow(self, x_BTPD: Tensor, past: TemporalState, finished: bool) -> Tensor:
        """Sampling: slots after the frames of ``past``, (B, T, P, D); ``finished`` ones are written there."""
        for i, block in enumerate(self.blocks):
            x_BTPD = block(x_BTPD, None, past=past.layer(i), finished=finished)
        return x_BTPD

    def new_state(self, rows: int, frames: int, like: Tensor) -> TemporalState:
        """An empty state of all temporal layers for ``frames`` frames of ``rows`` = B P rows."""
        mixer = cast(TemporalMixer, self.blocks[0].temporal_attention)
        return mixer.new_state(len(self.blocks), rows, frames, like)
