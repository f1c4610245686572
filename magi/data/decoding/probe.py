"""One full decode of a video file: what is in it, or why it is rejected; and both as JSON.

Time stamps cannot be trusted in AVI with B-frames, where some are missing or do not increase, and where a trial seek
returned another frame: then the table is None. Nothing is read but the file itself: playlists are refused.

A hostile file can crash or hang the process that decodes it, so call ``probe_file`` through
``magi.data.decoding.sandbox`` alone.
"""

import os
import stat
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.video.frame
import av.video.stream
import numpy as np

from magi.data.decoding.containers import declared_end
from magi.data.decoding.frames import (
    ADJUSTMENTS,
    DEINTERLACED,
    KEPT,
    Orientation,
    Reformatter,
    Rejection,
    VideoProbe,
    displayed_size,
    numbered_frames,
    one_line,
    open_video,
    pixel_aspect,
    stream_frames,
    video_streams,
)
from magi.data.decoding.packets import DecodedPackets
from magi.errors import DataError

FROM_THE_START = "from the start"
"""What JSON says of a video whose frames cannot be found by a seek."""
_SCANNED = (b"RIFF", b"\x1a\x45\xdf\xa3")
"""What AVI and Matroska files begin with: FFmpeg goes through a hole in them byte by byte."""
_LARGEST_HOLE = 256 << 20
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"<smil", b"<asx", b"file ", b"#!concat")


@dataclass(frozen=True)
class DecodeLimits:
    """What one file may cost before it is given up."""

    seconds: float = 30.0
    """Wall-clock time, whatever the size: a hostile file names any size it likes."""
    memory_bytes: int = 2 << 30
    """Address space of the decoding process."""
    pixels: int = 40_000_000
    """Width x height of a frame; 8K has 33 million."""
    frames: int = 1_000_000


@dataclass(frozen=True)
class RejectedFile:
    """Why a file cannot be used: a stable reason code and one line of detail."""

    reason: str
    detail: str
    clean: VideoProbe | None = None
    """The longest stretch of a damaged file that is sound, for who wants it; ``KEPT`` is among its adjustments."""


Outcome = VideoProbe | RejectedFile


def probe_file(path: Path, limits: DecodeLimits) -> VideoProbe | RejectedFile:
    """Decode a whole file and say what is in it, or why it cannot be used; never call it outside the sandbox."""
    try:
        _check_bytes(path)
        return _probe(path, limits)
    except Rejection as rejection:
        return RejectedFile(rejection.reason, str(rejection))
    except MemoryError:
        return RejectedFile("memory_limit", f"needs more than {limits.memory_bytes} bytes of memory")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        return _explain(path, error)


