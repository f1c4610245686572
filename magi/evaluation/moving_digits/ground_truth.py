"""Metrics of a predicted digit video against its ground truth, frame by frame.

- ``class_accuracy``: whether the classifier sees the clip's class; a black frame counts as no.
- ``position_error_px``: distance in pixels of the centroid of the foreground from the exact path; a black frame counts
  as half the frame's width.
- ``intensity_ratio``: foreground intensity over that of the real frame.

Knows no models and no files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity
from magi.evaluation.protocol.ground_truth import Badness, Curves

NEAR_FRAMES = 16  # up to here is the near range: as long as a clip of training
BADNESS: dict[str, Badness] = {
    "class_accuracy": lambda mean: -mean,
    "position_error_px": lambda mean: mean,
    "intensity_ratio": lambda mean: abs(math.log(max(mean, 1e-9))),  # farthest from 1 as a ratio
}
"""The metrics, and by what the worst mean of each is known."""


@dataclass(frozen=True)
class RealClip:
    """The first frames of a real clip of one glyph, its class (0..9), and the exact (x, y) of its centre by frame."""

    name: str
    video_THWC: NDArray[np.uint8]
    label: int
    path_T2: NDArray[np.float64]


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
