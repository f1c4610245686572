"""Exactly the frames of a video file that were asked for, by number.

Frames are addressed by their number in display order, never by time: a table of the presentation time stamps (pts)
of all frames says where to seek, which stays exact for a variable frame rate. Where the time stamps cannot be trusted
(``magi.data.decoding.probe``) the table is None and every read decodes from the start.

Frames are returned as a player shows them: interlaced ones are deinterlaced, pixels that are not square are resampled
to the display's shape, then the picture is turned and mirrored as the file's display matrix asks. Alpha is dropped and
10-bit video becomes 8-bit. Of several video streams the one counts that the ffmpeg command would choose; cover images
never do. FFmpeg may open local files of three container families only.

A hostile file can crash or hang the process that decodes it, so the sandbox (``magi.data.decoding.sandbox``) decodes
every file once; a file that it has accepted is then read in the caller's process.
"""

import math
import os
from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import av
import av.container
import av.error
import av.stream
import av.video.frame
import av.video.reformatter
import av.video.stream
import numpy as np
from numpy.typing import NDArray

from magi.data.decoding.deinterlace import deinterlaced
from magi.errors import DataError

_FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"}
_INDEX_AGAIN = "it has changed since it was indexed: run 'magi data index' on its folder"
_ONE_DEGREE = math.tan(math.radians(1))
"""How far from a multiple of 90 degrees FFmpeg's own player still turns by that multiple."""
_WIDEST_PIXEL = 4
"""Pixels wider or higher than this are a writer's mistake (anamorphic film has 2, half-width PAL 2.9): square then."""
DEINTERLACED, KEPT = "deinterlaced", "clean_stretch_kept"
ADJUSTMENTS = (
    DEINTERLACED,
    "pixels_made_square",
    "pixel_shape_ignored",
    "turned_or_mirrored",
    "made_8_bit",
    "other_video_streams_ignored",
    KEPT,
)
"""What ``docs/own_videos.md`` explains, as reports count it; an index stores the position here, so new ones go last."""

_ROUNDING = 0.01
"""Of a frame: rates are rounded, and a frame that begins exactly then must be found."""

Reformatter = av.video.reformatter.VideoReformatter


@dataclass(frozen=True)
class VideoProbe:
    """What decoding a whole file once has shown."""

    frames: int
    height: int
    """Of a displayed frame, in pixels."""
    width: int
    fps: float
    """Mean frame rate, for display only: no frame is ever found by it."""
    pts: Sequence[int] | None
    """Time stamp of every frame, strictly increasing (a ``range`` or a tuple); None: decode from the start."""
    adjusted: tuple[str, ...] = field(default=(), kw_only=True)
    """Which of ``ADJUSTMENTS`` are done to the stored frames to show them."""
    stored: Self | None = field(default=None, kw_only=True)
    """The video as it is stored, where ``frames`` are those of another rate (``at_rate``)."""


Probe = TypeVar("Probe", bound=VideoProbe)


def at_rate(probe: Probe, fps: float) -> Probe:
    """The same video with the frames that are on screen every 1 / ``fps`` seconds, by its time stamps.

    Its frame j is the stored one that is shown j / ``fps`` seconds after the first, so a faster rate repeats frames and
    a slower one leaves some out. A video whose own rate is not known has one frame.
    """
    frames = int(frames_at_rate(np.array([probe.frames]), np.array([probe.fps]), fps)[0])
    return replace(probe, frames=frames, fps=fps, pts=None, stored=probe)