def _check_bytes(path: Path) -> None:
    """Refuse, before FFmpeg sees it, what is no file, empty, or a playlist that names other files."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise Rejection("unreadable", one_line(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise Rejection("not_a_regular_file", "is not a regular file")
    if status.st_size == 0:
        raise Rejection("empty_file", "has 0 bytes")
    with open(path, "rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
        missing = _never_written(file.fileno(), status.st_size) if head.startswith(_SCANNED) else 0
    if head.startswith(_PLAYLIST_STARTS):
        raise Rejection("playlist_refused", "is a playlist that names other files")
    if missing > _LARGEST_HOLE:
        raise Rejection("never_written", f"{missing} of its {status.st_size} bytes were never written; copy it again")


def _never_written(file: int, size: int) -> int:
    """Bytes in the holes of a file: it is on its way here, or hostile. The reader of some containers scans them all."""
    at = missing = 0
    while at < size and missing <= _LARGEST_HOLE and (hole := os.lseek(file, at, os.SEEK_HOLE)) < size:
        try:
            at = os.lseek(file, hole, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            at = size
        missing += at - hole
    os.lseek(file, 0, os.SEEK_SET)
    return missing


class _Seen:
    """What is kept of the frames of a file while it is decoded once."""

    def __init__(self) -> None:
        self.times: list[int | None] = []
        self.checksums: list[int] = []
        self.has_b_frames = self.interlaced = False
        self.shape: tuple[int, int, Orientation] | None = None

    def add(
        self,
        frame: av.VideoFrame,
        aspect: Fraction,
        orientation: Orientation,
        gray: Reformatter,
        limits: DecodeLimits,
    ) -> None:
        """Take note of the next frame; ``Rejection`` where it is not like the first, or one too many."""
        shape = (*displayed_size(frame, aspect), orientation)
        _check_pixels(*shape[:2], limits)
        if self.shape not in (None, shape):
            raise Rejection("size_changed", f"frame {len(self.times)} has another size or rotation than the first")
        self.shape = shape
        if len(self.times) == limits.frames:
            raise Rejection("too_many_frames", f"has more than {limits.frames} frames")
        self.times.append(frame.pts)
        self.checksums.append(_checksum(frame, gray))
        self.has_b_frames |= frame.pict_type == av.video.frame.PictureType.B
        self.interlaced |= frame.interlaced_frame


def _probe(path: Path, limits: DecodeLimits) -> VideoProbe | RejectedFile:
    gray, seen = Reformatter(), _Seen()
    with open_video(path) as (container, stream):
        is_avi, aspect = container.format.name == "avi", pixel_aspect(stream)
        _check_pixels(stream.codec_context.height, stream.codec_context.width, limits)
        packets = DecodedPackets(path, container, stream)
        for frame in packets:
            try:
                seen.add(frame, aspect, packets.orientation_of(frame), gray, limits)
            except Rejection:
                if not packets.fault:
                    raise
        times, shape = seen.times, seen.shape
        time_base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        # Some AVI writers leave a wrong size behind, so there the number of frames must tell the same.
        complete = is_avi and len(times) >= stream.frames
        adjusted = _adjustments(container, stream, shape[2], seen.interlaced) if shape else ()
    if shape is None:
        if packets.error is not None:
            raise packets.error
        raise _truncation(path) or Rejection("no_frames", "holds no frame that can be decoded")
    height, width = shape[1::-1] if shape[2].transposed else shape[:2]

    def probed(numbers: range, pts: Sequence[int] | None, *kept: str) -> VideoProbe:
        mean = (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base) if pts is not None and time_base else rate
        if pts is not None and not _seek_is_exact(path, pts, seen.checksums[numbers.start : numbers.stop], gray):
            pts = None
        probe = VideoProbe(len(numbers), height, width, round(mean, 6), pts, adjusted=(*adjusted, *kept))
        if seen.interlaced:
            _check_deinterlacing(path, probe)
        return probe

    if damage := _damage(path, packets, complete):
        numbers = packets.clean_stretch(times)
        clean = probed(numbers, _pts_table(times[numbers.start : numbers.stop]), KEPT) if len(numbers) > 1 else None
        if clean is None or not _is_read_again(path, clean, seen.checksums[numbers.start : numbers.stop], gray):
            return RejectedFile(damage.reason, str(damage))
        begin, end = (float((clean.pts or times)[at] or 0) * time_base for at in (0, -1))
        where = f"{len(numbers)} frames from second {begin:.2f} to {end:.2f} are sound"
        return RejectedFile(damage.reason, f"{damage}; {where}", clean)
    if len(times) == 1:
        raise Rejection("single_frame", "holds a single frame")
    return probed(range(len(times)), None if is_avi and seen.has_b_frames else _pts_table(times))


def _is_read_again(path: Path, clean: VideoProbe, checksums: list[int], gray: Reformatter) -> bool:
    """Whether a stretch is found by its time stamps, and reads as it did between what was damaged."""
    try:
        found = [_checksum(frame, gray) for _, frame, _ in numbered_frames(path, 0, clean)] if clean.pts else []
    except (av.error.FFmpegError, DataError):
        return False
    return found == checksums


def _truncation(path: Path) -> Rejection | None:
    """The reason to give where a file ends before its container says that it does."""
    end, size = declared_end(path), os.path.getsize(path)
    return Rejection("truncated", f"ends early: {size} of {end} bytes") if end > size else None


def _damage(path: Path, packets: DecodedPackets, complete: bool) -> Rejection | None:
    """The reason for what was heard of a file; NOTE: some codecs are a few frames ahead of the number."""
    truncated = _truncation(path) if packets.fault or not complete else None
    if truncated:
        packets.reject_last(str(truncated))
    if truncated or not packets.fault:
        return truncated
    return Rejection("damaged", f"is damaged at about frame {packets.fault_at} ({packets.fault}); copy it again")


def _check_deinterlacing(path: Path, probe: VideoProbe) -> None:
    """The filter too runs here once, before it may run in the caller's process."""
    try:
        next(stream_frames(path, [probe.frames // 2], probe))
    except DataError as error:
        raise Rejection(
            "not_deinterlaced", f"its interlaced frames cannot be deinterlaced ({error.__cause__})"
        ) from error


def _adjustments(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    orientation: Orientation,
    interlaced: bool,
) -> tuple[str, ...]:
    """Which of ``ADJUSTMENTS`` the frames of ``stream`` need."""
    made_square = pixel_aspect(stream) != 1
    done = {
        DEINTERLACED: interlaced,
        "pixels_made_square": made_square,
        "pixel_shape_ignored": not made_square and (stream.sample_aspect_ratio or 1) != 1,
        "turned_or_mirrored": orientation != Orientation(),
        "made_8_bit": any(component.bits > 8 for component in stream.format.components),
        "other_video_streams_ignored": len(video_streams(container)) > 1,
    }
    return tuple(name for name, needed in done.items() if needed)


def _check_pixels(height: int, width: int, limits: DecodeLimits) -> None:
    if width * height > limits.pixels:
        raise Rejection("too_many_pixels", f"{width}x{height} is more than {limits.pixels} pixels a frame")


def _checksum(frame: av.VideoFrame, gray: Reformatter) -> int:
    # NOTE: rows are padded unless the width is a multiple of 64; tobytes leaves the padding out.
    return zlib.crc32(gray.reformat(frame, format="gray", threads=1).to_ndarray().tobytes())


def _pts_table(times: Sequence[int | None]) -> Sequence[int] | None:
    """A ``range`` for a constant rate (small in memory), else a tuple; None if a frame cannot be found by its stamp."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(a >= b for a, b in pairwise(known)):
        return None
    step = known[1] - known[0]
    constant = range(known[0], known[0] + step * len(known), step)
    return constant if all(a == b for a, b in zip(known, constant, strict=True)) else tuple(known)


def _seek_is_exact(path: Path, pts: Sequence[int], checksums: list[int], gray: Reformatter) -> bool:
    """Whether a seek to the middle of the file returns the very frame that decoding from the start returned."""
    middle = len(pts) // 2
    with open_video(path) as (container, stream):
        container.seek(pts[middle], stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts > pts[middle]:
                return False
            if frame.pts == pts[middle]:
                return _checksum(frame, gray) == checksums[middle]
    return False


def _explain(path: Path, error: Exception) -> RejectedFile:
    """The most precise reason for a file that FFmpeg or the disk refused."""
    if isinstance(error, PermissionError):
        return RejectedFile("unreadable", one_line(error))
    try:
        end, truncated = declared_end(path), _truncation(path)
    except OSError as changed:
        return RejectedFile("changed_on_disk", one_line(changed))
    if truncated:
        return RejectedFile(truncated.reason, str(truncated))
    if end == 0:
        return RejectedFile("not_a_video", "is no mp4, mov, avi, mkv or webm file inside")
    _, name, text = getattr(error, "log", None) or (0, "", "")
    return RejectedFile("decode_error", one_line(error) + (f" ({name}: {' '.join(text.split())})" if name else ""))


def pack_steps(pts: Sequence[int]) -> bytes:
    """The differences of successive time stamps, compressed."""
    return zlib.compress(np.diff(np.array(pts, "<i8")).tobytes())


def unpack_steps(start: int, packed: bytes, frames: int) -> tuple[int, ...]:
    """The reverse; ``ValueError`` unless it is ``frames`` time stamps that increase strictly."""
    try:
        # No more is unpacked than the frames need, however large an untrusted table would become.
        steps = np.frombuffer(zlib.decompressobj().decompress(packed, 8 * frames), "<i8")
    except zlib.error as error:
        raise ValueError(f"time stamps are damaged ({error})") from None
    if len(steps) != frames - 1 or (steps <= 0).any():
        raise ValueError(f"time stamps are damaged ({len(steps) + 1} of {frames}, or not increasing)")
    return tuple((start + np.concatenate(([0], np.cumsum(steps)))).tolist())


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain JSON values; of time stamps two numbers for a constant frame rate, packed steps for another one."""
    if isinstance(outcome, RejectedFile):
        clean = None if outcome.clean is None else outcome_to_json(outcome.clean)
        return {"rejected": [outcome.reason, outcome.detail], "clean": clean}
    pts: dict[str, int | str] | str = FROM_THE_START
    if isinstance(outcome.pts, range):
        pts = {"start": outcome.pts.start, "step": outcome.pts.step}
    elif outcome.pts is not None:
        pts = {"start": outcome.pts[0], "packed_steps": b64encode(pack_steps(outcome.pts)).decode("ascii")}
    plain = {name: getattr(outcome, name) for name in ("frames", "height", "width", "fps")}
    return plain | {"pts": pts, "adjusted": list(outcome.adjusted)}


def outcome_from_json(values: dict[str, Any]) -> Outcome:
    """The reverse of ``outcome_to_json``; ``ValueError``, ``TypeError`` or ``KeyError`` for anything else."""
    if "rejected" in values:
        reason, detail = values["rejected"]
        # An older log has no "clean": what was damaged is decoded again.
        clean = None if values["clean"] is None else outcome_from_json(values["clean"])
        if isinstance(clean, RejectedFile) or (clean is not None and KEPT not in clean.adjusted):
            raise ValueError("impossible stretch of a damaged video")
        return RejectedFile(str(reason), str(detail), clean)
    frames, height, width, fps = *(int(values[key]) for key in ("frames", "height", "width")), float(values["fps"])
    if not 0 < min(frames, height, width) <= max(frames, height, width) < 1 << 31 or not 0 <= fps < 1e9:
        raise ValueError(f"impossible video: {frames} frames of {height}x{width} at {fps} a second")
    # An older log has no "adjusted", and other sizes: its videos are decoded again.
    adjusted = tuple(name for name in ADJUSTMENTS if name in list(values["adjusted"]))
    return VideoProbe(frames, height, width, fps, _pts_from_json(values["pts"], frames), adjusted=adjusted)


def _pts_from_json(table: Any, frames: int) -> range | tuple[int, ...] | None:
    if table == FROM_THE_START:
        return None
    start = int(table["start"])
    if "step" not in table:
        return unpack_steps(start, b64decode(table["packed_steps"], validate=True), frames)
    pts = range(start, start + int(table["step"]) * frames, int(table["step"]))
    if pts.step < 1 or max(abs(start), abs(pts.stop)) >= 1 << 62:
        raise ValueError(f"impossible time stamps: from {start} in steps of {pts.step}")
    return pts
