"""Videos of every kind with the frame number drawn into each frame, so that a frame says which one it is."""

from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np

from magi.data.decoding.frames import VideoProbe
from magi.data.decoding.probe import DecodeLimits, probe_file
from studies.survival.hostile import same_priority

COUNT, HEIGHT, WIDTH, BITS = 90, 64, 128, 8
VP9 = {"deadline": "realtime", "cpu-used": "8"}
# Milliseconds, in gaps of 10 to 73: a frame rate that never settles.
UNEVEN_TIMES = list(accumulate([10 + (n * n) % 64 for n in range(COUNT - 1)], initial=0))


def numbered_frame(number: int) -> np.ndarray:
    """The bits of the number as dark and bright bars, which survive any codec."""
    bits_W = np.repeat([number >> bit & 1 for bit in range(BITS)], WIDTH // BITS)
    return np.broadcast_to((bits_W * 200 + 20).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3))


def number_in(frame_HWC: np.ndarray) -> int:
    bars = frame_HWC[HEIGHT // 2, WIDTH // BITS // 2 :: WIDTH // BITS].mean(-1)
    return sum(1 << bit for bit, bar in enumerate(bars) if bar > 120)


def write(
    path: Path,
    codec: str = "libx264",
    count: int = COUNT,
    times: list[int] | None = None,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
    draw: Callable[[int], np.ndarray] = numbered_frame,
    format: str | None = None,
) -> Path:
    with same_priority(), av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = draw(0).shape[:2]
        stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", 24, 1
        stream.codec_context.max_b_frames = b_frames
        tick = Fraction(1, 25) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = tick
        prepare(stream)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw(number)), format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def good(path: Path) -> VideoProbe:
    """The probe of a file that is not rejected."""
    probe = probe_file(path, DecodeLimits())
    assert isinstance(probe, VideoProbe), probe
    return probe


KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264-one-keyframe.mp4": {"options": {"g": "250", "sc_threshold": "0"}, "b_frames": 3},
    "h264-open-gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "variable-rate.mp4": {"times": UNEVEN_TIMES},
    "variable-rate.mkv": {"times": UNEVEN_TIMES},
    "late-start.mp4": {"times": [4000 + time for time in UNEVEN_TIMES]},
    "xvid-b-frames.avi": {"codec": "mpeg4"},
    "xvid.avi": {"codec": "mpeg4", "b_frames": 0},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9, "b_frames": 0},
    "uneven-vp9.webm": {"codec": "libvpx-vp9", "options": VP9, "b_frames": 0, "times": UNEVEN_TIMES},
}


def write_kinds(folder: Path) -> dict[str, Path]:
    """One video of each of ``KINDS``."""
    return {name: write(folder / name, **options) for name, options in KINDS.items()}
