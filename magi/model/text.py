"""Text as condition tokens: K learned queries read it with it, in two small transformer layers (not in the paper).

Text comes as ``text_BLE``, zeros after its end: of the encoder ``bytes`` E is 1 and a number is a byte of UTF-8 plus
one; of a ``frozen`` one rows are its states. What the queries become without text are the learned null tokens.

Words that matter are found slowly by attention alone, so there is a direct way, too: the sum of what stands in the text
in any order, of bytes their n-grams in a table by their hash (as in fastText, Bojanowski et al., arXiv 1607.04606).
It knows no characters and no tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magi.model.attention import SelfAttention, attention, short_attention
from magi.model.positions import sinusoidal_1d
from magi.model.transformer import Mlp

if TYPE_CHECKING:
    from magi.config import ModelConfig

LAYERS = 2
BYTES = 256
SPACE = ord(" ") + 1
GRAMS = (3, 5)
BUCKETS = 8192


def no_text(config: ModelConfig, batch: int) -> Tensor:
    """text_BLE of ``batch`` clips without text."""
    if config.text_encoder == "bytes":
        return torch.zeros(batch, 1, 1, dtype=torch.long)
    return torch.zeros(batch, 1, config.text_width)


class TextLayer(nn.Module):
    """Attention and MLP, pre-norm: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, config.heads, config.dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.dropout)

    def forward(self, x_BLD: Tensor, attend_B11L: Tensor) -> Tensor:
        """``attend_B11L``: which positions may be attended to."""
        layer = self.attention
        q, k, v = rearrange(layer.qkv(self.norm(x_BLD)), "B L (three h d) -> three B h L d", three=3, h=layer.heads)
        # A text has too few positions for the fused attention of a CPU, whose backward under a mask is slow.
        mix = short_attention if x_BLD.device.type == "cpu" else attention
        mixed = rearrange(mix(q, k, v, attend_B11L), "B h L d -> B L (h d)")
        x_BLD = x_BLD + layer.dropout(layer.proj(mixed))
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


class TextTokens(nn.Module):
    """Text (..., L, E) as condition tokens (..., K, D); L is at most ``text_length``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.bytes = nn.Embedding(BYTES + 1, width) if config.text_encoder == "bytes" else None
        self.states = None
        if config.text_encoder == "frozen":
            self.states = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, width))
        self.grams = nn.Embedding(BUCKETS, width) if config.text_encoder == "bytes" else None
        self.direct = nn.Linear(width, config.text_tokens * width, bias=False)
        self.query_KD = nn.Parameter(torch.empty(config.text_tokens, width))
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("position_LD", sinusoidal_1d(config.text_length, width), persistent=False)
        self.position_LD: Tensor

    @property
    def tables(self) -> list[nn.Embedding]:
        """The tables of bytes and n-grams."""
        return [table for table in (self.bytes, self.grams) if table is not None]

    def forward(self, text: Tensor) -> Tensor:
        text_BLE = text.flatten(0, -3)
        attend_BL = (text_BLE != 0).any(dim=-1)
        if self.bytes is not None:
            assert self.grams is not None
            embedded_BLD = self.bytes(text_BLE.squeeze(-1))
            for number_BL in hashed_grams(text_BLE.squeeze(-1)):
                embedded_BLD = embedded_BLD + self.grams(number_BL)
        else:
            assert self.states is not None
            embedded_BLD = self.states(text_BLE.to(self.query_KD.dtype))
        # Of about unit size for a text of any length.
        count_B1 = attend_BL.sum(dim=1, keepdim=True).clamp(min=1)
        sum_BD = (embedded_BLD * attend_BL[..., None]).sum(dim=1) * count_B1.rsqrt()
        direct_BKD = self.direct(sum_BD).unflatten(-1, self.query_KD.shape)
        embedded_BLD = embedded_BLD + self.position_LD[: text_BLE.shape[1]]
        tokens = len(self.query_KD)
        x_BLD = torch.cat([self.query_KD.expand(len(text_BLE), -1, -1), embedded_BLD], dim=1)
        attend_B11L = torch.cat([attend_BL.new_ones(len(text_BLE), tokens), attend_BL], dim=1)[:, None, None]
        for layer in self.layers:
            x_BLD = layer(x_BLD, attend_B11L)
        return self.norm(x_BLD[:, :tokens] + direct_BKD).unflatten(0, text.shape[:-2])


def hashed_grams(text_BL: Tensor) -> list[Tensor]:
    """Table rows (B, L) of the n-grams around each byte, for each of ``GRAMS``; a text begins and ends with spaces."""
    rows = []
    padded_BL = torch.where(text_BL == 0, SPACE, text_BL)
    for size in GRAMS:
        half = size // 2
        around_BL = F.pad(padded_BL, (half, half), value=SPACE)
        number_BL = torch.full_like(text_BL, size)
        for window_BL in around_BL.unfold(1, size, 1).unbind(-1):
            number_BL = (number_BL * 1_000_003 + window_BL) % 2_147_483_647
        rows.append(number_BL % BUCKETS)
    return rows
