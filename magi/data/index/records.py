"""The finished index on disk: one safetensors file of columns, from which a video's record is read when asked for.

``frames`` and ``labels`` (-1 for none) have an entry a video, ``numbers`` a row of the columns ``NUMBERS``; ``paths``
and ``steps`` hold the bytes that a row points to. Of the time stamps a row has the start, and the step where the frame
rate is constant; another rate has its packed steps in ``steps``, and a video that is read from the start has neither.
Each bit of ``adjusted`` is one of ``ADJUSTMENTS``.
"""

import json
import os
from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from magi.data.decoding.frames import ADJUSTMENTS, VideoProbe, at_rate, frames_at_rate
from magi.data.decoding.probe import pack_steps, unpack_steps
from magi.errors import DataError
from magi.files import atomic_write, open_file

FORMAT = 5
NUMBERS = (
    "height",
    "width",
    "micro_fps",
    "bytes",
    "mtime_ns",
    "start",
    "step",
    "path",
    "path_end",
    "steps",
    "steps_end",
    "adjusted",
)
_KEY = "magi_index"

DAMAGED = (ValueError, TypeError, KeyError, IndexError, OverflowError, SafetensorError)
"""What reading a damaged index raises."""


@dataclass(frozen=True)
class VideoRecord(VideoProbe):
    """One usable video of an index: what its probe has shown, and where it lies."""

    path: str
    """Relative to the root, with forward slashes."""
    label: int | None
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class IndexHeader:
    """What an index says of all its files."""

    classes: tuple[str, ...]
    missing: int
    """Videos that the annotations name and the folder does not hold."""
    rejected: dict[str, int]
    """Listed files that cannot be used, by reason."""
    listing: str
    """Digest of what was listed: the paths, sizes, times of modification and labels of all files."""
    keep_clean: bool = False
    """Whether a damaged file counts by its longest sound stretch."""
    format: int = FORMAT


class IndexColumns:
    """The columns of an index while it is put together: some 120 bytes a video in memory."""

    def __init__(self) -> None:
        self._frames, self._labels, self._numbers = array("q"), array("i"), array("q")
        self._paths, self._steps = bytearray(), bytearray()

    def add(self, record: VideoRecord) -> None:
        """Append a video."""
        pts, path_begin, steps_begin = record.pts, len(self._paths), len(self._steps)
        self._paths += os.fsencode(record.path)
        if pts is not None and not isinstance(pts, range):
            self._steps += pack_steps(pts)
        start, step = (pts[0], pts.step if isinstance(pts, range) else 0) if pts is not None else (0, 0)
        self._frames.append(record.frames)
        self._labels.append(-1 if record.label is None else record.label)
        file = (record.height, record.width, round(record.fps * 1e6), record.bytes, record.mtime_ns)
        adjusted = sum(1 << ADJUSTMENTS.index(name) for name in record.adjusted)
        self._numbers.extend(
            (*file, start, step, path_begin, len(self._paths), steps_begin, len(self._steps), adjusted)
        )

    def write(self, path: Path, header: IndexHeader) -> None:
        """Write the index atomically; the same columns and header give the same bytes."""
        columns: dict[str, NDArray[Any]] = {
            "frames": np.frombuffer(self._frames, np.int64),
            "labels": np.frombuffer(self._labels, np.int32),
            "numbers": np.frombuffer(self._numbers, np.int64).reshape(-1, len(NUMBERS)),
            "paths": np.frombuffer(self._paths, np.uint8),
            "steps": np.frombuffer(self._steps, np.uint8),
        }
        # NOTE: one key, because safetensors writes several in an order that changes from run to run.
        metadata = {_KEY: json.dumps(asdict(header) | {"numbers": NUMBERS}, sort_keys=True)}
        with atomic_write(path) as temporary:
            temporary.write_bytes(save(columns, metadata))