def frames_at_rate(frames_V: NDArray[np.int64], fps_V: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    """How many frames each of some videos has ``at_rate``, from its stored frames and mean rate."""
    known_V = fps_V > 0
    seconds_V = np.where(known_V, frames_V - 1, 0) / np.where(known_V, fps_V, 1)
    return np.floor(seconds_V * fps + _ROUNDING).astype(np.int64) + 1


def _on_screen(stored: VideoProbe, fps: float, indices: Sequence[int]) -> list[int]:
    """Number of the stored frame that is shown ``index`` / ``fps`` seconds after the first, of each index."""
    if not stored.fps:
        return [0] * len(indices)
    at_I = np.array(indices, np.float64) / fps * stored.fps + _ROUNDING  # in mean distances of frames
    if isinstance(stored.pts, tuple):
        pts_F = np.array(stored.pts, np.float64) - stored.pts[0]
        shown_I = np.searchsorted(pts_F * ((stored.frames - 1) / pts_F[-1]), at_I, side="right") - 1
    else:
        shown_I = np.floor(at_I).astype(np.int64)
    return np.minimum(shown_I, stored.frames - 1).tolist()


class Rejection(Exception):
    """Why a file cannot be used: a stable reason code and one line of detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_frames(path: Path, indices: Sequence[int], probe: VideoProbe) -> np.ndarray:
    """The frames with the given strictly increasing numbers as ``frames_THWC`` uint8 RGB.

    ``DataError`` where the file no longer yields what ``probe`` promises, ``ValueError`` for impossible numbers.
    """
    frames_THWC = np.empty((len(indices), probe.height, probe.width, 3), np.uint8)
    for slot, frame_HWC in enumerate(stream_frames(path, indices, probe)):
        frames_THWC[slot] = frame_HWC
    return frames_THWC


def stream_frames(path: Path, indices: Sequence[int], probe: VideoProbe) -> Iterator[np.ndarray]:
    """As ``read_frames``, one ``frame_HWC`` at a time: constant memory for any length."""
    if any(not 0 <= index < probe.frames for index in indices) or any(a >= b for a, b in pairwise(indices)):
        raise ValueError(f"{path}: frame numbers must increase strictly within 0..{probe.frames - 1}, got {indices}")
    if probe.stored is not None:
        shown = _on_screen(probe.stored, probe.fps, indices)
        frames = stream_frames(path, sorted(set(shown)), probe.stored)
        for _, repeated in groupby(shown):
            frame_HWC = next(frames)
            yield from (frame_HWC for _ in repeated)
        return
    try:
        yield from _stream_frames(path, indices, probe)
    except (av.error.FFmpegError, OSError, Rejection) as error:
        raise DataError(f"{path}: cannot be read again ({one_line(error)}); {_INDEX_AGAIN}") from error


def _stream_frames(path: Path, indices: Sequence[int], probe: VideoProbe) -> Iterator[np.ndarray]:
    wanted = iter(indices)
    index = next(wanted, None)
    reformatter = Reformatter()
    interlaced, first = DEINTERLACED in probe.adjusted, indices[0] if len(indices) else 0
    frames = numbered_frames(path, max(0, first - interlaced), probe)
    for number, frame, aspect in deinterlaced(frames, frozenset(indices)) if interlaced else frames:
        if index is None or number > index:
            break
        if number == index:
            frame_HWC = _rgb(frame, aspect, reformatter)
            if frame_HWC.shape[:2] != (probe.height, probe.width):
                break
            yield frame_HWC
            index = next(wanted, None)
            if index is None:
                return
    if index is not None:
        raise DataError(f"{path}: frame {index} is no longer what it was; {_INDEX_AGAIN}")


def numbered_frames(path: Path, first: int, probe: VideoProbe) -> Iterator[tuple[int, av.VideoFrame, Fraction]]:
    """Numbers, frames and the shape of their pixels, from some frame <= ``first`` on.

    By a seek if there is a table and the seek lands; what lies outside a clean stretch that was kept is not read.
    """
    pts, kept = probe.pts, KEPT in probe.adjusted
    if pts is not None and (first > 0 or kept):
        for start in dict.fromkeys((first, 0)) if kept else (first,):
            if (yield from _sought_frames(path, start, pts, kept)):
                return
    if kept:
        raise DataError(f"{path}: its clean stretch is not found; {_INDEX_AGAIN}")
    with open_video(path) as (container, stream):
        aspect = pixel_aspect(stream)
        for number, frame in enumerate(container.decode(stream)):
            yield number, frame, aspect


def _sought_frames(
    path: Path, start: int, pts: Sequence[int], kept: bool
) -> Generator[tuple[int, av.VideoFrame, Fraction], None, bool]:
    """As ``numbered_frames``, by a seek alone; returns whether it has landed, and yields nothing if not."""
    with open_video(path) as (container, stream):
        container.seek(pts[start], stream=stream, backward=True)
        landed, aspect = False, pixel_aspect(stream)
        for frame in _decoded(container, stream, pts[-1] if kept else None):
            if kept and frame.pts is not None and frame.pts < pts[0]:
                continue
            number = _number_of(frame, pts)
            if number is None or (not landed and number > start):
                break
            landed = True
            yield number, frame, aspect
        else:
            return landed
        if landed:
            raise DataError(f"{path}: has other time stamps than before; {_INDEX_AGAIN}")
        return False


def _decoded(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, last: int | None
) -> Iterator[av.VideoFrame]:
    """The frames from where the file is read; with ``last``, no packet of a later time, behind which damage may lie."""
    for packet in container.demux(stream):
        if last is not None and packet.pts is not None and packet.pts > last:
            break
        yield from packet.decode()
    else:
        return
    yield from stream.codec_context.decode(None)


def _number_of(frame: av.VideoFrame, pts: Sequence[int]) -> int | None:
    if frame.pts is None:
        return None
    number = bisect_left(pts, frame.pts)
    return number if number < len(pts) and pts[number] == frame.pts else None


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """Context of an opened file and its video stream; single-threaded, as FFmpeg's threads deadlock with workers."""
    with av.open(os.path.abspath(path), options=dict(_FFMPEG_OPTIONS)) as container:
        streams = video_streams(container)
        if not streams:
            raise Rejection("no_video_stream", "holds no video stream (audio only?)")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise Rejection("unknown_codec", "is coded in a way that FFmpeg cannot decode")
        best = max(known, key=_preference)
        best.thread_type = "NONE"
        best.codec_context.thread_count = 1
        yield container, best


def video_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The video streams of a file; a cover image is none."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def _preference(stream: av.video.stream.VideoStream) -> int:
    """As the ffmpeg command chooses among streams: by pixels, and five million more for one marked as the default."""
    marked = bool(stream.disposition & av.stream.Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + 5_000_000 * marked


def _rgb(frame: av.VideoFrame, aspect: Fraction, reformatter: Reformatter) -> np.ndarray:
    """RGB as a player shows it: square pixels, turned and mirrored as the file's display matrix says.

    NOTE: ``threads=1``, because a conversion otherwise starts a thread for each core, in every loader process.
    """
    height, width = displayed_size(frame, aspect)
    kernel = None if aspect == 1 else "BICUBIC"
    frame_HWC = reformatter.reformat(frame, width, height, "rgb24", interpolation=kernel, threads=1).to_ndarray()
    orientation = orientation_of(frame)
    if orientation.transposed:
        frame_HWC = frame_HWC.swapaxes(0, 1)
    return np.ascontiguousarray(frame_HWC[:: orientation.down, :: orientation.right])


def pixel_aspect(stream: av.video.stream.VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 where the file names no shape or one beyond 1:4 and 4:1, a writer's mistake.

    The container's word counts before the codec's, as in players.
    """
    named = stream.sample_aspect_ratio
    return named if named and Fraction(1, _WIDEST_PIXEL) <= named <= _WIDEST_PIXEL else Fraction(1)


def displayed_size(frame: av.VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """Height and width in square pixels, before any turn: the short side of a pixel is stretched, no row is lost."""
    if aspect < 1:
        return round(frame.height / aspect), frame.width
    return frame.height, round(frame.width * aspect)


@dataclass(frozen=True)
class Orientation:
    """How a decoded frame is displayed: first rows and columns change places, then each axis may be reversed."""

    transposed: bool = False
    down: int = 1
    """-1: the rows are reversed."""
    right: int = 1
    """-1: the columns are reversed."""


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """What the frame's display matrix asks for; ``Rejection`` where that is no quarter turn or mirror image.

    A pixel (x, y) is displayed at (a x + c y, b x + d y), scale and offset apart (FFmpeg's ``libavutil/display.h``).
    """
    side_data = cast(Mapping[str, Any], frame.side_data)  # PyAV's annotations name two kinds of many
    matrix = side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    if a and d and max(abs(b), abs(c)) < _ONE_DEGREE * min(abs(a), abs(d)):
        return Orientation(False, int(math.copysign(1, d)), int(math.copysign(1, a)))
    if b and c and max(abs(a), abs(d)) < _ONE_DEGREE * min(abs(b), abs(c)):
        return Orientation(True, int(math.copysign(1, b)), int(math.copysign(1, c)))
    if a == b == c == d == 0:
        return Orientation()  # players show a matrix that was never filled in as it lies
    raise Rejection("odd_display_matrix", "is displayed neither by quarter turns nor mirrored: encode it again upright")


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
