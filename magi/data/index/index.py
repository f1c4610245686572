"""A folder, an annotated folder or a list -> a checked list of videos: which files decode, how long and large they are.

Layout: without annotations the first folder below the root is a video's class, however deep the file lies in it;
classes are sorted by name and numbered from 0. Videos directly in the root have no label. Hidden files and folders are
ignored. With ``data.annotations`` or a list, those name the videos, the split and the labels (magi.data.index.sources).

Every file is decoded once, in a sandbox; its outcome goes into a log (magi.data.index.outcome_log) before the next one
counts, so a call that is stopped continues. Once the logs hold every listed file, the index (magi.data.index.records)
is written atomically, and beside it a report in which every file is accounted for: listed = usable + skipped.

An index or log of an older format needs no care: the videos whose frames are read in another way now are decoded again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magi.config import DataConfig
from magi.data.decoding.probe import DecodeLimits
from magi.data.index.build import ListingSummary, decode_share, write_index
from magi.data.index.folder import VIDEO_SUFFIXES
from magi.data.index.outcome_log import PASSING
from magi.data.index.records import DAMAGED, IndexedVideos, IndexHeader
from magi.data.index.records import VideoRecord as VideoRecord
from magi.data.index.sources import Listing, Source, list_videos
from magi.errors import DataError
from magi.progress import Report

_WRITABLE = "make the folder writable, or list the videos in a .csv elsewhere"


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
    """Where the work stands when a worker has done its share: the index, or how many files other workers still have."""

    index: VideoIndex | None
    missing_files: int


def open_index(config: DataConfig, on_progress: Report | None = None) -> VideoIndex:
    """The index of ``config.root``, built or brought up to date where the folder has changed since.

    With ``config.fps`` its videos have the frames of that rate. ``ValueError`` for a missing folder, ``DataError``
    without videos or beyond ``config.max_bad_fraction``.
    """
    if not config.root:
        raise ValueError("data.root is empty: name a folder of videos ('magi data digits OUT' writes one)")
    index = build_index(config, max(1, config.workers), retry=False, on_progress=on_progress)
    if config.fps and isinstance(index.videos, IndexedVideos):
        return replace(index, videos=index.videos.at_rate(config.fps))
    return index


def build_index(
    config: DataConfig,
    processes: int = 1,
    retry: bool = True,
    limits: DecodeLimits | None = None,
    on_progress: Report | None = None,
    keep_clean: bool | None = None,
) -> VideoIndex:
    """``index_share`` of a single worker, which does all the work."""
    share = index_share(config, (0, 1), processes, retry, limits, on_progress, keep_clean)
    assert share.index is not None, "a single worker decodes every file"
    return share.index


def index_share(
    config: DataConfig,
    share: tuple[int, int],
    processes: int = 1,
    retry: bool = True,
    limits: DecodeLimits | None = None,
    on_progress: Report | None = None,
    keep_clean: bool | None = None,
) -> IndexShare:
    """Decode every new or changed video of share i of N once, ``processes`` at a time; the last worker adds the index.

    ``retry``: also files that ran out of time, memory or rights before. ``on_progress`` gets (files done, all files).
    ``keep_clean``: the longest sound stretch of a damaged file is used; by default as in the index that is there.
    ``ValueError`` for a missing folder or an impossible share; ``DataError`` without videos, or when more than
    ``config.max_bad_fraction`` of them are bad, after index and report are written.
    """
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"worker {share[0]}/{share[1]}: expected i/N with i from 0 to N - 1")
    source = Source.of(Path(config.root), config.annotations, config.split)
    listing = list_videos(source)
    if not listing.count:
        others = ", ".join(f"{count} {suffix}" for suffix, count in listing.other_videos.items())
        raise DataError(
            f"{source.root}: no videos ({', '.join(VIDEO_SUFFIXES)}) in this folder or below it"
            + (f", but {others}, which are not read: convert them to mp4" if others else "")
        )
    there = _header(source)
    if keep_clean is None:
        keep_clean = there is not None and there.keep_clean
    if there is None or there.keep_clean != keep_clean or not _is_current(listing, there, retry):
        seen = ListingSummary(listing)
        try:
            decode_share(listing, seen, share, processes, retry, limits or DecodeLimits(), on_progress)
            if missing := write_index(listing, seen, keep_clean):
                return IndexShare(None, missing)
        except OSError as error:
            raise DataError(
                f"{error.filename2 or error.filename}: cannot be read or written ({error.strerror}); {_WRITABLE}"
            ) from error
    index = load_index(source)
    _check_bad_fraction(source, index, config.max_bad_fraction)
    return IndexShare(index, 0)


def load_index(source: Source) -> VideoIndex:
    """Read the index of a source without looking at its videos; ``DataError`` if there is none or it is damaged."""
    path = source.index_path
    if not path.is_file():
        raise DataError(f"{path}: no index; run '{source.index_command}'")
    try:
        videos = IndexedVideos(path)
    except DAMAGED as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({problem}); delete it and run '{source.index_command}'") from error
    header = videos.header
    return VideoIndex(source.root, header.classes, videos, sum(header.rejected.values()), header.missing)


def _header(source: Source) -> IndexHeader | None:
    """What the index there says of itself; None if there is none or it is damaged."""
    try:
        return IndexedVideos(source.index_path).header
    except (OSError, *DAMAGED):
        return None


def _is_current(listing: Listing, header: IndexHeader, retry: bool) -> bool:
    """Whether the index there says of the listed files what a new one would."""
    source = listing.source
    if not source.report_path.is_file() or (retry and PASSING & header.rejected.keys()):
        return False
    seen = ListingSummary(listing)
    for file in listing.files():
        seen.add(file)
    return seen.digest == header.listing


def _check_bad_fraction(source: Source, index: VideoIndex, max_bad_fraction: float) -> None:
    listed = len(index.videos) + index.skipped
    if index.videos and index.skipped <= max_bad_fraction * listed:
        return
    reasons = Counter(IndexedVideos(source.index_path).header.rejected)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    beyond = f"more than --max-bad-fraction {max_bad_fraction:g}" if index.videos else "none is left"
    raise DataError(
        f"{source.path_list or source.root}: {index.skipped} of {listed} videos cannot be used ({counts}): {beyond}; "
        f"{source.report_path.name} there names each"
    )
