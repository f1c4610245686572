"""Evaluations of look-alike data in seconds: what is asked for, how it is scored, and a pipeline that cheats."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.data.index.index import VideoIndex
from magi.evaluation.protocol.clip_table import build_table
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import overridden, protocol
from magi.evaluation.protocol.result import EvaluationResult
from magi.evaluation.protocol.samples import generate_samples
from magi.evaluation.protocol.score import score
from tests.fakes.look_alikes import PaintedClips, Painter, Projection

COUNT = 22


def evaluation(
    index: VideoIndex, out: Path, name: str = "k600-64-f5-50k", network: Any = None, beside: Any = None, **changes: Any
) -> Evaluation:
    singular = {"singular": True} if changes.pop("singular", False) else {}
    small = {"count": COUNT, "read_size": 32, "score_size": 32} | changes
    one, overrides = overridden(protocol(name), **small)
    metrics = beside or Metrics(network or Projection(), context_frames=one.context_frames)
    return Evaluation(
        one, overrides | singular, metrics, PaintedClips(one, index), build_table(one, index), out, {}, batch=8
    )


def scored(asked: Evaluation, **models: Any) -> EvaluationResult:
    """The result of ``asked`` with the given models, or with a painter."""
    asked = replace(asked, models=models or {"painter": Painter()})
    assert generate_samples(asked)
    return score(asked)


def features_of(asked: Evaluation, name: str, spoil: Callable[[Tensor], Tensor] = lambda video: video) -> Tensor:
    return torch.cat([Projection().features(spoil(v)) for v in asked.clips.batches(asked.rows(name), 8)])


class Cheat(Painter):
    """A pipeline whose samples are the given clips, in order."""

    def __init__(self, clips: Tensor, name: float) -> None:
        super().__init__()
        self.clips, self.next = clips, 0
        torch.nn.init.constant_(self.model.weight, name)

    def stream(self, *, frames: int, context: Any, labels: Any, interval: int, seeds: Any, actions: None) -> Any:
        given = 0 if context is None else context.shape[1]
        first, self.next = self.next, self.next + len(seeds)
        return iter(self.clips[first : self.next].unbind(1)[given:])
