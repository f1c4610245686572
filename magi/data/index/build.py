"""From a listing to the index of its videos: decode what no log knows yet, then write columns and report.

Knows no config.
"""

import hashlib
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from magi.data.decoding.probe import DecodeLimits, Outcome, RejectedFile
from magi.data.decoding.sandbox import DecodingSandbox
from magi.data.index.outcome_log import OutcomeLog, all_logs, appending, log_path, to_line
from magi.data.index.records import IndexColumns, IndexHeader, VideoRecord
from magi.data.index.sources import ListedFile, Listing
from magi.files import atomic_write
from magi.progress import Report


class ListingSummary:
    """What a walk through a listing leaves in memory: 12 bytes a file, and a digest of all."""

    def __init__(self, listing: Listing) -> None:
        self.contents, self.labels = array("q"), array("i")
        self._hash = hashlib.sha256(json.dumps([listing.classes, listing.missing, listing.other_videos]).encode())

    def add(self, file: ListedFile) -> None:
        """Take note of the next file."""
        self.contents.append(file.content)
        self.labels.append(-1 if file.label is None else file.label)
        self._hash.update(f"{json.dumps(file.path)} {file.bytes} {file.mtime_ns} {file.label}\n".encode())

    @property
    def digest(self) -> str:
        """Of the files so far."""
        return self._hash.hexdigest()

    def files(self, log: OutcomeLog) -> Iterator[tuple[ListedFile, Outcome]]:
        """Every file with its outcome, in order."""
        for content, label in zip(self.contents, self.labels, strict=True):
            yield log.read(content, None if label < 0 else label)


def decode_share(
    listing: Listing,
    seen: ListingSummary,
    share: tuple[int, int],
    processes: int,
    retry: bool,
    limits: DecodeLimits,
    on_progress: Report | None,
) -> None:
    """Log the outcome of every file of share i of N that has none yet; ``seen`` takes note of the whole listing."""
    (mine, of), root = share, listing.source.root
    total, done = max(1, listing.count // of), 0

    def unknown_files(known: OutcomeLog) -> Iterator[ListedFile]:
        nonlocal done
        for file in listing.files():
            seen.add(file)
            if zlib.crc32(file.path.encode(errors="surrogateescape")) % of == mine:
                if known.knows(file.content, retry):
                    done += 1
                else:
                    yield file

    with (
        OutcomeLog(all_logs(root)) as known,
        appending(log_path(listing.source, share)) as log,
        closing(_probe_all(root, unknown_files(known), processes, limits)) as outcomes,
    ):
        for file, outcome in outcomes:
            log.write(to_line(file, outcome))
            log.flush()
            done += 1
            if on_progress is not None:  # one of several workers estimates its total, and knows it at the end
                on_progress(done, max(done + (of > 1), total))
    if on_progress is not None and of > 1 and done:
        on_progress(done, done)


def _probe_all(
    root: Path, files: Iterable[ListedFile], processes: int, limits: DecodeLimits
) -> Generator[tuple[ListedFile, Outcome], None, None]:
    """Each file with its outcome, as they become known; ``processes`` sandboxes at a time, and few files ahead."""
    sandboxes: SimpleQueue[DecodingSandbox] = SimpleQueue()

    def probe(file: ListedFile) -> tuple[ListedFile, Outcome]:
        sandbox = sandboxes.get()
        try:
            outcome = sandbox.probe(root / file.path)
        finally:
            sandboxes.put(sandbox)
        if ListedFile.of(root, file.path).content != file.content:
            return file, RejectedFile("changed_on_disk", "was written to or deleted while it was read")
        return file, outcome

    with ExitStack() as stack:
        for _ in range(processes):
            sandboxes.put(stack.enter_context(DecodingSandbox(limits)))
        executor = ThreadPoolExecutor(processes)
        stack.callback(executor.shutdown, cancel_futures=True)
        pending: set[Future[tuple[ListedFile, Outcome]]] = set()
        for file in files:
            pending.add(executor.submit(probe, file))
            if len(pending) > 2 * processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))


