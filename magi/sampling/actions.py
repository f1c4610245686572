"""Actions as a user gives them, checked, one latent frame after another.

A whole number is one of the model's A actions; A numbers (floats) are axes, or several keys at once; None or -1 is no
action. ``action[t]`` leads from frame t - 1 to frame t, so that of frame 0 is never used.

- a track of the whole video, context included: (T,) whole numbers or (T, A) floats, for all videos; (B, T) or
  (B, T, A) for each;
- a callable from the number of a latent frame, 1 and up, to its action: a whole number, None or (A,) floats for all
  videos, (B,) whole numbers or (B, A) floats for each. It is asked when the frame begins. Frames of the context are
  asked for first, so that it can answer with what was recorded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.data.actions import as_entries, as_rows, pooled
from magi.model.conditioning import action_rows
from magi.sampling.generate import NextAction

Actions = Sequence[Any] | NDArray[Any] | Tensor | Callable[[int], Any] | None


def action_source(actions: Actions, count: int, frames: int, latent_frames: int, batch: int) -> NextAction | None:
    """What ``generate`` asks for actions, of a model with ``count`` of them; None for a model without.

    ``ValueError``, at once for a track and at its frame for a callable, for what does not fit the model, ``frames`` or
    ``batch``.
    """
    if not count:
        if actions is not None:
            raise ValueError("actions: this model has none; leave them out")
        return None
    nothing_BA = np.full((batch, count), np.nan, np.float32)
    if actions is None:
        return lambda number: _rows(nothing_BA)
    if callable(actions):
        ask = actions
        return lambda number: _rows(_answer(ask(number), number, count, batch) if number else nothing_BA)
    track_BTA = _track(actions, count, frames, batch)
    latent_BTA = np.stack([pooled(rows_TA, latent_frames) for rows_TA in track_BTA])
    return lambda number: _rows(latent_BTA[:, number] if number else nothing_BA)


def _rows(actions_BA: NDArray[np.float32]) -> Tensor:
    return action_rows(torch.from_numpy(actions_BA))


def _answer(answer: Any, number: int, count: int, batch: int) -> NDArray[np.float32]:
    """(B, A) of what a callable said about a frame."""
    try:
        entries = _array(answer)
        rows_BA = as_rows(entries[None] if entries.ndim == 0 or _are_numbers(entries, 1) else entries, count)
        return _for_each(rows_BA, batch)
    except ValueError as error:
        raise ValueError(f"actions of frame {number}: {error}") from None


def _track(actions: Any, count: int, frames: int, batch: int) -> NDArray[np.float32]:
    """(B, T, A) of a whole video."""
    try:
        entries = _array(actions)
        tracks = [entries] if entries.ndim == 1 or _are_numbers(entries, 2) else list(entries)
        short = min((len(track) for track in tracks), default=0)
        if short < frames:
            raise ValueError(f"of {short} frames, but {frames} are asked for; give one a frame, context included")
        return _for_each(np.stack([as_rows(track[:frames], count) for track in tracks]), batch)
    except ValueError as error:
        raise ValueError(f"actions: {error}") from None


def _are_numbers(entries: NDArray[Any], axes: int) -> bool:
    """Whether these are the A numbers of actions, and not a whole number for each of several videos."""
    return entries.ndim == axes and entries.dtype.kind == "f"


def _for_each(rows: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    if len(rows) not in (1, batch):
        raise ValueError(f"expected 1 or {batch} (one a video), got {len(rows)}")
    return np.repeat(rows, batch // len(rows), axis=0)


def _array(values: Any) -> NDArray[Any]:
    """Whole numbers with -1, or floats with NaN, where there is no action."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, (list, tuple)) for value in values):
        array = np.asarray(values) if not any(value is None for value in values) else as_entries(values)
    elif isinstance(values, (list, tuple)):
        array = np.asarray([-1 if value is None else value for value in values])
    else:
        array = np.asarray(-1 if values is None else values)
    if array.dtype.kind not in "iuf" or array.ndim > 3:
        raise ValueError(f"expected whole numbers, or rows of numbers, got {str(values)[:60]}")
    return array
