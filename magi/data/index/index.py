"""A folder, an annotated folder or a list -> a checked list of videos: which files decode, how long and large they are.

Layout: without annotations the first folder below the root is a video's class, however deep the file lies in it;
classes are sorted by name and numbered from 0. Videos directly in the root have no label. Hidden files and folders are
ignored. With ``data.annotations`` or a list, those name the videos, the split and the labels (magi.data.index.sources).

The index is a JSON-lines file in the root (a header, then a line a listed file, usable or not), written with constant
memory and published atomically; a file whose path, size and time of modification are unchanged is not decoded again.
Beside it lies a report in which every listed file is accounted for: listed = usable + skipped.

This module knows no clips, resolutions or models.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from magi.config import DataConfig
from magi.data.decoding.frames import DecodeLimits, Skip, VideoProbe
from magi.data.index.parts import Parts, blocks
from magi.data.index.records import (
    DAMAGED,
    FORMAT,
    Entry,
    IndexedVideos,
    IndexHeader,
    KnownOutcomes,
    entry_to_line,
    header_to_line,
    read_entries,
    read_header,
)
from magi.data.index.records import VideoRecord as VideoRecord
from magi.data.index.sources import VIDEO_SUFFIXES, ListedFile, Listing, Source, list_videos
from magi.errors import DataError
from magi.files import atomic_write

# Outcomes that another try (a less busy machine, other rights) may change; 'magi data index' tries them again.
_TRY_AGAIN = ("timeout", "memory_limit", "decoder_crashed", "unreadable", "changed_on_disk")

_WRITABLE = "make the folder writable, or list the videos in a .csv elsewhere"

Progress = Callable[[int, int], None]
"""Called with (files done, files listed)."""


@dataclass(frozen=True)
class VideoIndex:
    """The usable videos of a source, in its order: of a folder, sorted by path."""

    root: Path
    classes: tuple[str, ...]
    videos: Sequence[VideoRecord]
    skipped: int = 0
    """Listed files that cannot be used; the report names each with its reason."""
    missing: int = 0
    """Videos that the annotations name and the folder does not hold; the report names them too."""

    def frame_counts(self) -> NDArray[np.int64]:
        """Frames of every video, without reading the records."""
        if isinstance(self.videos, IndexedVideos):
            return self.videos.frames_V
        return np.array([record.frames for record in self.videos], np.int64)


@dataclass(frozen=True)
class IndexShare:
    """What a worker has come to: the index, if its part was the last, or how many parts are missing."""

    index: VideoIndex | None
    missing_parts: int
    parts: int


def open_index(config: DataConfig, progress: Progress | None = None) -> VideoIndex:
    """The index of ``config.root``, built or brought up to date where the folder has changed since.

    ``ValueError`` for a missing folder, ``DataError`` without videos or beyond ``config.max_bad_fraction``.
    """
    if not config.root:
        raise ValueError("data.root is empty: name a folder of videos ('magi data digits OUT' writes one)")
    return build_index(
        Path(config.root),
        config.max_bad_fraction,
        progress,
        workers=max(1, config.workers),
        try_again=False,
        annotations=config.annotations,
        split=config.split,
    )


def build_index(
    root: Path,
    max_bad_fraction: float = 0.01,
    progress: Progress | None = None,
    limits: DecodeLimits | None = None,
    workers: int = 1,
    try_again: bool = True,
    annotations: str = "",
    split: str = "",
) -> VideoIndex:
    """Decode every new or changed video of ``root`` once, in ``workers`` jails; write index and report.

    ``try_again``: also files that ran out of time, memory or rights before. ``ValueError`` for a missing folder;
    ``DataError`` without videos, or when more than ``max_bad_fraction`` of them are bad, after both files are written.
    """
    source = Source.of(root, annotations, split)
    share = index_share(source, (0, 1), max_bad_fraction, progress, limits, workers, try_again)
    assert share.index is not None, "a single worker writes every part"
    return share.index


def index_share(
    source: Source,
    worker: tuple[int, int],
    max_bad_fraction: float = 0.01,
    progress: Progress | None = None,
    limits: DecodeLimits | None = None,
    jails: int = 1,
    try_again: bool = True,
) -> IndexShare:
    """The part of worker i of N of ``build_index``, with its errors; the last one to finish puts all parts together."""
    mine, of = worker
    if not 0 <= mine < of:
        raise ValueError(f"worker {mine}/{of}: expected i/N with i from 0 to N - 1")
    listing = list_videos(source)
    if not listing.count:
        raise DataError(f"{source.root}: no videos ({', '.join(VIDEO_SUFFIXES)}) in this folder or below it")
    if not _is_current(listing, try_again):
        missing, parts = _decode_share(listing, worker, limits or DecodeLimits(), jails, try_again, progress)
        if missing and not _is_current(listing, try_again):
            return IndexShare(None, missing, parts)
    if not source.report_path.exists():
        _write_report(listing)
    index = load_index(source)
    _check_bad_fraction(source, index, max_bad_fraction)
    return IndexShare(index, 0, 0)


def load_index(source: Source) -> VideoIndex:
    """Read the index of a source without looking at its videos; ``DataError`` if there is none or it is damaged."""
    path = source.index_path
    again = f"run '{source.index_command}'"
    if not path.is_file():
        raise DataError(f"{path}: no index; {again}")
    try:
        header, videos = read_header(path), IndexedVideos(path)
        if len(videos) and videos.labels_V.max() >= len(header.classes):
            raise ValueError(f"label {videos.labels_V.max()} of {len(header.classes)} classes")
    except DAMAGED as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({problem}); delete it and {again}") from error
    return VideoIndex(source.root, header.classes, videos, videos.skipped, header.missing)


def _decode_share(
    listing: Listing,
    worker: tuple[int, int],
    limits: DecodeLimits,
    jails: int,
    try_again: bool,
    progress: Progress | None,
) -> tuple[int, int]:
    """Complete a worker's parts, and the index if they were the last; returns (parts that are missing, parts)."""
    source = listing.source
    # Splits of one folder share videos, and so does the same folder under other annotations.
    earlier = KnownOutcomes(sorted({*source.root.glob("magi-index*.jsonl"), source.index_path}))
    parts = Parts(source.root, source.parts_path, limits, jails)

    def known(file: ListedFile) -> VideoProbe | Skip | None:
        outcome = earlier.get(file)
        return None if try_again and _deserves_another_try(outcome) else outcome

    try:
        names = parts.work(blocks(listing.files()), known, worker, listing.count, progress)
        missing = len(parts.missing(names))
        if not missing:
            _write_index(listing, parts.entries(names))
            _write_report(listing)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror}); {_WRITABLE}") from error
    if not missing:
        shutil.rmtree(source.parts_path, ignore_errors=True)
    return missing, len(names)


