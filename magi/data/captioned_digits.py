"""Built-in videos with captions: one moving digit whose six attributes are drawn from bins well apart, and a sentence.

The drawing and the physics are those of magi.data.moving_digits. The bins leave gaps (a digit is small or large, never
between), the digit does not meet a border before frame ``STRAIGHT_FRAMES``, so every caption is true of its first
frames and can be checked there. Of the 80 pairs of digit and direction ten are held out: videos to train on never show
them, and held-out videos show nothing else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from magi.data.built_in import Progress, write_built_in
from magi.data.digit_captions import DIRECTIONS, VALUES, DigitAttributes, Wording
from magi.data.moving_digits import (
    CLASSES,
    FPS,
    REFERENCE_SIZE,
    SLANT_RANGE,
    Glyph,
    check_drawable,
    clip_path,
    glyph_bounds,
    glyph_mask,
    glyph_path,
    stamp,
)
from magi.seeding import CAPTIONED_KEY, numpy_generator

Combinations = Literal["seen", "held-out"]
FRAMES = 16
"""Of a video, where nothing else is asked for."""
STRAIGHT_FRAMES = 12
"""Frames before the digit may meet a border."""
HEIGHTS: Mapping[str, tuple[float, float]] = {"small": (17.5, 19.5), "large": (26.0, 28.0)}
WEIGHTS: Mapping[str, tuple[float, float]] = {"thin": (0.0, 0.005), "bold": (0.042, 0.052)}
GREYS: Mapping[str, tuple[float, float]] = {"dim": (140.0, 160.0), "bright": (230.0, 250.0)}
SPEEDS: Mapping[str, tuple[float, float]] = {"slow": (0.7, 1.0), "fast": (1.8, 2.2)}
"""Pixels a frame; like the heights, of a frame of 64 x 64."""
ANGLE_JITTER = math.radians(8)


class Captioned(Protocol):
    """A video with a caption, as it is written."""

    @property
    def video_THWC(self) -> NDArray[np.uint8]:
        """Its frames."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What its sidecar tells."""
        ...


@dataclass(frozen=True)
class CaptionedVideo:
    """What a video shows, its caption, the drawn video, its glyph and the exact (x, y) of that in every frame."""

    attributes: DigitAttributes
    wording: Wording
    video_THWC: NDArray[np.uint8]
    glyph: Glyph
    centroids_T2: NDArray[np.float64]

    @property
    def caption(self) -> str:
        return self.wording.caption(self.attributes)

    @property
    def facts(self) -> dict[str, Any]:
        """What its sidecar tells."""
        return {
            "class": self.attributes.digit,
            "caption": self.caption,
            "attributes": asdict(self.attributes),
            "named": sorted(self.wording.named),
            "glyphs": [asdict(self.glyph) | {"positions": self.centroids_T2.tolist()}],
        }


def is_held_out(attributes: DigitAttributes) -> bool:
    """Whether the pair of digit and direction is left out of videos to train on: one direction of each digit."""
    return attributes.direction == _held_out_direction(attributes.digit)


def directions_of(digit: str, combinations: Combinations) -> tuple[str, ...]:
    """The directions in which videos of ``combinations`` show a digit."""
    held_out = _held_out_direction(digit)
    return (held_out,) if combinations == "held-out" else tuple(one for one in DIRECTIONS if one != held_out)


def draw_attributes(digit: str, rng: np.random.Generator, combinations: Combinations) -> DigitAttributes:
    """Draw the other five attributes of a digit, each value as likely as the others that ``combinations`` leaves."""
    directions = directions_of(digit, combinations)
    drawn = {
        name: (directions if name == "direction" else values) for name, values in VALUES.items() if name != "digit"
    }
    return DigitAttributes(digit, **{name: values[int(rng.integers(len(values)))] for name, values in drawn.items()})


def captioned_video(
    seed: int, clip_number: int, combinations: Combinations = "seen", size: int = 64, frames: int = FRAMES
) -> CaptionedVideo:
    """Draw clip ``clip_number`` of ``seed``: a pure function; more frames continue the same video.

    Clip numbers go round the ten digits. Raises ``ValueError`` for a size or frame count that cannot be drawn.
    """
    check_drawable(size, frames)
    rng = numpy_generator(seed, clip_number, CAPTIONED_KEY)
    return draw_captioned(CLASSES[clip_number % 10], rng, combinations, size, frames)