def _header_of(file: Any) -> IndexHeader:
    values = json.loads((file.metadata() or {})[_KEY])
    if values["format"] != FORMAT or tuple(values["numbers"]) != NUMBERS:
        raise ValueError(f"format {values['format']} is not {FORMAT}")
    rejected = {str(reason): int(count) for reason, count in values["rejected"].items()}
    classes, kept = tuple(map(str, values["classes"])), bool(values["keep_clean"])
    return IndexHeader(classes, int(values["missing"]), rejected, str(values["listing"]), kept)


class IndexedVideos(Sequence[VideoRecord]):
    """The usable videos of an index file, in its order; a record is read from the file when it is asked for.

    NOTE: the file is mapped into memory, and who cuts it short kills its readers; an index is only ever replaced whole.
    """

    def __init__(self, path: Path) -> None:
        """``OSError`` or one of ``DAMAGED`` for a file that is no index of today's format."""
        self.path = path
        file = self._open()
        self.header = _header_of(file)
        self.frames_V: NDArray[np.int64] = file.get_tensor("frames")
        """Frames of every video."""
        self._stored_V, self._fps = self.frames_V, 0.0
        self.labels_V: NDArray[np.int32] = file.get_tensor("labels")
        """Label of every video, -1 for none."""
        if len(self.labels_V) != len(self) or self._numbers.get_shape() != [len(self), len(NUMBERS)]:
            raise ValueError(f"columns of {len(self)} videos have other lengths")
        if len(self) and (self.frames_V.min() < 1 or self.labels_V.max() >= len(self.header.classes)):
            raise ValueError(f"impossible videos: {self.frames_V.min()} frames, label {self.labels_V.max()}")

    def _open(self) -> Any:
        with open_file(self.path) as regular:
            status = os.fstat(regular.fileno())
        self._identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        file = safe_open(self.path, "np")
        self._numbers, self._paths, self._steps = (file.get_slice(name) for name in ("numbers", "paths", "steps"))
        return file

    def at_rate(self, fps: float) -> Self:
        """The same videos, each read at ``fps`` frames a second (``magi.data.decoding.frames.at_rate``)."""
        column, other = NUMBERS.index("micro_fps"), copy(self)
        other._fps, fps_V = fps, self._numbers[:, column : column + 1][:, 0] / 1e6
        other.frames_V = frames_at_rate(self._stored_V, fps_V, fps)
        return other

    def __len__(self) -> int:
        return len(self.frames_V)

    @overload
    def __getitem__(self, number: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[VideoRecord]: ...
    def __getitem__(self, number: int | slice) -> VideoRecord | Sequence[VideoRecord]:
        if isinstance(number, slice):
            return tuple(self[single] for single in range(*number.indices(len(self))))
        position = range(len(self))[number]
        try:
            return self._record(position)
        except DAMAGED as error:
            raise DataError(f"{self.path}: damaged ({error}); delete it and run 'magi data index' again") from error

    def _record(self, number: int) -> VideoRecord:
        frames, label = self._stored_V.item(number), self.labels_V.item(number)
        row = self._numbers[number : number + 1][0].tolist()
        height, width, micro_fps, size, mtime_ns, start, step, path_begin, path_end, steps_begin, steps_end, bits = row
        path = os.fsdecode(self._paths[path_begin:path_end].tobytes())
        pts: Sequence[int] | None = None
        if step:
            pts = range(start, start + step * frames, step)
        elif steps_end > steps_begin:
            pts = unpack_steps(start, self._steps[steps_begin:steps_end].tobytes(), frames)
        if not path or step < 0:
            raise ValueError(f"impossible video {number}")
        adjusted = tuple(name for bit, name in enumerate(ADJUSTMENTS) if bits >> bit & 1)
        place = path, None if label < 0 else label, size, mtime_ns
        record = VideoRecord(frames, height, width, micro_fps / 1e6, pts, *place, adjusted=adjusted)
        return at_rate(record, self._fps) if self._fps else record

    def __eq__(self, other: object) -> bool:
        """Equal records in the same order, wherever they come from."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        """What is mapped stays in its process; another one opens the same file."""
        return {name: value for name, value in vars(self).items() if name not in ("_numbers", "_paths", "_steps")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
        if self._identity != state["_identity"]:
            raise DataError(f"{self.path}: has been replaced since it was opened; start again")
