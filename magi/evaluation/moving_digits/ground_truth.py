"""What exact physics lets one ask of a continued digit video, frame by frame, and how the answers are summed up.

- ``class_kept``: whether the classifier still calls the glyph the clip's class; a frame without ink counts as no.
- ``path_error_px``: distance in pixels of the centroid of the ink from the exact path; a frame without ink counts as
  half the frame's width.
- ``energy_ratio``: ink over the real frame's ink.

Frame numbers count from 1, as people count them: with 4 context frames the first generated frame is 5. Intervals are
95% bootstrap intervals over clips, since frames of one clip are not independent. Knows no models and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.intensity import centroids, ink

ORACLES = ("class_kept", "path_error_px", "energy_ratio")
NEAR_FRAMES = 16  # up to here is the near range: as long as a clip of training
BIN_FRAMES = 10
_RESAMPLES = 1000

Curves = dict[str, NDArray[np.float64]]
"""Values_BT of each oracle: a row a clip, a column a frame."""


@dataclass(frozen=True)
class RealClip:
    """The first frames of a real clip of one glyph, its class (0..9) and the exact (x, y) of its ink in each frame."""

    name: str
    video_THWC: NDArray[np.uint8]
    label: int
    path_T2: NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over clips and frames, and its 95% bootstrap interval over clips."""

    mean: float
    low: float
    high: float


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
    """The three oracles of ``video_BTHWC`` uint8 against the real ``clips`` that it continues, in the same order.

    ``DataError`` where a real frame has no ink: its file and its sidecar do not belong together.
    """
    real_BTHWC = np.stack([clip.video_THWC for clip in clips])
    path_BT2 = np.stack([clip.path_T2 for clip in clips])
    label_B1 = np.array([[clip.label] for clip in clips])
    if video_BTHWC.shape != real_BTHWC.shape:
        raise ValueError(f"videos of shape {video_BTHWC.shape} cannot be held against real ones {real_BTHWC.shape}")
    ink_BTHW = ink(video_BTHWC)
    real_BT = ink(real_BTHWC).sum((2, 3), dtype=np.float64)
    if not real_BT.all():
        raise DataError("a real frame shows no glyph; write the held-out videos again with 'magi data digits'")
    error_BT = np.linalg.norm(centroids(ink_BTHW) - path_BT2, axis=-1)
    batch, frames, _, width = ink_BTHW.shape
    classes_BT = classifier.classify(video_BTHWC.reshape(-1, *video_BTHWC.shape[2:])).reshape(batch, frames)
    return {
        "class_kept": (classes_BT == label_B1).astype(np.float64),
        "path_error_px": np.where(np.isnan(error_BT), width / 2, error_BT),
        "energy_ratio": ink_BTHW.sum((2, 3), dtype=np.float64) / real_BT,
    }


def frame_ranges(context: int, frames: int) -> list[FrameRange]:
    """The ranges figures are given for: near (to frame 16), far (after it) and all generated frames."""
    ranges = [
        FrameRange(context + 1, min(NEAR_FRAMES, frames)),
        FrameRange(max(context, NEAR_FRAMES) + 1, frames),
        FrameRange(context + 1, frames),
    ]
    return list(dict.fromkeys(found for found in ranges if found.first <= found.last))


def range_mean(values_BT: NDArray[np.float64], frames: FrameRange, seed: int = 0) -> Interval:
    """Mean over the range, with the 2.5% and 97.5% quantiles of the means of resampled clips."""
    means_B = frames.of(values_BT).mean(1)
    picked_RB = np.random.default_rng(seed).integers(len(means_B), size=(_RESAMPLES, len(means_B)))
    low, high = np.quantile(means_B[picked_RB].mean(1), [0.025, 0.975])
    return Interval(float(means_B.mean()), float(low), float(high))


def worst_bin(oracle: str, values_BT: NDArray[np.float64], frames: FrameRange) -> tuple[FrameRange, float]:
    """The worst of the range's bins of 10 frames (the last may be shorter) and its mean.

    Worst is the lowest ``class_kept``, the highest ``path_error_px``, the ``energy_ratio`` farthest from 1 as a ratio.
    """
    starts = range(frames.first, frames.last + 1, BIN_FRAMES)
    bins = [FrameRange(start, min(start + BIN_FRAMES - 1, frames.last)) for start in starts]
    means = [float(part.of(values_BT).mean()) for part in bins]
    worst = max(range(len(bins)), key=lambda number: _badness(oracle, means[number]))
    return bins[worst], means[worst]


def per_frame(values_BT: NDArray[np.float64], seed: int = 0) -> list[Interval]:
    """Mean over clips and its interval, for every frame."""
    return [range_mean(values_BT, FrameRange(t + 1, t + 1), seed) for t in range(values_BT.shape[1])]


def _badness(oracle: str, mean: float) -> float:
    if oracle == "class_kept":
        return -mean
    if oracle == "path_error_px":
        return mean
    return abs(float(np.log(max(mean, 1e-9))))
