"""Metrics of a predicted digit video against its ground truth, frame by frame, and their means.

- ``class_accuracy``: whether the classifier sees the clip's class; a black frame counts as no.
- ``position_error_px``: distance in pixels of the centroid of the foreground from the exact path; a black frame counts
  as half the frame's width.
- ``intensity_ratio``: foreground intensity over that of the real frame.

Frame numbers count from 1, as people count them: with 4 context frames the first generated frame is 5. Intervals are
95% bootstrap intervals over clips. Knows no models and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from magi.errors import DataError
from magi.evaluation.metrics.bootstrap import RESAMPLES, Estimate, interval_95, resampled_means
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity

METRICS = ("class_accuracy", "position_error_px", "intensity_ratio")
NEAR_FRAMES = 16  # up to here is the near range: as long as a clip of training
BIN_FRAMES = 10

Curves = dict[str, NDArray[np.float64]]
"""Values_BT of each metric: a row for each clip, a column for each frame."""


@dataclass(frozen=True)
class RealClip:
    """The first frames of a real clip of one glyph, its class (0..9), and the exact (x, y) of its centre by frame."""

    name: str
    video_THWC: NDArray[np.uint8]
    label: int
    path_T2: NDArray[np.float64]


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


def measure(video_BTHWC: NDArray[np.uint8], clips: Sequence[RealClip], classifier: DigitClassifier) -> Curves:
    """The three metrics of ``video_BTHWC`` uint8 against the real ``clips`` that it continues, in the same order.

    ``DataError`` where a real frame is black: its file and its sidecar do not belong together.
    """
    real_BTHWC = np.stack([clip.video_THWC for clip in clips])
    path_BT2 = np.stack([clip.path_T2 for clip in clips])
    label_B1 = np.array([[clip.label] for clip in clips])
    if video_BTHWC.shape != real_BTHWC.shape:
        raise ValueError(f"videos of shape {video_BTHWC.shape} cannot be compared with real ones {real_BTHWC.shape}")
    intensity_BTHW = foreground_intensity(video_BTHWC)
    real_BT = foreground_intensity(real_BTHWC).sum((2, 3), dtype=np.float64)
    if not real_BT.all():
        raise DataError("a real frame shows no glyph; write the held-out videos again with 'magi data digits'")
    error_BT = np.linalg.norm(centroids(intensity_BTHW) - path_BT2, axis=-1)
    batch, frames, _, width = intensity_BTHW.shape
    classes_BT = classifier.classify(video_BTHWC.reshape(-1, *video_BTHWC.shape[2:])).reshape(batch, frames)
    return {
        "class_accuracy": (classes_BT == label_B1).astype(np.float64),
        "position_error_px": np.where(np.isnan(error_BT), width / 2, error_BT),
        "intensity_ratio": intensity_BTHW.sum((2, 3), dtype=np.float64) / real_BT,
    }


def frame_ranges(context: int, frames: int) -> list[FrameRange]:
    """The ranges figures are given for: near (to frame 16), far (after it) and all generated frames."""
    ranges = [
        FrameRange(context + 1, min(NEAR_FRAMES, frames)),
        FrameRange(max(context, NEAR_FRAMES) + 1, frames),
        FrameRange(context + 1, frames),
    ]
    return list(dict.fromkeys(found for found in ranges if found.first <= found.last))


def range_mean(values_BT: NDArray[np.float64], frames: FrameRange, seed: int = 0) -> Estimate:
    """Mean over clips and the frames of a range, with its bootstrap interval over clips."""
    means_B1 = torch.from_numpy(frames.of(values_BT).mean(1, keepdims=True))
    drawn_R1 = resampled_means(means_B1, RESAMPLES, seed)
    low, high = (float(bound) for bound in interval_95(drawn_R1))
    return Estimate(*(round(value, 4) for value in (float(means_B1.mean()), low, high, float(drawn_R1.std()))))


def worst_bin(metric: str, values_BT: NDArray[np.float64], frames: FrameRange) -> tuple[FrameRange, float]:
    """The worst of the range's bins of 10 frames (the last may be shorter) and its mean.

    Worst is the lowest ``class_accuracy``, the highest ``position_error_px``, the ``intensity_ratio`` farthest from 1
    as a ratio.
    """
    starts = range(frames.first, frames.last + 1, BIN_FRAMES)
    bins = [FrameRange(start, min(start + BIN_FRAMES - 1, frames.last)) for start in starts]
    means = [float(part.of(values_BT).mean()) for part in bins]
    worst = max(range(len(bins)), key=lambda number: _badness(metric, means[number]))
    return bins[worst], means[worst]


def _badness(metric: str, mean: float) -> float:
    if metric == "class_accuracy":
        return -mean
    if metric == "position_error_px":
        return mean
    return abs(float(np.log(max(mean, 1e-9))))
