"""From an annotation file to captions beside the videos that it names, and an account of every row and video.

A row finds its video by name alone: a path in the file is compared with the videos below the folder and never opened,
so whatever it says, files are written only beside those. Of a path and that of a video, one must be the end of the
other ('part1/a.mp4' finds 'a.mp4' and 'videos/part1/a.mp4', but not 'part2/a.mp4'), with or without a suffix. Knows no
models; in memory are the captions of the videos that are found.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from magi.data.caption_files import CaptionError, CaptionFile, CaptionRow
from magi.data.captions import CaptionSegment, caption_path, read_caption, read_segments, segments_path, segments_text
from magi.data.index.folder import VIDEO_SUFFIXES, videos_below
from magi.errors import DataError
from magi.files import write_text

EXAMPLES = 3
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass
class Cases:
    """How often something was met, and the first of them in words."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass
class CaptionReport:
    """What became of the rows of a file and of the videos of a folder."""

    rows: int = 0
    written: int = 0
    """Sidecars."""
    kept: int = 0
    """Sidecars that said the same before."""
    unusable: Cases = field(default_factory=Cases)
    """Rows without a path, or with times or a caption that mean nothing."""
    outside: Cases = field(default_factory=Cases)
    """Rows whose path leads out of the folder."""
    unmatched: Cases = field(default_factory=Cases)
    """Rows that name no video of the folder."""
    ambiguous: Cases = field(default_factory=Cases)
    """Rows that may name several videos."""
    empty: Cases = field(default_factory=Cases)
    """Rows of a video without a caption."""
    repeated: Cases = field(default_factory=Cases)
    """Rows about what an earlier row has captioned; the first one counts."""
    too_long: Cases = field(default_factory=Cases)
    """Captions above the budget of tokens."""
    uncaptioned: Cases = field(default_factory=Cases)
    """Videos that have no caption in the end."""


