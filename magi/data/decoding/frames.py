"""One video file -> frames: what is in it, and exactly the frames that were asked for.

Frames are addressed by their number in display order, never by time: a table of the presentation time stamps (pts)
of all frames says where to seek, which stays exact for a variable frame rate. Where the time stamps cannot be trusted
(AVI with B-frames, missing or non-increasing ones, or a trial seek that returned another frame) the table is None and
every read decodes from the start.

Rules: frames are returned as a player shows them, turned by the multiple of 90 degrees that the file asks for; pixels
are taken as square, alpha is dropped and 10-bit video becomes 8-bit. The first video stream that is not a cover image
counts. Nothing is read but the file itself: playlists are refused and FFmpeg may open local files of three container
families only.

A hostile file can crash or hang the process that decodes it, so ``probe_file`` belongs into
``magi.data.decoding.sandbox``; files
that a jail has decoded once are then read in the caller's process. This module knows no folders, labels or clips.
"""

import os
import stat
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream
import av.video.frame
import av.video.reformatter
import av.video.stream
import numpy as np

from magi.errors import DataError

_FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"}
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"<smil", b"<asx", b"file ", b"#!concat")
_INDEX_AGAIN = "it has changed since it was indexed: run 'magi data index' on its folder"


@dataclass(frozen=True)
class DecodeLimits:
    """What one file may cost before it is given up."""

    seconds: float = 30.0
    """Wall-clock time, plus ``seconds_per_megabyte`` of the file, so that long videos have their time."""
    seconds_per_megabyte: float = 4.0
    memory_bytes: int = 2 << 30
    """Address space of the decoding process."""
    pixels: int = 40_000_000
    """Width x height of a frame; 8K has 33 million."""
    frames: int = 1_000_000


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


@dataclass(frozen=True)
class Skip:
    """Why a file cannot be used: a stable reason code and one line of detail."""

    reason: str
    detail: str


class _Skipped(Exception):
    """Ends a probe with a ``Skip``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.skip = Skip(reason, detail)


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
    try:
        yield from _stream_frames(path, indices, probe)
    except (av.error.FFmpegError, OSError, _Skipped) as error:
        raise DataError(f"{path}: cannot be read again ({_one_line(error)}); {_INDEX_AGAIN}") from error


def _stream_frames(path: Path, indices: Sequence[int], probe: VideoProbe) -> Iterator[np.ndarray]:
    wanted = iter(indices)
    index = next(wanted, None)
    reformatter = av.video.reformatter.VideoReformatter()
    for number, frame in _numbered_frames(path, indices[0] if len(indices) else 0, probe.pts):
        if index is None or number > index:
            break
        if number == index:
            frame_HWC = _rgb(frame, reformatter)
            if frame_HWC.shape[:2] != (probe.height, probe.width):
                break
            yield frame_HWC
            index = next(wanted, None)
            if index is None:
                return
    if index is not None:
        raise DataError(f"{path}: frame {index} is no longer what it was; {_INDEX_AGAIN}")


def _numbered_frames(path: Path, first: int, pts: Sequence[int] | None) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers, from some frame <= ``first`` on: by a seek if there is a table and the seek lands."""
    if pts is not None and first > 0:
        with _open_video(path) as (container, stream):
            container.seek(pts[first], stream=stream, backward=True)
            landed = False
            for frame in container.decode(stream):
                number = _number_of(frame, pts)
                if number is None or (not landed and number > first):
                    break
                landed = True
                yield number, frame
            else:
                return
            if landed:
                raise DataError(f"{path}: has other time stamps than before; {_INDEX_AGAIN}")
    with _open_video(path) as (container, stream):
        yield from enumerate(container.decode(stream))


def _number_of(frame: av.VideoFrame, pts: Sequence[int]) -> int | None:
    if frame.pts is None:
        return None
    number = bisect_left(pts, frame.pts)
    return number if number < len(pts) and pts[number] == frame.pts else None


