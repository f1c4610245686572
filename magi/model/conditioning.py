"""Conditions of a clip, constant or one a frame, as condition tokens and added embeddings (paper section 3).

The noise level is one extra token prepended to every frame; the class is ``class_tokens`` more; the action one more,
and added to all hidden states, as the interval is; the text ``text_tokens`` more. A new condition is a field of
``Conditions``, its embedding in ``Conditioning``, and its null value in ``Conditions.null``; everything else passes
conditions on as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from magi.model.text import TextTokens

if TYPE_CHECKING:
    from magi.config import ModelConfig


@dataclass(frozen=True)
class Conditions:
    """Conditions of B clips: ``interval_B`` (1..vocabulary), ``noise_level_B`` (1..levels), and what a model may have.

    Labels ``label_B`` are 0..classes-1, or ``classes`` for the null label; None for a model without classes. Actions
    ``action_BA`` are rows of ``action_rows``; None for a model without actions. Text ``text_BLE`` is that of
    ``magi.model.text``, zeros for none, ``text_BKD`` the same once encoded; None for a model without text.
    ``negative_BLE`` is the text that guidance leads away from, None for no text. Each field has a value a clip,
    constant over it (B, ...), or one a latent frame (B, T, ...). The value of frame t is what leads to that frame: its
    action was pressed between frames t - 1 and t. Frame t is predicted under it, and observed under it once it is
    finished, so the history never depends on what comes next.
    """

    interval_B: Tensor
    noise_level_B: Tensor
    label_B: Tensor | None = None
    action_BA: Tensor | None = None
    text_BLE: Tensor | None = None
    negative_BLE: Tensor | None = None
    text_BKD: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of clips."""
        return len(self.interval_B)

    @property
    def frames(self) -> int | None:
        """T, the number of frames that conditions are given for; None where all are constant."""
        given = self._given().items()
        return max((values.shape[1] for name, values in given if self._varies(name, values)), default=None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        """The same conditions with ``function`` applied to every tensor, such as a copy to a device."""
        changed: dict[str, Any] = {name: function(values) for name, values in self._given().items()}
        return replace(self, **changed)

    def to(self, device: torch.device) -> Conditions:
        """The same conditions on another device."""
        return self.map(lambda values: values.to(device, non_blocking=True))

    def null(self, config: ModelConfig) -> Conditions:
        """The same conditions without what guidance strengthens: its unconditional half."""
        assert self.can_guide and self.text_BKD is None, "nothing to leave out, or encoded already"
        label_B, action_BA, text_BLE = self.label_B, self.action_BA, self.negative_BLE
        if text_BLE is None and self.text_BLE is not None:
            text_BLE = torch.zeros_like(self.text_BLE)
        return replace(
            self,
            label_B=None if label_B is None else torch.full_like(label_B, config.classes),
            action_BA=None if action_BA is None else no_action(action_BA),
            text_BLE=text_BLE,
        )

    @property
    def can_guide(self) -> bool:
        """Whether there is something that guidance can strengthen."""
        return any(values is not None for values in (self.label_B, self.action_BA, self.text_BLE, self.text_BKD))

    def frame(self, number: int) -> Conditions:
        """The conditions of one latent frame, without an axis of frames."""
        return self._cut(lambda values: values[:, number])

    def between(self, first: int, last: int) -> Conditions:
        """The conditions of latent frames first..last - 1; what is constant stays so."""
        return self._cut(lambda values: values[:, first:last])

    def _cut(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        given = self._given().items()
        cut: dict[str, Any] = {name: function(values) for name, values in given if self._varies(name, values)}
        return replace(self, **cut)

    @staticmethod
    def _varies(name: str, values: Tensor) -> bool:
        """Whether a field has a value a frame; the axes of a name are those of a constant."""
        return values.ndim > len(name.rpartition("_")[2])

    @staticmethod
    def cat(batches: Sequence[Conditions]) -> Conditions:
        """Several batches as one; all must have the same fields, with or without frames."""
        names = batches[0]._given()
        together: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in batches]) for name in names}
        return replace(batches[0], **together)

    def _given(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def action_rows(actions: Tensor) -> Tensor:
    """Actions (..., A), NaN where there is none, as rows (..., A + 1): the last number says that there is none."""
    absent = actions.isnan().all(dim=-1, keepdim=True)
    return torch.cat([actions.nan_to_num(0.0), absent.to(actions.dtype)], dim=-1)


def no_action(rows: Tensor) -> Tensor:
    """As many rows that say that there is no action."""
    return action_rows(torch.full_like(rows[..., :-1], torch.nan))


def condition_tokens(config: ModelConfig) -> int:
    """K, the number of condition tokens a frame."""
    return (
        1
        + (config.class_tokens if config.classes else 0)
        + (config.actions > 0)
        + (config.text_tokens if config.text_encoder else 0)
    )


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
        # What is added to all positions, and the token. The mean of several actions has the mean of their embeddings.
        self.action = nn.Linear(config.actions + 1, 2 * config.width, bias=False) if config.actions else None
        self.text = TextTokens(config) if config.text_encoder else None

    @property
    def tokens(self) -> int:
        """K, the number of condition tokens a frame."""
        return condition_tokens(self.config)

    def encode_text(self, conditions: Conditions) -> Conditions:
        """The same conditions with their text as condition tokens, so that it is read once for many frames."""
        if self.text is None:
            return conditions
        assert conditions.text_BLE is not None, "a model with text needs it, or zeros"
        return replace(conditions, text_BLE=None, negative_BLE=None, text_BKD=self.text(conditions.text_BLE))

    def forward(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        parts_BFKD = [_by_frame(self.noise_level(conditions.noise_level_B - 1)).unsqueeze(2)]
        if self.label is not None:
            assert conditions.label_B is not None, "a model with classes needs a label, or the null label"
            label_BFD = _by_frame(self.label(conditions.label_B))
            parts_BFKD.append(label_BFD.unsqueeze(2).expand(-1, -1, self.config.class_tokens, -1))
        added_BFD = _by_frame(self.interval(conditions.interval_B - 1))
        if self.action is not None:
            assert conditions.action_BA is not None, "a model with actions needs them, or no_action"
            weight = self.action.weight
            action_BFD, token_BFD = _by_frame(self.action(conditions.action_BA.to(weight.dtype))).chunk(2, dim=-1)
            added_BFD = added_BFD + action_BFD
            parts_BFKD.append(token_BFD.unsqueeze(2))
        if self.text is not None:
            text_BKD = (conditions if conditions.text_BKD is not None else self.encode_text(conditions)).text_BKD
            assert text_BKD is not None
            parts_BFKD.append(text_BKD if text_BKD.ndim == 4 else text_BKD.unsqueeze(1))
        frames = max(part.shape[1] for part in parts_BFKD)
        tokens_BFKD = torch.cat([part.expand(-1, frames, -1, -1) for part in parts_BFKD], dim=2)
        return tokens_BFKD, added_BFD


def _by_frame(embedded: Tensor) -> Tensor:
    """(B, D) as (B, 1, D); (B, T, D) as it is."""
    return embedded.unsqueeze(1) if embedded.ndim == 2 else embedded


def of_slots(values_BF: Tensor, frame_S: Tensor | None) -> Tensor:
    """Values of the frames ``frame_S`` that slots are of; what is constant, or has a value a slot already, as it is."""
    return values_BF if frame_S is None or values_BF.shape[1] == 1 else values_BF.index_select(1, frame_S)