def _deserves_another_try(outcome: VideoProbe | Skip | None) -> bool:
    return isinstance(outcome, Skip) and outcome.reason in _TRY_AGAIN


def _is_current(listing: Listing, try_again: bool) -> bool:
    """Whether the index there says of the listed files what a new one would."""
    path = listing.source.index_path
    try:
        if read_header(path) != IndexHeader(listing.classes, listing.missing, FORMAT):
            return False
        listed = listing.files()
        for entry in read_entries(path):
            if next(listed, None) != entry.file or (try_again and _deserves_another_try(entry.outcome)):
                return False
        return next(listed, None) is None
    except (OSError, *DAMAGED):
        return False


def _write_index(listing: Listing, entries: Iterable[Entry]) -> None:
    with _text(listing.source.index_path) as file:
        file.write(header_to_line(IndexHeader(listing.classes, listing.missing)) + "\n")
        for entry in entries:
            file.write(entry_to_line(entry) + "\n")


def _write_report(listing: Listing) -> None:
    """Counts that add up, and each skipped file with its reason, a line each."""
    reasons, frames = Counter[str](), 0
    for entry in read_entries(listing.source.index_path):
        if isinstance(entry.outcome, Skip):
            reasons[entry.outcome.reason] += 1
        else:
            frames += entry.outcome.frames
    counts = {
        "listed": listing.count,
        "usable": listing.count - reasons.total(),
        "usable_frames": frames,
        "classes": len(listing.classes),
        "skipped": reasons.total(),
        "skipped_by_reason": dict(reasons.most_common()),
        "annotated_but_missing": listing.missing,
        "ignored_unlisted_videos": listing.unlisted,
        "ignored_junk_files": listing.junk,
        "ignored_other_files": listing.other,
    }
    with _text(listing.source.report_path) as file:
        file.write(json.dumps(counts, indent=1)[:-2])
        skipped = (
            {"path": entry.file.path, "reason": entry.outcome.reason, "detail": entry.outcome.detail}
            for entry in read_entries(listing.source.index_path)
            if isinstance(entry.outcome, Skip)
        )
        for name, values in (("missing_files", listing.missing_names()), ("skipped_files", skipped)):
            file.write(f',\n "{name}": [')
            for number, value in enumerate(values):
                file.write(("," if number else "") + "\n  " + json.dumps(value))
            file.write("]")
        file.write("\n}\n")


@contextlib.contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A file that appears whole or not at all."""
    try:
        with atomic_write(path) as beside, open(beside, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {_WRITABLE}") from error


def _check_bad_fraction(source: Source, index: VideoIndex, max_bad_fraction: float) -> None:
    listed = len(index.videos) + index.skipped
    if index.videos and index.skipped <= max_bad_fraction * listed:
        return
    outcomes = (entry.outcome for entry in read_entries(source.index_path))
    reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Skip))
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    beyond = f"more than --max-bad-fraction {max_bad_fraction:g}" if index.videos else "none is left"
    raise DataError(
        f"{source.path_list or source.root}: {index.skipped} of {listed} videos cannot be used ({counts}): {beyond}; "
        f"{source.report_path.name} there names each"
    )
