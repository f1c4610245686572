"""Built-in videos: digits that bounce in a black frame with exact physics (design.md section 2).

A glyph of Pillow's bundled font is drawn once, four samples a pixel, and moved without rounding: every sample's ink
is shared between the nearest pixel centres, so the centroid of the ink in a frame is the centroid the physics says.
The centroid moves uniformly and is reflected elastically where the ink meets the border; the path is a closed form,
not a simulation, so frame 10,000 is as exact as frame 1. Several glyphs pass through each other.

Coordinates are (x, y) in pixels, and (0, 0) is the centre of the top left pixel. This module does not know how clips
are cut from videos.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magi.data.built_in import Progress, write_built_in

CLASSES = tuple("0123456789")
FPS = 25
REFERENCE_SIZE = 64  # sizes and speeds below are in pixels of a 64 x 64 frame and scale with the frame
HEIGHT_RANGE = (18.0, 28.0)
SPEED_RANGE = (0.8, 2.4)
SLANT_RANGE = (-0.25, 0.25)  # sideways shift over height
WEIGHT_RANGE = (0.0, 0.035)  # thickening of the outline over glyph height
GREY_RANGE = (150.0, 255.0)
SAMPLES = 4  # samples a pixel, along each axis
CAP_HEIGHT = 0.71  # height of a digit over the font's size

Point = tuple[float, float]


@dataclass(frozen=True)
class Glyph:
    """One moving digit: its look, and its path in pixels and pixels a frame, the centroid within [low, high]."""

    digit: int
    height: float
    slant: float
    weight: float
    grey: float
    start: Point
    velocity: Point
    low: Point
    high: Point


@dataclass(frozen=True)
class DigitVideo:
    """A drawn video, its class (that of the first glyph), its glyphs and the exact (x, y) of each in every frame."""

    video_THWC: NDArray[np.uint8]
    label: int
    glyphs: tuple[Glyph, ...]
    centroids_GT2: NDArray[np.float64]


def digit_video(seed: int, clip_number: int, size: int = 64, frames: int = 200, glyphs: int = 1) -> DigitVideo:
    """Draw clip ``clip_number`` of ``seed``: a pure function; more frames continue the same video.

    Clip numbers go round the ten classes. Raises ``ValueError`` for a size, frame or glyph count that cannot be drawn.
    """
    check_drawable(size, frames, glyphs)
    rng = np.random.default_rng([seed, clip_number])
    drawn: list[Glyph] = []
    centroids, video_THW = [], np.zeros((frames, size, size), dtype=np.uint8)
    for number in range(glyphs):
        digit = clip_number % 10 if number == 0 else int(rng.random() * 10)
        glyph, mask_HW = _draw_glyph(digit, size, rng)
        path_T2 = glyph_path(glyph, np.arange(frames))
        stamp(video_THW, mask_HW, path_T2, glyph.grey)
        drawn.append(glyph)
        centroids.append(path_T2)
    video_THWC = np.repeat(video_THW[..., None], 3, axis=-1)
    return DigitVideo(video_THWC, drawn[0].digit, tuple(drawn), np.stack(centroids))


def glyph_path(glyph: Glyph, times_T: NDArray[Any]) -> NDArray[np.float64]:
    """Exact centroid (x, y) of ``glyph`` at ``times_T`` in frames: uniform motion folded into [low, high]."""
    low_2, high_2 = np.array(glyph.low), np.array(glyph.high)
    span_2 = high_2 - low_2
    travelled_T2 = np.asarray(times_T, dtype=np.float64)[:, None] * np.array(glyph.velocity)
    straight_T2 = np.array(glyph.start) - low_2 + travelled_T2
    folded_T2: NDArray[np.float64] = high_2 - np.abs(straight_T2 % (2 * span_2) - span_2)
    return folded_T2


def write_digits(
    out: Path,
    clips: int,
    size: int = 64,
    seed: int = 0,
    glyphs: int = 1,
    frames: int = 200,
    progress: Progress | None = None,
) -> int:
    """Write ``clips`` videos as ``out/<digit>/<digit>_<clip>.mp4``, each beside its ``.json`` of exact positions.

    Clips already there are kept, so a second call continues or does nothing. ``progress`` is called with (done, all).
    Returns the number of videos written. Raises ``ValueError`` if ``out`` holds digits of other settings.
    """
    check_drawable(size, frames, glyphs)
    settings = {"size": size, "fps": FPS, "seed": seed, "frames": frames, "glyph_count": glyphs}

    def make(clip_number: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        video = digit_video(seed, clip_number, size, frames, glyphs)
        return video.video_THWC, _facts(video)

    paths = [clip_path(out, number) for number in range(clips)]
    return write_built_in("built-in digits", out, paths, settings, make, progress=progress)


def clip_path(out: Path, clip_number: int) -> Path:
    """Where ``write_digits`` puts a clip."""
    digit = CLASSES[clip_number % 10]
    return out / digit / f"{digit}_{clip_number:05d}.mp4"


def check_drawable(size: int, frames: int, glyphs: int = 1) -> None:
    """``ValueError`` for a size, frame or glyph count that cannot be drawn."""
    if size < 32 or size % 2:
        raise ValueError(f"size must be even and at least 32 pixels, got {size}")
    if frames < 1 or glyphs < 1:
        raise ValueError(f"frames and glyphs must be at least 1, got {frames} and {glyphs}")


def _facts(video: DigitVideo) -> dict[str, Any]:
    """What a sidecar says beside the settings."""
    glyphs = zip(video.glyphs, video.centroids_GT2, strict=True)
    return {
        "class": CLASSES[video.label],
        "glyphs": [asdict(glyph) | {"positions": positions_T2.tolist()} for glyph, positions_T2 in glyphs],
    }


def _draw_glyph(digit: int, size: int, rng: np.random.Generator) -> tuple[Glyph, NDArray[np.float64]]:
    """Draw the look and the path of a glyph from ``rng``; the mask is trimmed to its ink, SAMPLES samples a pixel."""

    def uniform(bounds: Point) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(rng.random())

    scale = size / REFERENCE_SIZE
    height, slant, weight = uniform(HEIGHT_RANGE) * scale, uniform(SLANT_RANGE), uniform(WEIGHT_RANGE)
    grey, speed, angle = uniform(GREY_RANGE), uniform(SPEED_RANGE) * scale, uniform((0.0, 2 * math.pi))
    mask_HW = glyph_mask(digit, height, slant, weight)
    low, high = glyph_bounds(mask_HW, size)
    start = (uniform((low[0], high[0])), uniform((low[1], high[1])))
    velocity = (speed * math.cos(angle), speed * math.sin(angle))
    return Glyph(digit, height, slant, weight, grey, start, velocity, low, high), mask_HW


def glyph_mask(digit: int, height: float, slant: float, weight: float) -> NDArray[np.float64]:
    """The ink 0..1 of a glyph about ``height`` pixels high, SAMPLES samples a pixel, trimmed: what ``stamp`` takes."""
    return _mask(digit, height * SAMPLES, slant, weight * height * SAMPLES)


def glyph_bounds(mask_HW: NDArray[np.float64], size: int) -> tuple[Point, Point]:
    """The least and the largest (x, y) of the centroid of a mask whose ink is whole in a frame of ``size`` pixels."""
    low_2 = _centroid(mask_HW) / SAMPLES
    extent_2 = (np.array(mask_HW.shape[::-1]) - 1) / SAMPLES
    return _point(low_2), _point(size - 1 - (extent_2 - low_2))


def _point(xy_2: NDArray[np.float64]) -> Point:
    return float(xy_2[0]), float(xy_2[1])


def _mask(digit: int, height: float, slant: float, stroke: float) -> NDArray[np.float64]:
    """A digit about ``height`` samples high, sheared by ``slant``, outline thickened by ``stroke``; ink 0..1."""
    edge = math.ceil(2 * height)
    image = Image.new("L", (edge, edge))
    font, middle = ImageFont.load_default(size=height / CAP_HEIGHT), (edge / 2, edge / 2)
    ImageDraw.Draw(image).text(middle, CLASSES[digit], fill=255, font=font, anchor="mm", stroke_width=stroke)
    shear = (1.0, slant, -slant * edge / 2, 0.0, 1.0, 0.0)  # output (x, y) reads input (x + slant (y - edge / 2), y)
    image = image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC)
    return np.asarray(image.crop(image.getbbox()), dtype=np.float64) / 255.0


def _centroid(mask_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centroid (x, y) of the ink in units of samples."""
    total = mask_HW.sum()
    return np.array([mask_HW.sum(axis) @ np.arange(mask_HW.shape[1 - axis]) / total for axis in (0, 1)])


