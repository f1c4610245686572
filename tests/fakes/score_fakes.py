"""Evaluations of look-alike data in seconds: what is asked for, how it is scored, and a pipeline that cheats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.data.index.index import VideoIndex
from magi.evaluation.protocol.clip_table import build_table
from magi.evaluation.protocol.features import Instruments
from magi.evaluation.protocol.protocols import overridden, protocol
from magi.evaluation.protocol.score import Evaluation, generate, score
from tests.fakes.look_alikes import PaintedClips, Painter, Projection

COUNT = 22


def evaluation(
    index: VideoIndex, out: Path, name: str = "k600-64-f5-50k", network: Any = None, beside: Any = None, **changes: Any
) -> Evaluation:
    small = {"count": COUNT, "read_size": 32, "score_size": 32} | changes
    one, overrides = overridden(protocol(name), **small)
    instruments = beside or Instruments(network or Projection(), context_frames=one.context_frames)
    clips = PaintedClips(one, index)
    return Evaluation(one, overrides, instruments, clips, build_table(one, index), out, batch=8)


def tell(what: str, done: int, total: int) -> None:
    """Nobody listens."""


def scored(asked: Evaluation, **models: Any) -> dict[str, Any]:
    models = models or {"painter": Painter()}
    assert generate(asked, models, (0, 1), tell)
    return score(asked, models, tell)


def features_of(asked: Evaluation, name: str, spoil: Callable[[Tensor], Tensor] = lambda video: video) -> Tensor:
    return torch.cat([Projection().features(spoil(v)) for v in asked.clips.batches(asked.rows(name), 8)])


class Cheat(Painter):
    """A pipeline that returns what the given function makes of the real clips."""

    def __init__(self, clips: Tensor, name: float) -> None:
        super().__init__()
        self.clips = clips
        torch.nn.init.constant_(self.model.weight, name)

    def stream(self, *, frames: int, context: Any, labels: Any, interval: int, seeds: Any) -> Any:
        given = 0 if context is None else context.shape[1]
        return iter(self.clips[[seed % len(self.clips) for seed in seeds]].unbind(1)[given:])