class _open_video:
    """Context of an opened file and its video stream; single-threaded, as FFmpeg's threads deadlock with workers."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(os.path.abspath(path), options=dict(_FFMPEG_OPTIONS))

    def __enter__(self) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in self.container.streams.video if not stream.disposition & cover]
        if not streams:
            self.container.close()
            raise _Skipped("no_video_stream", "holds no video stream (audio only?)")
        if streams[0].codec_context is None:
            self.container.close()
            raise _Skipped("unknown_codec", "is coded in a way that FFmpeg cannot decode")
        streams[0].thread_type = "NONE"
        streams[0].codec_context.thread_count = 1
        return self.container, streams[0]

    def __exit__(self, *_: object) -> None:
        self.container.close()


def _rgb(frame: av.VideoFrame, reformatter: Any) -> np.ndarray:
    """RGB as a player shows it: the file's rotation is applied, other display matrices are ignored.

    NOTE: ``threads=1``, because a conversion otherwise starts a thread for each core, in every loader process.
    """
    frame_HWC = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame_HWC, quarter_turns)) if quarter_turns else frame_HWC


def probe_file(path: Path, limits: DecodeLimits) -> VideoProbe | Skip:
    """Decode a whole file and say what is in it, or why it cannot be used; never call it outside a jail."""
    try:
        _check_bytes(path)
        return _probe(path, limits)
    except _Skipped as skipped:
        return skipped.skip
    except MemoryError:
        return Skip("memory_limit", f"needs more than {limits.memory_bytes} bytes of memory")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        return _explain(path, error)


def _check_bytes(path: Path) -> None:
    """Refuse, before FFmpeg sees it, what is no file, empty, or a playlist that names other files."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise _Skipped("not_a_regular_file", "is not a regular file")
    if status.st_size == 0:
        raise _Skipped("empty_file", "has 0 bytes")
    with open(path, "rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(_PLAYLIST_STARTS):
        raise _Skipped("playlist_refused", "is a playlist that names other files")


def _probe(path: Path, limits: DecodeLimits) -> VideoProbe:
    gray = av.video.reformatter.VideoReformatter()
    times: list[int | None] = []
    checksums: list[int] = []
    has_b_frames = False
    shape: tuple[int, int, int] | None = None
    with _open_video(path) as (container, stream):
        is_avi = container.format.name == "avi"
        _check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        for frame in container.decode(stream):
            _check_pixels(frame.width, frame.height, limits)
            if shape not in (None, (frame.height, frame.width, frame.rotation)):
                raise _Skipped("size_changed", f"frame {len(times)} has another size or rotation than the first")
            shape = frame.height, frame.width, frame.rotation
            if len(times) == limits.frames:
                raise _Skipped("too_many_frames", f"has more than {limits.frames} frames")
            times.append(frame.pts)
            checksums.append(_checksum(frame, gray))
            has_b_frames |= frame.pict_type == av.video.frame.PictureType.B
        time_base = float(stream.time_base or 0)
        rate = float(stream.average_rate or 0)
        # Some AVI writers leave a wrong size behind, so there the number of frames must tell the same.
        complete = is_avi and len(times) >= stream.frames
    if not complete and declared_end(path) > os.path.getsize(path):
        raise _Skipped("truncated", f"ends early: {os.path.getsize(path)} of {declared_end(path)} bytes")
    if shape is None:
        raise _Skipped("no_frames", "holds no frame that can be decoded")
    if len(times) == 1:
        raise _Skipped("single_frame", "holds a single frame")
    pts = None if is_avi and has_b_frames else _pts_table(times)
    if pts is not None:
        rate = (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base) if time_base else rate
        pts = pts if _seek_is_exact(path, pts, checksums, gray) else None
    height, width, rotation = shape
    if round(rotation / 90) % 2:
        height, width = width, height
    return VideoProbe(len(times), height, width, round(rate, 6), pts)


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.pixels:
        raise _Skipped("too_many_pixels", f"{width}x{height} is more than {limits.pixels} pixels a frame")


def _checksum(frame: av.VideoFrame, gray: Any) -> int:
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


def _seek_is_exact(path: Path, pts: Sequence[int], checksums: list[int], gray: Any) -> bool:
    """Whether a seek to the middle of the file returns the very frame that decoding from the start returned."""
    middle = len(pts) // 2
    with _open_video(path) as (container, stream):
        container.seek(pts[middle], stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts > pts[middle]:
                return False
            if frame.pts == pts[middle]:
                return _checksum(frame, gray) == checksums[middle]
    return False


def _explain(path: Path, error: Exception) -> Skip:
    """The most precise reason for a file that FFmpeg or the disk refused."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
        return Skip("unreadable", _one_line(error))
    try:
        end, size = declared_end(path), os.path.getsize(path)
    except OSError as changed:
        return Skip("changed_on_disk", _one_line(changed))
    if end > size:
        return Skip("truncated", f"ends early: {size} of {end} bytes")
    if end == 0:
        return Skip("not_a_video", "is no mp4, mov, avi, mkv or webm file inside")
    return Skip("decode_error", _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def declared_end(path: Path) -> int:
    """Where the container's own size fields say that the file ends, in bytes; 0 for a container that is not known.

    FFmpeg stops without an error at the end of a truncated Matroska or AVI file; these fields tell.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(head)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_end(lambda offset: (file.seek(offset), file.read(16))[1])
    return 0


def _matroska_end(head: bytes) -> int:
    """End of the segment that follows the EBML header; the length is unknown (and ignored) in live recordings."""
    header, offset = _ebml_size(head, 4)
    offset += header
    if head[offset : offset + 4] != b"\x18\x53\x80\x67":
        return len(head)
    size, start = _ebml_size(head, offset + 4)
    unknown = (1 << (7 * (start - offset - 4))) - 1
    return len(head) if size == unknown else start + size


def _ebml_size(head: bytes, offset: int) -> tuple[int, int]:
    """A variable-length size and the offset behind it."""
    first = head[offset] if offset < len(head) else 0
    length = 9 - first.bit_length() if first else 1
    value = int.from_bytes(head[offset : offset + length], "big")
    return value & ((1 << (7 * length)) - 1), offset + length


def _mp4_end(read: Callable[[int], bytes]) -> int:
    """End of the last known top-level box; what follows an unknown name is not trusted (trailing bytes are common).

    Every file has its index, ``moov``, as one of these boxes: without it at least a box header is missing.
    """
    known = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"moof", b"mfra", b"sidx", b"styp", b"udta", b"uuid")
    offset, missing = 0, 8
    while len(box := read(offset)) >= 8 and box[4:8] in known:
        size = int.from_bytes(box[:4], "big")
        if size == 1 and len(box) == 16:
            size = int.from_bytes(box[8:16], "big")
        if size < 8:
            break
        missing = 0 if box[4:8] == b"moov" else missing
        offset += size
    return offset + missing