class VideoNames:
    """Finds the video that a path of an annotation file means, among those below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.paths = root, list(videos_below(root))
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_stem[PurePosixPath(path).stem].append(path)

    def find(self, named: str) -> list[str]:
        """The videos that ``named`` may mean, one where all is well; ``ValueError`` if it leads out of the folder."""
        path = PurePosixPath(named.replace("\\", "/"))
        root = PurePosixPath(self.root.absolute().as_posix())
        path = path.relative_to(root) if path.is_relative_to(root) else path
        if path.is_absolute() or ".." in path.parts or _DRIVE.match(named):
            raise ValueError(f"{named!a:.80} leads out of the folder")
        has_suffix = path.suffix.lower() in VIDEO_SUFFIXES
        wanted = (*path.parts[:-1], path.stem if has_suffix else path.name)
        found = [other for other in self._by_stem.get(wanted[-1], ()) if _one_ends_the_other(wanted, _stems(other))]
        for better in (lambda other: has_suffix and other == str(path), lambda other: _stems(other) == wanted):
            found = [other for other in found if better(other)] or found
        return found


def _stems(path: str) -> tuple[str, ...]:
    """The parts of a path, the last one without its suffix."""
    return PurePosixPath(path).with_suffix("").parts


def _one_ends_the_other(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def import_captions(
    file: CaptionFile,
    root: Path,
    budget: int,
    tokens: Callable[[str], int] = lambda text: len(text.encode()),
    replace: bool = False,
    max_bad_fraction: float = 0.01,
) -> CaptionReport:
    """Write the captions of a file beside the videos below ``root``: ``NAME.txt``, of segments ``NAME.captions.jsonl``.

    Nothing is written before every row is read. ``tokens`` counts those of a caption; one above ``budget`` is written
    whole and reported. ``ValueError`` where a video has another caption already, unless they are to be replaced;
    ``TableError`` where the file cannot be read, ``DataError`` where no row names a video or more than
    ``max_bad_fraction`` of the rows cannot be used.
    """
    videos, report = VideoNames(root), CaptionReport()
    if not videos.paths:
        raise DataError(f"{root}: no videos ({', '.join(VIDEO_SUFFIXES)}) in this folder or below it")
    found = _matched(file, videos, report)
    _check(file, videos, found, report, max_bad_fraction)
    texts = {_sidecar(root / video, rows): _text_of(rows) for video, rows in found.items()}
    changed = [path for path, text in texts.items() if path.exists() and path.read_bytes() != text.encode()]
    if changed and not replace:
        raise ValueError(f"{changed[0]}: says something else ({len(changed)} such files); --replace overwrites them")
    for path, text in texts.items():
        if path.exists() and path not in changed:
            report.kept += 1
        else:
            write_text(path, text)
            report.written += 1
    for rows in found.values():
        for row in rows:
            if (count := tokens(row.caption)) > budget:
                report.too_long.add(f"{row.video!a} ({count} tokens)")
    for video in videos.paths:
        if video not in found and not read_caption(root / video) and not read_segments(root / video):
            report.uncaptioned.add(ascii(video))
    return report


def _matched(file: CaptionFile, videos: VideoNames, report: CaptionReport) -> dict[str, list[CaptionRow]]:
    """The captions of each video that has some, in the order of the file; the report takes note of all others."""
    found: dict[str, list[CaptionRow]] = {}
    for line, captions in file.rows():
        report.rows += 1
        if isinstance(captions, CaptionError):
            report.unusable.add(f"line {line}: {captions}")
            continue
        for row in captions:
            if video := _video_of(line, row, videos, report):
                known = found.setdefault(video, [])
                if any((row.start, row.end) == (other.start, other.end) for other in known):
                    report.repeated.add(f"line {line}: {row.video!a}")
                else:
                    known.append(row)
    return found


def _video_of(line: int, row: CaptionRow, videos: VideoNames, report: CaptionReport) -> str | None:
    """The one video that a row captions; None where there is none, of which the report takes note."""
    try:
        matches = videos.find(row.video)
    except ValueError as error:
        report.outside.add(f"line {line}: {error}")
        return None
    if len(matches) != 1:
        cases = report.ambiguous if matches else report.unmatched
        cases.add(f"line {line}: {row.video!a:.80}" + (f" ({matches[0]!a}, {matches[1]!a})" if matches else ""))
        return None
    if not row.caption:
        report.empty.add(f"line {line}: {row.video!a:.80}")
        return None
    return matches[0]


def _check(
    file: CaptionFile,
    videos: VideoNames,
    found: dict[str, list[CaptionRow]],
    report: CaptionReport,
    max_bad_fraction: float,
) -> None:
    if report.unusable.count > max_bad_fraction * report.rows:
        raise DataError(
            f"{file.path}: {report.unusable.count} of {report.rows} rows cannot be used, more than max_bad_fraction "
            f"{max_bad_fraction:g}; the first: {report.unusable.examples[0]}"
        )
    if not found:
        cases = [case for case in (report.outside, report.ambiguous, report.empty, report.unmatched) if case.count]
        raise DataError(
            f"{file.path}: none of its {report.rows} rows captions a video of {videos.root} ({len(videos.paths)} "
            f"videos, the first {videos.paths[0]!a}); a row: {cases[0].examples[0]}"
        )


def _sidecar(video: Path, rows: Iterable[CaptionRow]) -> Path:
    return caption_path(video) if _is_whole(rows) else segments_path(video)


def _text_of(rows: Iterable[CaptionRow]) -> str:
    rows = list(rows)
    if _is_whole(rows):
        return rows[0].caption + "\n"
    return segments_text([CaptionSegment(row.start, row.end, row.caption) for row in rows])


def _is_whole(rows: Iterable[CaptionRow]) -> bool:
    """Whether they are one caption of the whole video."""
    return [(row.start, row.end) for row in rows] == [(0.0, float("inf"))]
