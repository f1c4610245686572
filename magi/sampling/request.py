"""What a user asks of the pipeline, checked: context video, labels, seeds, settings. It knows no files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi.config import Config, ModelConfig, SamplingConfig
from magi.errors import hint
from magi.model.conditioning import Conditions, action_rows
from magi.model.text import no_text

Labels = int | str | Sequence[int | str | None] | None
SEEDS = 2**32


def changed_settings(config: SamplingConfig, asked: SamplingConfig | Mapping[str, Any] | None) -> SamplingConfig:
    """``config`` if nothing is asked for, with the changes of a mapping, or the settings that replace it."""
    if asked is None:
        return config
    return asked if isinstance(asked, SamplingConfig) else config.changed(**asked)


def context_batch(context: Tensor | np.ndarray | None, frames: int, config: Config) -> Tensor | None:
    """Context as video_BTHWC uint8; ValueError for another type or size, or if it leaves nothing to generate."""
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    if context is None:
        return None
    video = torch.from_numpy(np.array(context)) if isinstance(context, np.ndarray) else context
    video_BTHWC = video[None] if video.ndim == 4 else video
    if video_BTHWC.ndim != 5 or video_BTHWC.shape[-1] != 3 or video_BTHWC.dtype != torch.uint8:
        raise ValueError(
            f"context: expected uint8 RGB video_THWC or video_BTHWC, got {tuple(video.shape)} of {video.dtype}"
        )
    count, height, width = video_BTHWC.shape[1:4]
    if (height, width) != (config.data.height, config.data.width):
        raise ValueError(
            f"context: expected {config.data.height}x{config.data.width} pixels (the model's), got {height}x{width}; "
            "resize and crop it first, as magi.data.clips does"
        )
    if count >= frames:
        raise ValueError(
            f"frames {frames} (context included) leave none to generate after {count} context frames; "
            "ask for more frames or give fewer of context"
        )
    return video_BTHWC if count else None


def batch_of(context_BTHWC: Tensor | None, labels: Labels, seeds: Sequence[int] | None, prompts: int = 1) -> list[int]:
    """The seeds, one a video: those given, or 0, 1, ... for as many videos as there are contexts, labels or prompts.

    A single one of these serves all videos; ValueError if the numbers otherwise differ.
    """
    counts = {"context": 1 if context_BTHWC is None else len(context_BTHWC), "prompt": prompts}
    counts["labels"] = 1 if labels is None or isinstance(labels, (int, str)) else len(labels)
    batch = max(counts.values()) if seeds is None else len(seeds)
    for name, count in counts.items():
        if count not in (1, batch):
            raise ValueError(f"{name}: expected 1 or {batch} (one a video), got {count}")
    seeds = range(batch) if seeds is None else seeds
    if not seeds or any(not 0 <= seed < SEEDS for seed in seeds):
        raise ValueError(f"seeds: expected at least one, each in 0..{SEEDS - 1}, got {list(seeds)}")
    return list(seeds)


def make_conditions(
    model: ModelConfig, classes: Sequence[str] | None, labels: Labels, interval: int, noise_level: int, batch: int
) -> Conditions:
    """Conditions of ``batch`` videos; ValueError for a value that the model has no embedding for."""
    for name, value, highest in (
        ("interval", interval, model.interval_vocabulary),
        ("noise_level", noise_level, model.noise_levels),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
            raise ValueError(f"{name}: expected a whole number in 1..{highest}, got {value!r}")
    asked = [labels] if labels is None or isinstance(labels, (int, str)) else list(labels)
    numbers = [_label_number(label, model.classes, classes) for label in asked]
    if len(numbers) == 1:
        numbers = numbers * batch
    return Conditions(
        interval_B=torch.full((batch,), interval),
        noise_level_B=torch.full((batch,), noise_level),
        label_B=torch.tensor(numbers) if model.classes else None,
        action_BA=action_rows(torch.full((batch, model.actions), torch.nan)) if model.actions else None,
        text_BLE=no_text(model, batch) if model.text_encoder else None,
    )


def _label_number(label: int | str | None, count: int, classes: Sequence[str] | None) -> int:
    """A class name or number as a number; None is the null label."""
    if label is None:
        return count
    if not count:
        raise ValueError(f"label {label!r}: this model has no classes; leave the label out")
    names = list(classes or [])
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if not label.isdecimal():
            expected = hint(label, names, f"expected a number in 0..{count - 1}")
            raise ValueError(f"label '{label}': no such class; {expected}")
        label = int(label)
    if not 0 <= label < count:
        raise ValueError(f"label {label}: expected 0..{count - 1}")
    return label
