"""What a video of one digit shows, read from its pixels: the six attributes of a caption, without any prompt.

Read over the first ``READ_FRAMES`` frames, in which captioned digits meet no border:

- ``digit``: what the classifier says most often;
- ``direction``, ``speed``: the straight line that fits the centroid of the foreground best;
- ``size``: the rows in which some pixel is at least half as bright as the brightest, the median over frames;
- ``brightness``: mean of the brightest pixels (12 of 64 x 64), the median over frames;
- ``weight``: width of the stroke over the height of the digit. A stroke of length L and width w has the area L w and a
  border of 2 L, so w is twice the area over the border's length; both are measured on the levels over the brightest,
  the border as their total variation.

Each is held against the middle of the gap between the bins of magi.data.captioned_digits. An attribute that cannot be
read (no light, no motion) is None and equals nothing. Knows no prompts and no models.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magi.data.captioned_digits import GREYS, HEIGHTS, SPEEDS, STRAIGHT_FRAMES
from magi.data.digit_captions import DIRECTIONS
from magi.data.moving_digits import REFERENCE_SIZE
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity

READ_FRAMES = 10
BRIGHTEST = 12
STROKE_OVER_HEIGHT = 0.152
"""Between thin and bold; of the font, and so measured and not derived: see tests/evaluation/text/test_oracles.py."""
assert READ_FRAMES <= STRAIGHT_FRAMES, "a digit that has met a border goes elsewhere than its caption says"


def _between(bins: Mapping[str, tuple[float, float]]) -> float:
    """The middle of the gap."""
    low, high = bins.values()
    return (low[1] + high[0]) / 2


LEAST_SPEED = SPEEDS["slow"][0] / 2
"""Pixels a frame; what is slower stands still: it has neither a direction nor a speed."""


@dataclass(frozen=True)
class AttributeReadings:
    """Of each clip the value of every attribute, None where it cannot be read, and the digit of the last frame."""

    values: Mapping[str, tuple[str | None, ...]]
    last_digit: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.last_digit)

    def first(self, clips: int) -> "AttributeReadings":
        """Those of the first clips."""
        values = {name: read[:clips] for name, read in self.values.items()}
        return AttributeReadings(values, self.last_digit[:clips])


def read_attributes(video_BTHWC: NDArray[np.uint8], classifier: DigitClassifier) -> AttributeReadings:
    """Read square videos uint8; ``ValueError`` for fewer than ``READ_FRAMES`` frames."""
    batch, frames, height = video_BTHWC.shape[:3]
    if frames < READ_FRAMES:
        raise ValueError(f"videos of {frames} frames; attributes are read from {READ_FRAMES}")
    scale = height / REFERENCE_SIZE
    intensity_BTHW = foreground_intensity(video_BTHWC[:, :READ_FRAMES])
    shown_BF = np.concatenate([video_BTHWC[:, :READ_FRAMES], video_BTHWC[:, -1:]], axis=1)
    classes_BF = classifier.classify(shown_BF.reshape(-1, *video_BTHWC.shape[2:])).reshape(batch, READ_FRAMES + 1)
    values: dict[str, list[str | None]] = {name: [] for name in ("digit", "weight", "size", "brightness")}
    for intensity_THW, classes_F in zip(intensity_BTHW, classes_BF, strict=True):
        looks = _looks(intensity_THW, scale)
        values["digit"].append(_most_frequent(classes_F[:-1]))
        for name, value in zip(("weight", "size", "brightness"), looks, strict=True):
            values[name].append(value)
    motions = [_motion(path_T2, scale) for path_T2 in centroids(intensity_BTHW)]
    return AttributeReadings(
        {name: tuple(read) for name, read in values.items()}
        | {"direction": tuple(motion[0] for motion in motions), "speed": tuple(motion[1] for motion in motions)},
        tuple(_digit(number) for number in classes_BF[:, -1]),
    )


def _digit(number: int) -> str | None:
    return str(number) if number >= 0 else None


def _most_frequent(classes_T: NDArray[np.int64]) -> str | None:
    """The first of those seen most often; None where all is black."""
    seen = Counter(_digit(int(number)) for number in classes_T if number >= 0)
    return max(seen, key=seen.__getitem__) if seen else None


def _looks(intensity_THW: NDArray[np.float32], scale: float) -> tuple[str | None, str | None, str | None]:
    """Weight, size and brightness."""
    lit = [intensity_HW for intensity_HW in intensity_THW if intensity_HW.any()]
    if not lit:
        return None, None, None
    brightest = round(BRIGHTEST * scale**2)
    peaks, heights, strokes = [], [], []
    for intensity_HW in lit:
        peak = float(np.sort(intensity_HW, axis=None)[-brightest:].mean())
        rows = np.flatnonzero(intensity_HW.max(1) >= peak / 2)
        height = float(rows[-1] - rows[0] + 1)
        peaks.append(peak)
        heights.append(height)
        strokes.append(_stroke_width(np.clip(intensity_HW / peak, 0, 1)) / height)
    return (
        "bold" if np.median(strokes) > STROKE_OVER_HEIGHT else "thin",
        "large" if np.median(heights) > _between(HEIGHTS) * scale else "small",
        "bright" if np.median(peaks) > _between(GREYS) else "dim",
    )


def _stroke_width(level_HW: NDArray[np.float32]) -> float:
    """In pixels, of levels 0..1 (see the top of this file)."""
    one, other = level_HW[1:, 1:] - level_HW[:-1, :-1], level_HW[1:, :-1] - level_HW[:-1, 1:]
    border = float(np.sqrt((one**2 + other**2) / 2).sum())  # along the diagonals, between the same four pixels
    return 2 * float(level_HW.sum()) / border


def _motion(path_T2: NDArray[np.float64], scale: float) -> tuple[str | None, str | None]:
    """Direction and speed of the line that fits best; black frames are left out."""
    times_T = np.flatnonzero(~np.isnan(path_T2).any(1))
    if len(times_T) < 2:
        return None, None
    x, y = np.polyfit(times_T, path_T2[times_T], 1)[0] / scale
    speed = float(np.hypot(x, y))
    if speed < LEAST_SPEED:
        return None, None
    eighths = round(float(np.arctan2(y, x)) / (np.pi / 4)) % len(DIRECTIONS)
    return DIRECTIONS[eighths], "fast" if speed > _between(SPEEDS) else "slow"
