"""What mixes a position along time, and what it keeps of finished frames: the contract of a temporal layer (section 3).

The paper's is softmax attention with a cache of keys and values (``softmax``); gated linear attention keeps a state of
constant size (``gated_linear``). Another one is one file beside them and its name in ``transformer.temporal_mixer``;
the model, its passes over a frame and the history know this contract alone. P positions of B videos are R = B P rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from magi.model.teacher_forcing import SlotPattern

LayerState = Any
"""One layer's part of a state; only its mixer looks inside."""


class TemporalState(Protocol):
    """What all layers keep of the first ``length`` frames of R rows: an argument of the model, never its state."""

    length: int

    @property
    def rows(self) -> int:
        """R."""

    @property
    def capacity(self) -> int:
        """Largest number of finished frames."""

    @property
    def nbytes(self) -> int:
        """Its memory."""

    def layer(self, index: int) -> LayerState:
        """The part of one layer, for the passes up to the next change of ``length``."""

    def advance(self, frames: int) -> None:
        """Declare ``frames`` more frames finished; every layer has observed them."""

    def clear(self) -> None:
        """Forget all frames; the memory stays where it is."""


class PreparedMixer(Protocol):
    """A mixer with its weights as they are now, laid out for one new slot of each row: (..., D) -> (..., D)."""

    any_length: bool
    """Whether a recorded graph of these serves a state of any length."""

    def predict(self, normed: Tensor, layer: LayerState, rows_M: Tensor | None = None) -> Tensor:
        """Mix with finished frames, which are only read; the slots are of rows ``rows_M`` (long) or of all."""

    def observe(self, normed: Tensor, layer: LayerState) -> Tensor:
        """The same, and the slots are written as the next frame; they count once the state advances."""

    def write(self, normed: Tensor, layer: LayerState) -> None:
        """``observe`` for what it writes alone."""


class TemporalMixer(Protocol):
    """A temporal layer, a module: projections included, dropout too."""

    def __call__(self, x_BSPD: Tensor, attend: SlotPattern | Tensor, first_query: int = 0) -> Tensor:
        """Training: mix under a pattern of slots; returns slots ``first_query``.., (B, S - first_query, P, D)."""

    def observe(self, x_BTPD: Tensor, layer: LayerState) -> Tensor:
        """Finished frames after those of the state: frame i sees these and frames up to i. Writes them."""

    def predict(self, x_BTPD: Tensor, layer: LayerState) -> Tensor:
        """One slot that sees the frames of the state and itself, and leaves no trace."""

    def new_state(self, layers: int, rows: int, frames: int, like: Tensor) -> TemporalState:
        """An empty state for ``frames`` frames, in device and dtype of ``like``."""

    def prepared(self, dtype: torch.dtype | None, kernels: bool) -> PreparedMixer:
        """For sampling; products in ``dtype`` (the weights' if None), by Triton kernels if ``kernels``."""