def stamp(
    video_THW: NDArray[np.uint8], mask_HW: NDArray[np.float64], path_T2: NDArray[np.float64], grey: float
) -> None:
    """Draw the mask with its centroid on ``path_T2`` into the frames; where glyphs overlap the brighter one shows."""
    frames, size = video_THW.shape[:2]
    centre_x, centre_y = _centroid(mask_HW)
    first_TY, weights_TYH = _share(path_T2[:, 1], mask_HW.shape[0], centre_y)
    first_TX, weights_TXW = _share(path_T2[:, 0], mask_HW.shape[1], centre_x)
    ink_TYX = weights_TYH @ mask_HW @ weights_TXW.swapaxes(1, 2)
    ink_TYX = np.rint(grey * ink_TYX).clip(0, 255).astype(np.uint8)
    high, wide = ink_TYX.shape[1:]
    for frame in range(frames):
        y, x = int(first_TY[frame]), int(first_TX[frame])
        window = video_THW[frame, y : y + high, x : x + wide]
        # The last rows and columns of the stamp may lie outside the frame; they hold no ink.
        np.maximum(window, ink_TYX[frame, : min(high, size - y), : min(wide, size - x)], out=window)


def _share(centre_T: NDArray[np.float64], samples: int, middle: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """How much of each sample's ink falls to each pixel, by linear interpolation, which keeps the centroid exact.

    Returns the first pixel of each frame's stamp, and weights (T, pixels, samples).
    """
    positions_TS = centre_T[:, None] + (np.arange(samples) - middle) / SAMPLES
    # NOTE: on the border a position may be -1e-16 by rounding; its ink belongs to pixel 0.
    first_T = np.floor(positions_TS[:, 0] + 1e-9).astype(np.intp)
    pixels_P = np.arange(math.ceil((samples - 1) / SAMPLES) + 2)
    distance_TPS = np.abs((positions_TS - first_T[:, None])[:, None, :] - pixels_P[:, None])
    return first_T, np.maximum(0.0, 1.0 - distance_TPS) / SAMPLES
