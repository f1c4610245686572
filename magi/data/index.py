"""A folder of videos -> a checked list: which files decode, how long and large they are, and what was left out.

Layout: the first folder below the root is a video's class, however deep the file lies in it; classes are sorted by
name and numbered from 0. Videos directly in the root have no label. Hidden files and folders are ignored.

The index is a JSON-lines file in the root (a header, then a line a listed file, usable or not), written with constant
memory and published atomically; a file whose path, size and time of modification are unchanged is not decoded again.
Beside it lies a report in which every listed file is accounted for: listed = usable + skipped.

This module knows no clips, resolutions or models.
"""

import contextlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from magi.config import DataConfig
from magi.data.decode import DecodeLimits, Skip, VideoProbe
from magi.data.jail import DecodeJail, probe_from_json, probe_to_json
from magi.data.listing import INDEX_NAME as INDEX_NAME
from magi.data.listing import REPORT_NAME as REPORT_NAME
from magi.data.listing import VIDEO_SUFFIXES, ListedFile, Listing, list_videos
from magi.data.write import published
from magi.errors import DataError

_FORMAT = 1
# Outcomes that another try (a less busy machine, other rights) may change; 'magi data index' tries them again.
_TRY_AGAIN = ("timeout", "memory_limit", "decoder_crashed", "unreadable", "changed_on_disk")

Progress = Callable[[int, int], None]
"""Called with (files done, files listed)."""


@dataclass(frozen=True)
class VideoRecord(VideoProbe):
    """One usable video of an index: what its probe has shown, and where it lies."""

    path: str
    """Relative to the root, with forward slashes."""
    label: int | None
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class VideoIndex:
    """The usable videos of a folder, sorted by path."""

    root: Path
    classes: tuple[str, ...]
    videos: tuple[VideoRecord, ...]
    skipped: int = 0
    """Listed files that cannot be used; the report names each with its reason."""


@dataclass(frozen=True)
class _Entry:
    """A line of the index: a listed file and what came of it."""

    file: ListedFile
    outcome: VideoProbe | Skip


def open_index(config: DataConfig, progress: Progress | None = None) -> VideoIndex:
    """The index of ``config.root``, built or brought up to date where the folder has changed since.

    ``ValueError`` for a missing folder, ``DataError`` without videos or beyond ``config.max_bad_fraction``.
    """
    if not config.root:
        raise ValueError("data.root is empty: name a folder of videos ('magi data digits OUT' writes one)")
    root, workers = Path(config.root), max(1, config.workers)
    return build_index(root, config.max_bad_fraction, progress, workers=workers, try_again=False)


def build_index(
    root: Path,
    max_bad_fraction: float = 0.01,
    progress: Progress | None = None,
    limits: DecodeLimits | None = None,
    workers: int = 1,
    try_again: bool = True,
) -> VideoIndex:
    """Decode every new or changed video of ``root`` once, in ``workers`` jails; write index and report.

    ``try_again``: also files that ran out of time, memory or rights before. ``ValueError`` for a missing folder;
    ``DataError`` without videos, or when more than ``max_bad_fraction`` of them are bad, after both files are written.
    """
    listing = list_videos(root)
    if not listing.files:
        raise DataError(f"{root}: no videos ({', '.join(VIDEO_SUFFIXES)}) in this folder or below it")
    if not _is_current(root, listing, try_again):
        entries = _probe_changed(root, listing, limits or DecodeLimits(), workers, try_again)
        _write_index(root, listing, entries, progress)
    if not (root / REPORT_NAME).exists():
        _write_report(root, listing)
    index = load_index(root)
    _check_bad_fraction(index, max_bad_fraction)
    return index


