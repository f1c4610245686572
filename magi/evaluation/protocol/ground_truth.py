"""Scores against the ground truth of built-in videos: ranges of frames, their means and worst stretches, targets.

Frame numbers count from 1, as people count them: with 4 context frames the first generated frame is 5. Intervals are
95% bootstrap intervals over clips. Knows nothing of what is measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.evaluation.metrics.bootstrap import RESAMPLES, Estimate, interval_95, mean_curve, resampled_means
from magi.evaluation.protocol.evaluation import REAL, RECONSTRUCTED, Evaluation
from magi.evaluation.protocol.result import GroundTruthSeries, JudgedTarget, RangeScore, Target
from magi.evaluation.protocol.samples import read_samples, sample_plan

BIN_FRAMES = 10

Curves = dict[str, NDArray[np.float64]]
"""Values_BT of each metric: a row for each clip, a column for each frame."""
Badness = Callable[[float], float]
"""From the mean of a metric to how bad it is: the worst mean has the highest."""


@dataclass(frozen=True)
class FrameRange:
    """Frames ``first`` to ``last``, counted from 1, both included."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.first}-{self.last}"

    def of(self, values_BT: NDArray[np.float64]) -> NDArray[np.float64]:
        """The columns of ``values_BT`` within the range."""
        return values_BT[:, self.first - 1 : self.last]


def frame_ranges(context: int, frames: int, near: int) -> list[FrameRange]:
    """The ranges figures are given for: near (to frame ``near``), far (after it) and all generated frames."""
    ranges = [
        FrameRange(context + 1, min(near, frames)),
        FrameRange(max(context, near) + 1, frames),
        FrameRange(context + 1, frames),
    ]
    return list(dict.fromkeys(found for found in ranges if found.first <= found.last))


def range_mean(values_BT: NDArray[np.float64], frames: FrameRange, seed: int = 0) -> Estimate:
    """Mean over clips and the frames of a range, with its bootstrap interval over clips."""
    means_B1 = torch.from_numpy(frames.of(values_BT).mean(1, keepdims=True))
    drawn_R1 = resampled_means(means_B1, RESAMPLES, seed)
    low, high = (float(bound) for bound in interval_95(drawn_R1))
    return Estimate(*(round(value, 4) for value in (float(means_B1.mean()), low, high, float(drawn_R1.std()))))


def worst_bin(badness: Badness, values_BT: NDArray[np.float64], frames: FrameRange) -> tuple[FrameRange, float]:
    """The worst of the range's bins of 10 frames (the last may be shorter) and its mean."""
    starts = range(frames.first, frames.last + 1, BIN_FRAMES)
    bins = [FrameRange(start, min(start + BIN_FRAMES - 1, frames.last)) for start in starts]
    means = [float(part.of(values_BT).mean()) for part in bins]
    worst = max(range(len(bins)), key=lambda number: badness(means[number]))
    return bins[worst], means[worst]


def score_series(curves: Curves, badness: Mapping[str, Badness], ranges: Sequence[FrameRange]) -> GroundTruthSeries:
    """The metrics of ``badness`` over each range, and at every frame."""
    scores: dict[str, dict[str, RangeScore]] = {}
    for part in ranges:
        scores[part.name] = {}
        for metric, how_bad in badness.items():
            worst, value = worst_bin(how_bad, curves[metric], part)
            scores[part.name][metric] = RangeScore(range_mean(curves[metric], part), round(value, 4), worst.name)
    bands = {metric: mean_curve(torch.from_numpy(curves[metric]), 0) for metric in badness}
    return GroundTruthSeries(scores, bands)


def judge(curves: Curves, targets: Sequence[Target], ranges: Sequence[FrameRange]) -> tuple[JudgedTarget, ...]:
    """Each target whose range is among ``ranges``, the value reached, and whether it meets the target."""
    by_name = {part.name: part for part in ranges}
    judged = []
    for target in targets:
        if target.frames in by_name:
            value = range_mean(curves[target.metric], by_name[target.frames]).value
            judged.append(JudgedTarget(**vars(target), value=value, met=target.contains(value)))
    return tuple(judged)


def made_videos(evaluation: Evaluation) -> dict[str, Iterator[Tensor]]:
    """Video_BTHWC of each series but the real clips: every autoencoder's reconstructions, every model's samples."""
    clips, users = (0, len(evaluation.predicted)), evaluation.by_autoencoder
    videos = {}
    for first, model in users.items():
        name = RECONSTRUCTED if len(users) == 1 else f"{RECONSTRUCTED} {first}"
        videos[name] = evaluation.reconstructed(model, REAL, *clips)
    return videos | {
        name: read_samples(evaluation, sample_plan(evaluation, name), *clips) for name in evaluation.models
    }
