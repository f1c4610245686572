"""Conditions of a clip, constant or one a frame, as condition tokens and added embeddings (paper section 3).

The noise level is one extra token prepended to every frame; the class is ``class_tokens`` more; the interval is added
to all hidden states. A new condition, such as an action, is a field of ``Conditions``, its embedding in
``Conditioning``, and its null value in ``Conditions.null``; everything else passes conditions on as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from magi.config import ModelConfig


@dataclass(frozen=True)
class Conditions:
    """Conditions of B clips: ``interval_B`` (1..vocabulary), ``noise_level_B`` (1..levels), ``label_B``.

    Labels are 0..classes-1, or ``classes`` for the null label; None for a model without classes. Each field is (B,),
    constant over the clip, or (B, T), one value a latent frame. The value of frame t is what leads to that frame: an
    action would be what was pressed between frames t - 1 and t. Frame t is predicted under it, and observed under it
    once it is finished, so the history never depends on what comes next.
    """

    interval_B: Tensor
    noise_level_B: Tensor
    label_B: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of clips."""
        return len(self.interval_B)

    @property
    def frames(self) -> int | None:
        """T, the number of frames that conditions are given for; None where all are constant."""
        return max((values.shape[1] for values in self._given().values() if values.ndim == 2), default=None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        """The same conditions with ``function`` applied to every tensor, such as a copy to a device."""
        changed: dict[str, Any] = {name: function(values) for name, values in self._given().items()}
        return replace(self, **changed)

    def to(self, device: torch.device) -> Conditions:
        """The same conditions on another device."""
        return self.map(lambda values: values.to(device, non_blocking=True))

    def null(self, config: ModelConfig) -> Conditions:
        """The same conditions without what guidance strengthens: its unconditional half."""
        assert self.label_B is not None, "a model without classes has no null label"
        return replace(self, label_B=torch.full_like(self.label_B, config.classes))

    def frame(self, number: int) -> Conditions:
        """The conditions of one latent frame, all (B,)."""
        return self.map(lambda values: values if values.ndim == 1 else values[:, number])

    def between(self, first: int, last: int) -> Conditions:
        """The conditions of latent frames first..last - 1; what is constant stays (B,)."""
        return self.map(lambda values: values if values.ndim == 1 else values[:, first:last])

    @staticmethod
    def cat(batches: Sequence[Conditions]) -> Conditions:
        """Several batches as one; all must have the same fields, with or without frames."""
        names = batches[0]._given()
        together: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in batches]) for name in names}
        return replace(batches[0], **together)

    def _given(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class Conditioning(nn.Module):
    """Embeds conditions: ``forward`` returns condition tokens (B, F, K, D) and an added embedding (B, F, D).

    F is 1 where all that they embed is constant over the clip, else T: constant conditions are embedded once.
    """

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
        parts_BFKD = [_by_frame(self.noise_level(conditions.noise_level_B - 1)).unsqueeze(2)]
        if self.label is not None:
            assert conditions.label_B is not None, "a model with classes needs a label, or the null label"
            label_BFD = _by_frame(self.label(conditions.label_B))
            parts_BFKD.append(label_BFD.unsqueeze(2).expand(-1, -1, self.config.class_tokens, -1))
        frames = max(part.shape[1] for part in parts_BFKD)
        tokens_BFKD = torch.cat([part.expand(-1, frames, -1, -1) for part in parts_BFKD], dim=2)
        return tokens_BFKD, _by_frame(self.interval(conditions.interval_B - 1))


def _by_frame(embedded: Tensor) -> Tensor:
    """(B, D) as (B, 1, D); (B, T, D) as it is."""
    return embedded.unsqueeze(1) if embedded.ndim == 2 else embedded


def of_slots(values_BF: Tensor, frame_S: Tensor | None) -> Tensor:
    """Values of the frames ``frame_S`` that slots are of; what is constant, or has a value a slot already, as it is."""
    return values_BF if frame_S is None or values_BF.shape[1] == 1 else values_BF.index_select(1, frame_S)