def load_index(root: Path) -> VideoIndex:
    """Read the index of a folder without looking at its videos; ``DataError`` if there is none or it is damaged."""
    path = root / INDEX_NAME
    if not path.is_file():
        raise DataError(f"{path}: no index; run 'magi data index {root}'")
    try:
        classes = _read_classes(path)
        labels = {name: label for label, name in enumerate(classes)}
        videos, skipped = [], 0
        for entry in _read_entries(path):
            if isinstance(entry.outcome, Skip):
                skipped += 1
            else:
                videos.append(_record(entry.file, entry.outcome, labels))
    except (ValueError, TypeError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({problem}); delete it and run 'magi data index {root}'") from error
    return VideoIndex(root, classes, tuple(videos), skipped)


def _record(file: ListedFile, probe: VideoProbe, labels: dict[str, int]) -> VideoRecord:
    folder, slash, _ = file.path.partition("/")
    label = labels[folder] if slash else None
    return VideoRecord(**vars(probe), path=file.path, label=label, bytes=file.bytes, mtime_ns=file.mtime_ns)


def _probe_changed(
    root: Path, listing: Listing, limits: DecodeLimits, workers: int, try_again: bool
) -> Iterator[_Entry]:
    """An entry for every listed file, in order: known ones from the old index, the others from the jails."""
    with contextlib.ExitStack() as stack:
        jails: SimpleQueue[DecodeJail] = SimpleQueue()
        for _ in range(workers):
            jails.put(stack.enter_context(DecodeJail(limits)))
        executor = ThreadPoolExecutor(workers)
        stack.callback(executor.shutdown, cancel_futures=True)
        pending: deque[tuple[ListedFile, VideoProbe | Skip | Future[VideoProbe | Skip]]] = deque()
        for file, known in _with_known(root, listing, try_again):
            pending.append((file, known or executor.submit(_probe_one, root, file, jails)))
            if len(pending) > 4 * workers:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _finished(file: ListedFile, outcome: VideoProbe | Skip | Future[VideoProbe | Skip]) -> _Entry:
    return _Entry(file, outcome.result() if isinstance(outcome, Future) else outcome)


def _probe_one(root: Path, file: ListedFile, jails: SimpleQueue[DecodeJail]) -> VideoProbe | Skip:
    jail = jails.get()
    try:
        outcome = jail.probe(root / file.path)
    finally:
        jails.put(jail)
    if ListedFile.of(root, file.path) != file:
        return Skip("changed_on_disk", "was written to or deleted while it was read")
    return outcome


def _with_known(root: Path, listing: Listing, try_again: bool) -> Iterator[tuple[ListedFile, VideoProbe | Skip | None]]:
    """Every listed file with its outcome in the old index if it is unchanged; both are sorted, so one pass suffices."""
    old = _read_old_entries(root)
    entry = next(old, None)
    for file in listing.files:
        while entry is not None and entry.file.path < file.path:
            entry = next(old, None)
        known = entry.outcome if entry is not None and entry.file == file else None
        yield file, None if try_again and _deserves_another_try(known) else known


def _deserves_another_try(outcome: VideoProbe | Skip | None) -> bool:
    return isinstance(outcome, Skip) and outcome.reason in _TRY_AGAIN


def _is_current(root: Path, listing: Listing, try_again: bool) -> bool:
    listed = iter(listing.files)
    for entry in _read_old_entries(root):
        if next(listed, None) != entry.file or (try_again and _deserves_another_try(entry.outcome)):
            return False
    return next(listed, None) is None


def _read_old_entries(root: Path) -> Iterator[_Entry]:
    """As far as an earlier index can be read: a damaged one is no error, its files are decoded again."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        _read_classes(root / INDEX_NAME)
        yield from _read_entries(root / INDEX_NAME)


def _read_classes(path: Path) -> tuple[str, ...]:
    with open(path, encoding="utf-8") as file:
        header = json.loads(file.readline())
    if header["magi_index"] != _FORMAT:
        raise ValueError(f"format {header['magi_index']} is not {_FORMAT}")
    return tuple(str(name) for name in header["classes"])


def _read_entries(path: Path) -> Iterator[_Entry]:
    with open(path, encoding="utf-8") as lines:
        next(lines)
        for number, line in enumerate(lines, start=2):
            try:
                yield _entry_from_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"line {number}: {error}") from error


def _entry_from_json(values: dict[str, Any]) -> _Entry:
    file = ListedFile(str(values["path"]), int(values["bytes"]), int(values["mtime_ns"]))
    if "skip" in values:
        reason, detail = values["skip"]
        return _Entry(file, Skip(str(reason), str(detail)))
    return _Entry(file, probe_from_json(values))


def _entry_to_json(entry: _Entry) -> dict[str, Any]:
    if isinstance(entry.outcome, Skip):
        return {**vars(entry.file), "skip": [entry.outcome.reason, entry.outcome.detail]}
    return {**vars(entry.file), **probe_to_json(entry.outcome)}


def _write_index(root: Path, listing: Listing, entries: Iterable[_Entry], progress: Progress | None) -> None:
    with _json_lines(root / INDEX_NAME) as write:
        write({"magi_index": _FORMAT, "classes": list(listing.classes)})
        for done, entry in enumerate(entries, start=1):
            write(_entry_to_json(entry))
            if progress is not None:
                progress(done, len(listing.files))
    _write_report(root, listing)


def _write_report(root: Path, listing: Listing) -> None:
    """Counts that add up, and each skipped file with its reason."""
    reasons: Counter[str] = Counter()
    frames, skipped = 0, []
    for entry in _read_entries(root / INDEX_NAME):
        if isinstance(entry.outcome, Skip):
            reasons[entry.outcome.reason] += 1
            skipped.append({"path": entry.file.path, "reason": entry.outcome.reason, "detail": entry.outcome.detail})
        else:
            frames += entry.outcome.frames
    with _json_lines(root / REPORT_NAME, indent=1) as write:
        write(
            {
                "listed": len(listing.files),
                "usable": len(listing.files) - len(skipped),
                "usable_frames": frames,
                "classes": len(listing.classes),
                "skipped": len(skipped),
                "skipped_by_reason": dict(reasons.most_common()),
                "ignored_junk_files": listing.junk,
                "ignored_other_files": listing.other,
                "skipped_files": skipped,
            }
        )


@contextlib.contextmanager
def _json_lines(path: Path, indent: int | None = None) -> Iterator[Callable[[dict[str, Any]], int]]:
    """A writer of JSON lines to a file that appears whole or not at all."""
    try:
        with published(path) as beside, open(beside, "w", encoding="utf-8") as file:
            yield lambda values: file.write(json.dumps(values, indent=indent) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make the folder writable") from error


def _check_bad_fraction(index: VideoIndex, max_bad_fraction: float) -> None:
    listed = len(index.videos) + index.skipped
    if index.videos and index.skipped <= max_bad_fraction * listed:
        return
    reasons = Counter(e.outcome.reason for e in _read_entries(index.root / INDEX_NAME) if isinstance(e.outcome, Skip))
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    beyond = f"more than --max-bad-fraction {max_bad_fraction:g}" if index.videos else "none is left"
    raise DataError(
        f"{index.root}: {index.skipped} of {listed} videos cannot be used ({counts}): {beyond}; "
        f"{REPORT_NAME} there names each"
    )