def _used(outcome: Outcome, keep_clean: bool) -> Outcome:
    """What an index takes of a file: with ``keep_clean``, of a damaged one its longest sound stretch, if it has one."""
    return outcome.clean or outcome if keep_clean and isinstance(outcome, RejectedFile) else outcome


def write_index(listing: Listing, seen: ListingSummary, keep_clean: bool) -> int:
    """Write index and report if the logs hold every file; returns how many they lack."""
    source = listing.source
    with OutcomeLog(all_logs(source.root)) as log:
        if missing := sum(not log.knows(content) for content in seen.contents):
            return missing
        columns, totals = IndexColumns(), _Totals()
        for file, outcome in seen.files(log):
            used = _used(outcome, keep_clean)
            totals.add(used)
            if not isinstance(used, RejectedFile):
                columns.add(VideoRecord(**vars(used), **vars(file)))
        _write_report(listing, totals, lambda: seen.files(log), keep_clean)
        rejected = dict(totals.rejected)
        header = IndexHeader(listing.classes, listing.missing, rejected, seen.digest, keep_clean)
        columns.write(source.index_path, header)
    return 0


class _Totals:
    """What the report says of all videos together."""

    def __init__(self) -> None:
        self.rejected, self.adjusted = Counter[str](), Counter[str]()
        self.frames = self._variable = 0
        self._rates = array("d")

    def add(self, outcome: Outcome) -> None:
        """Count a file."""
        if isinstance(outcome, RejectedFile):
            self.rejected[outcome.reason] += 1
            return
        self.adjusted.update(outcome.adjusted)
        self.frames += outcome.frames
        self._variable += isinstance(outcome.pts, tuple)
        self._rates.append(outcome.fps)

    def rates(self) -> dict[str, float]:
        """The spread of mean frame rates, and how many videos have time stamps that are not evenly spaced."""
        lowest, median, highest = np.quantile(self._rates or [0.0], (0, 0.5, 1)).round(3).tolist()
        return {"lowest": lowest, "median": median, "highest": highest, "variable": self._variable}


def _write_report(
    listing: Listing, totals: _Totals, files: Callable[[], Iterator[tuple[ListedFile, Outcome]]], keep_clean: bool
) -> None:
    """Counts that add up, and each damaged or skipped file with its reason, a line each."""
    skipped_files = totals.rejected.total()
    counts = {
        "listed": listing.count,
        "usable": listing.count - skipped_files,
        "usable_frames": totals.frames,
        "frames_a_second": totals.rates(),
        "classes": len(listing.classes),
        "skipped": skipped_files,
        "skipped_by_reason": dict(totals.rejected.most_common()),
        "adjusted": dict(totals.adjusted.most_common()),
        "annotated_but_missing": listing.missing,
        "ignored_unlisted_videos": listing.unlisted,
        "ignored_videos_of_other_types": listing.other_videos,
        "ignored_junk_files": listing.kinds["junk"],
        "ignored_other_files": listing.kinds["other"],
    }

    def refused(used: bool) -> Iterator[dict[str, str]]:
        for file, outcome in files():
            if isinstance(outcome, RejectedFile) and used != isinstance(_used(outcome, keep_clean), RejectedFile):
                yield {"path": file.path, "reason": outcome.reason, "detail": outcome.detail}

    with atomic_write(listing.source.report_path) as temporary, open(temporary, "w", encoding="utf-8") as report:
        report.write(json.dumps(counts, indent=1)[:-2])
        _write_list(report, "missing_files", listing.missing_names())
        _write_list(report, "kept_stretches", refused(used=True))
        _write_list(report, "skipped_files", refused(used=False))
        report.write("\n}\n")


def _write_list(report: IO[str], name: str, values: Iterable[object]) -> None:
    report.write(f',\n "{name}": [')
    for number, value in enumerate(values):
        report.write(("," if number else "") + "\n  " + json.dumps(value))
    report.write("]")
