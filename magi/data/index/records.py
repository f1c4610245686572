"""Lines of an index: what is known of each listed file, on disk and read back one at a time.

An index is JSON lines, a header and then a line a listed file. Of its usable videos only where their lines lie, their
lengths and labels are held in memory (20 bytes a video); a line, with its table of time stamps, is read when its video
is asked for.

This module knows no folders to be listed and decodes nothing.
"""

import contextlib
import json
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from magi.data.decoding.frames import Skip, VideoProbe
from magi.data.decoding.sandbox import probe_from_json, probe_to_json
from magi.data.index.sources import ListedFile
from magi.errors import DataError

FORMAT = 2
_READABLE = (1, 2)  # outcomes of format 1 are still good, its labels and its list are not

DAMAGED = (ValueError, TypeError, KeyError)
"""What reading a damaged line raises."""


@dataclass(frozen=True)
class VideoRecord(VideoProbe):
    """One usable video of an index: what its probe has shown, and where it lies."""

    path: str
    """Relative to the root, with forward slashes."""
    label: int | None
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """A line of the index: a listed file and what came of it."""

    file: ListedFile
    outcome: VideoProbe | Skip

    def record(self) -> VideoRecord:
        """The usable video."""
        assert isinstance(self.outcome, VideoProbe)
        return VideoRecord(**vars(self.outcome), **vars(self.file))


@dataclass(frozen=True)
class IndexHeader:
    """First line of an index."""

    classes: tuple[str, ...]
    missing: int
    format: int = FORMAT


def entry_to_line(entry: Entry) -> str:
    """A line of JSON, without its end."""
    skip = isinstance(entry.outcome, Skip)
    outcome = {"skip": [entry.outcome.reason, entry.outcome.detail]} if isinstance(entry.outcome, Skip) else {}
    return json.dumps({**vars(entry.file), **(outcome if skip else probe_to_json(entry.outcome))})  # type: ignore[arg-type]


def entry_from_line(line: str | bytes) -> Entry:
    """The reverse; raises one of ``DAMAGED`` for anything else."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {type(values).__name__}")
    label = values.get("label")
    file = ListedFile(
        str(values["path"]), int(values["bytes"]), int(values["mtime_ns"]), None if label is None else int(label)
    )
    if "skip" in values:
        reason, detail = values["skip"]
        return Entry(file, Skip(str(reason), str(detail)))
    return Entry(file, probe_from_json(values))


def header_to_line(header: IndexHeader) -> str:
    """A line of JSON, without its end."""
    return json.dumps({"magi_index": FORMAT, "classes": list(header.classes), "missing": header.missing})


def read_header(path: Path) -> IndexHeader:
    """The first line; raises one of ``DAMAGED`` if it is none of an index."""
    with open(path, "rb") as file:
        values = json.loads(file.readline())
    if values["magi_index"] not in _READABLE:
        raise ValueError(f"format {values['magi_index']} is not {FORMAT}")
    return IndexHeader(tuple(str(name) for name in values["classes"]), values.get("missing", 0), values["magi_index"])


def read_entries(path: Path) -> Iterator[Entry]:
    """Every line but the header; a ``ValueError`` names the line that is damaged."""
    with open(path, "rb") as lines:
        next(lines, None)
        for number, line in enumerate(lines, start=2):
            try:
                yield entry_from_line(line)
            except DAMAGED as error:
                raise ValueError(f"line {number}: {error}") from error


class _LineFile:
    """A file of lines that is kept open, so that it stays what it was when another takes its name.

    NOTE: it is read and not mapped into memory: a mapped file that is cut short kills the process that looks at it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        status = os.fstat(file)
        self._file, self._identity = file, (status.st_size, status.st_mtime_ns)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line with its end) of every line but the header."""
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            begin = len(file.readline())
            for line in file:
                yield begin, line
                begin += len(line)

    def read(self, begin: int, length: int) -> bytes:
        """A line; shorter if the file is."""
        return os.pread(self._file, length, begin)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path = state["_path"]
        self._open()
        if self._identity != state["_identity"]:
            raise DataError(f"{self._path}: has been replaced since it was opened; start again")


class IndexedVideos(Sequence[VideoRecord]):
    """The usable videos of an index file, in its order; a record is read from the file when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises one of ``DAMAGED`` for a file that is no index of today's format."""
        self.path = path
        if read_header(path).format != FORMAT:
            raise ValueError(f"format {read_header(path).format} is not {FORMAT}")
        self._file = _LineFile(path)
        self.skipped = 0
        """Files of the index that cannot be used."""
        places, frames, labels = array("q"), array("q"), array("i")
        for number, (begin, line) in enumerate(self._file.lines(), start=2):
            try:
                values = json.loads(line)
                if "skip" in values:
                    self.skipped += 1
                else:
                    _check_video(values)
                    places.extend((begin, len(line)))
                    frames.append(values["frames"])
                    labels.append(-1 if values["label"] is None else values["label"])
            except (*DAMAGED, OverflowError) as error:
                raise ValueError(f"line {number}: {error}") from error
        self._places: NDArray[np.int64] = np.array(places, np.int64).reshape(-1, 2)
        self.frames_V: NDArray[np.int64] = np.array(frames, np.int64)
        """Frames of every video."""
        self.labels_V: NDArray[np.int32] = np.array(labels, np.int32)
        """Label of every video, -1 for none."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[VideoRecord]: ...
    def __getitem__(self, number: int | slice) -> VideoRecord | Sequence[VideoRecord]:
        if isinstance(number, slice):
            return tuple(self[place] for place in range(*number.indices(len(self))))
        begin, length = self._places[number].tolist()
        try:
            return entry_from_line(self._file.read(begin, length)).record()
        except DAMAGED as error:
            raise DataError(f"{self.path}: damaged ({error}); delete it and run 'magi data index' again") from error

    def __eq__(self, other: object) -> bool:
        """Equal records in the same order, wherever they come from."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _check_video(values: dict[str, Any]) -> None:
    """A line is read whole when its video is; this much would mislead the draws before, or miss then."""
    if min(values["frames"], values["height"], values["width"]) < 1 or not values["path"]:
        raise ValueError(f"impossible video: {values['frames']} frames of {values['height']}x{values['width']}")
    _ = values["bytes"], values["mtime_ns"], values["pts"], values["fps"]


class KnownOutcomes:
    """What earlier indices say of files, found by path; 24 bytes a file in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """As far as the files can be read: a damaged one is no error, its videos are decoded again."""
        self._files: list[_LineFile] = []
        keys, places = array("q"), array("q")
        for path in paths:
            with contextlib.suppress(OSError, *DAMAGED):
                read_header(path)
                self._files.append(_LineFile(path))
                for begin, line in self._files[-1].lines():
                    keys.append(hash(str(json.loads(line)["path"])))
                    places.extend((len(self._files) - 1, begin, len(line)))
        order = np.argsort(np.array(keys, np.int64), kind="stable")
        self._keys = np.array(keys, np.int64)[order]
        self._places = np.array(places, np.int64).reshape(-1, 3)[order]

    def get(self, file: ListedFile) -> VideoProbe | Skip | None:
        """The outcome of an unchanged file."""
        key = hash(file.path)
        for place in range(int(np.searchsorted(self._keys, key)), len(self._keys)):
            if self._keys[place] != key:
                break
            number, begin, length = self._places[place].tolist()
            with contextlib.suppress(*DAMAGED):
                entry = entry_from_line(self._files[number].read(begin, length))
                if entry.file.unchanged(file):
                    return entry.outcome
        return None