def draw_captioned(
    digit: str, rng: np.random.Generator, combinations: Combinations, size: int, frames: int
) -> CaptionedVideo:
    """Draw from ``rng`` everything but the digit."""
    attributes = draw_attributes(digit, rng, combinations)
    wording = Wording.drawn(rng)
    return CaptionedVideo(attributes, wording, *draw_video(attributes, rng, size, frames))


def draw_video(
    attributes: DigitAttributes, rng: np.random.Generator, size: int = 64, frames: int = FRAMES
) -> tuple[NDArray[np.uint8], Glyph, NDArray[np.float64]]:
    """Draw from ``rng`` what the attributes leave open; video_THWC, its glyph and the (x, y) of that by frame."""
    glyph, mask_HW = _glyph(attributes, size, rng)
    path_T2 = glyph_path(glyph, np.arange(frames))
    video_THW = np.zeros((frames, size, size), dtype=np.uint8)
    stamp(video_THW, mask_HW, path_T2, glyph.grey)
    return np.repeat(video_THW[..., None], 3, axis=-1), glyph, path_T2


def write_captioned_digits(
    out: Path,
    clips: int,
    size: int = 64,
    seed: int = 0,
    combinations: Combinations = "seen",
    frames: int = FRAMES,
    progress: Progress | None = None,
    draw: Callable[[int, int, Combinations, int, int], Captioned] = captioned_video,
    kind: str = "",
) -> int:
    """Write ``clips`` videos as ``out/<digit>/<digit>_<clip>.mp4``, each beside a ``.txt`` of its caption and a
    ``.json`` of its attributes and exact positions.

    ``draw`` is ``captioned_video``, or makes other ones that ``kind`` tells apart. Clips already there are kept, so a
    second call continues or does nothing. ``progress`` is called with (done, all). Returns the number of videos
    written. Raises ``ValueError`` if ``out`` holds videos of other settings.
    """
    check_drawable(size, frames)
    # Without the count of glyphs that plain digits have, so that neither kind is taken for the other in one folder.
    settings = {"size": size, "fps": FPS, "seed": seed, "frames": frames, "combinations": combinations + kind}

    def make(clip_number: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        video = draw(seed, clip_number, combinations, size, frames)
        return video.video_THWC, video.facts

    paths = [clip_path(out, number) for number in range(clips)]
    return write_built_in("captioned digits", out, paths, settings, make, captions=True, progress=progress)


def _held_out_direction(digit: str) -> str:
    # Three steps of 45 degrees a digit: every direction is held out for one digit or two.
    return DIRECTIONS[3 * int(digit) % len(DIRECTIONS)]


def _glyph(attributes: DigitAttributes, size: int, rng: np.random.Generator) -> tuple[Glyph, NDArray[np.float64]]:
    """Draw a look within the bins, and a path that is straight for ``STRAIGHT_FRAMES``; the glyph and its mask."""

    def uniform(bounds: tuple[float, float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(rng.random())

    digit, scale = int(attributes.digit), size / REFERENCE_SIZE
    height, slant = uniform(HEIGHTS[attributes.size]) * scale, uniform(SLANT_RANGE)
    weight, grey = uniform(WEIGHTS[attributes.weight]), uniform(GREYS[attributes.brightness])
    speed = uniform(SPEEDS[attributes.speed]) * scale
    angle = DIRECTIONS.index(attributes.direction) * math.pi / 4 + uniform((-ANGLE_JITTER, ANGLE_JITTER))
    mask_HW = glyph_mask(digit, height, slant, weight)
    low, high = glyph_bounds(mask_HW, size)
    velocity = (speed * math.cos(angle), speed * math.sin(angle))
    x, y = (
        uniform((low[axis] - min(0.0, travelled), high[axis] - max(0.0, travelled)))
        for axis, travelled in enumerate(step * (STRAIGHT_FRAMES - 1) for step in velocity)
    )
    return Glyph(digit, height, slant, weight, grey, (x, y), velocity, low, high), mask_HW
