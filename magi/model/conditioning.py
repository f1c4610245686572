"""Label, interval and noise level of a clip, as condition tokens and added embeddings (paper section 3).

The noise level is one extra token prepended to every frame; the class is ``class_tokens`` more; the interval is added
to all hidden states. Knows nothing of how the values were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from magi.config import ModelConfig


@dataclass(frozen=True)
class Conditions:
    """What a batch of clips is told: ``interval_B`` (1..vocabulary), ``noise_level_B`` (1..levels), ``label_B``.

    Labels are 0..classes-1, or ``classes`` for the null label; None for a model without classes.
    """

    interval_B: Tensor
    noise_level_B: Tensor
    label_B: Tensor | None = None

    def without_label(self, classes: int) -> Conditions:
        """The same conditions under the null label: the unconditional half of classifier-free guidance."""
        assert self.label_B is not None, "a model without classes has no null label"
        return replace(self, label_B=torch.full_like(self.label_B, classes))

    def concatenate(self, other: Conditions) -> Conditions:
        """Both batches as one."""
        label_B = None
        if self.label_B is not None and other.label_B is not None:
            label_B = torch.cat([self.label_B, other.label_B])
        return Conditions(
            torch.cat([self.interval_B, other.interval_B]),
            torch.cat([self.noise_level_B, other.noise_level_B]),
            label_B,
        )


class Conditioning(nn.Module):
    """Embeds conditions: ``forward`` returns condition tokens (B, K, D) and an added embedding (B, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.noise_level = nn.Embedding(config.noise_levels, config.width)
        self.interval = nn.Embedding(config.interval_vocabulary, config.width)
        # The row after the last class is the null label (MAR's fake latent).
        self.label = nn.Embedding(config.classes + 1, config.width) if config.classes else None

    @property
    def tokens(self) -> int:
        """K, the number of condition tokens a frame."""
        return 1 + (self.config.class_tokens if self.label is not None else 0)

    def forward(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        tokens_BKD = self.noise_level(conditions.noise_level_B - 1).unsqueeze(1)
        if self.label is not None:
            assert conditions.label_B is not None, "a model with classes needs a label, or the null label"
            label_BKD = self.label(conditions.label_B).unsqueeze(1).expand(-1, self.config.class_tokens, -1)
            tokens_BKD = torch.cat([tokens_BKD, label_BKD], dim=1)
        return tokens_BKD, self.interval(conditions.interval_B - 1)
