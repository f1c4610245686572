"""Captions as data sets hand them out: the rows of an annotation file, in whatever form it has.

Read are CSV, JSONL and Parquet by the names of their columns, and ``videos.txt`` with ``prompts.txt``, a line a video.
Known without further words are the columns of

- Hugging Face's VideoFolder: ``file_name`` and a caption;
- OpenVid-1M: ``video``, ``caption``, beside columns whose names have spaces;
- WebVid: ``page_dir``, ``videoid``, and the caption as ``name``;
- Panda-70M: ``videoID``, and in ``timestamp`` and ``caption`` Python lists with an entry a segment;
- Koala-36M: as Panda-70M, a segment a row;
- InternVid: ``YoutubeID``, ``Caption``, ``Start_timestamp`` and ``End_timestamp``, or all four in short.

Cells are data, never code: a list in a cell is read as a literal. Knows no videos: ``magi.data.import_captions`` does.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from magi.data.captions import MOST_BYTES, one_line
from magi.data.index.table import TableError, open_rows
from magi.errors import hint
from magi.files import text_lines

TABLES = (".csv", ".jsonl", ".parquet")
METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)
"""What a VideoFolder's annotations are called."""
VIDEO_LISTS, PROMPT_LISTS = ("videos.txt", "video.txt"), ("prompts.txt", "prompt.txt", "captions.txt")
_CAPTIONS = ("caption", "text", "prompt", "description")
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")


class CaptionError(ValueError):
    """A row that cannot be used, which says why."""


@dataclass(frozen=True)
class CaptionColumns:
    """Which columns of a table say what; those that a table does not have are ''."""

    path: str
    caption: str
    start: str = ""
    end: str = ""
    times: str = ""
    """Of (start, end), or of a list of them, beside a list of captions."""
    folder: str = ""
    """Of the folder in which a video lies."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(filter(None, vars(self).values()))


KNOWN = (
    CaptionColumns("videoid", "name", folder="page_dir"),
    CaptionColumns("videoID", "caption", times="timestamp"),
    CaptionColumns("YoutubeID", "Caption", "Start_timestamp", "End_timestamp"),
    CaptionColumns("id", "caption", "start", "end"),
    *(
        CaptionColumns(path, caption)
        for path in ("file_name", "video", "path", "video_path", "file_path", "file", "filename")
        for caption in _CAPTIONS
    ),
)
"""The first whose columns a table has is taken."""


@dataclass(frozen=True)
class CaptionRow:
    """A caption of a video, or of the part of it between ``start`` and ``end``, in seconds."""

    video: str
    """As the file names it: a path, with or without its suffix."""
    caption: str
    """Of one line; '' where there is none."""
    start: float = 0.0
    end: float = math.inf


@dataclass(frozen=True)
class CaptionFile:
    """An annotation file whose form is known."""

    path: Path
    columns: CaptionColumns | None
    """None for a pair of lists."""
    rows: Callable[[], Iterator[tuple[int, list[CaptionRow] | CaptionError]]]
    """(line, its captions or why it has none), anew at each call; ``TableError`` where the file cannot be read on."""


def open_captions(path: Path, asked: CaptionColumns | None = None) -> CaptionFile:
    """The annotation file ``path``, or the one in the folder ``path``, by the columns ``asked`` for or known ones.

    ``ValueError`` where there is none, or its columns are not known; ``TableError`` where it cannot be read.
    """
    path = _annotation_file(path)
    if path.suffix.lower() == ".txt":
        return _open_pair(path)
    walk = _parquet_rows if path.suffix.lower() == ".parquet" else _text_rows
    names = list(next(walk(path, None))[1])
    columns = _known_columns(path, names) if asked is None else asked
    for name in columns.names:
        if name not in names:
            raise ValueError(f"{path}: no column {name!a}; {hint(name, map(ascii, names))}")

    def rows() -> Iterator[tuple[int, list[CaptionRow] | CaptionError]]:
        for line, row in walk(path, columns):
            yield line, _captions_or_why(row, columns)

    return CaptionFile(path, columns, rows)


def _annotation_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() not in (*TABLES, ".txt"):
            raise ValueError(f"{path}: expected annotations as {', '.join(TABLES)}, or videos.txt beside prompts.txt")
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    found = [path / name for name in (*METADATA, *VIDEO_LISTS) if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path}: holds {' and '.join(file.name for file in found)}; name the one to read")
    raise ValueError(f"{path}: holds none of {', '.join((*METADATA, VIDEO_LISTS[0]))}; name the file of captions")


def _known_columns(path: Path, names: list[str]) -> CaptionColumns:
    for columns in KNOWN:
        if set(columns.names) <= set(names):
            return columns
    raise ValueError(
        f"{path}: which columns hold the paths and the captions? name them with --path-column and --caption-column; "
        f"it has {', '.join(map(ascii, names[:20]))}"
    )


def _open_pair(path: Path) -> CaptionFile:
    """Two lists: line k of one names the video, line k of the other is its caption."""
    prompts = [path.with_name(name) for name in PROMPT_LISTS if path.with_name(name).is_file()]
    if path.name in PROMPT_LISTS:
        raise ValueError(f"{path}: name the list of videos beside it, {VIDEO_LISTS[0]}")
    if not prompts:
        raise ValueError(f"{path}: no {' or '.join(PROMPT_LISTS)} beside it")

    def rows() -> Iterator[tuple[int, list[CaptionRow] | CaptionError]]:
        lines = zip_longest(_lines(path), _lines(prompts[0]))
        for number, (video, caption) in enumerate(lines, start=1):
            if video is None or caption is None:
                short, long = (path, prompts[0]) if video is None else (prompts[0], path)
                raise TableError(f"{short}: ends at line {number - 1}, before {long.name}; the lines do not match up")
            row = {"video": video, "caption": caption}
            yield number, _captions_or_why(row, CaptionColumns("video", "caption"))

    return CaptionFile(path, None, rows)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from text_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as text ({error})") from None


def _text_rows(path: Path, columns: CaptionColumns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    return open_rows(path)


def _parquet_rows(path: Path, columns: CaptionColumns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of some columns; of all, for the names alone, where ``columns`` is None."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet is read with pyarrow; pip install -e '.[text]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise TableError(f"{path}: has no rows; expected a table that names its columns")
            if columns is None:
                yield 0, dict.fromkeys(file.schema_arrow.names)
                return
            batches = file.iter_batches(batch_size=4096, columns=list(columns.names))
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TableError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:120]})") from None


def _captions_or_why(row: dict[str, Any], columns: CaptionColumns) -> list[CaptionRow] | CaptionError:
    try:
        return _captions_of(row, columns)
    except CaptionError as error:
        return error


def _captions_of(row: dict[str, Any], columns: CaptionColumns) -> list[CaptionRow]:
    """The captions of a row; ``CaptionError`` for one that says nothing that can be used."""
    video = _text(row, columns.path)
    if not video:
        raise CaptionError(f"{columns.path!a} is empty")
    if columns.folder:
        video = f"{_text(row, columns.folder)}/{video}"
    if columns.times:
        return _segments(video, row, columns)
    start = _seconds(row.get(columns.start)) if columns.start else 0.0
    end = _seconds(row.get(columns.end), math.inf) if columns.end else math.inf
    return [_segment(video, _text(row, columns.caption), start, end)]


def _segments(video: str, row: dict[str, Any], columns: CaptionColumns) -> list[CaptionRow]:
    """Of a column of times: one segment, or a list of them with a list of captions."""
    times = _literal(row.get(columns.times), columns.times)
    if len(times) == 2 and not any(isinstance(entry, list | tuple) for entry in times):
        return [_segment(video, _text(row, columns.caption), _seconds(times[0]), _seconds(times[1]))]
    captions = _literal(row.get(columns.caption), columns.caption)
    if len(captions) != len(times):
        raise CaptionError(f"{len(times)} segments in {columns.times!a}, but {len(captions)} captions")
    if not all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in times):
        raise CaptionError(f"{columns.times!a} is no list of (start, end)")
    texts = ({columns.caption: caption} for caption in captions)
    return [
        _segment(video, _text(text, columns.caption), _seconds(start), _seconds(end))
        for text, (start, end) in zip(texts, times, strict=True)
    ]


def _segment(video: str, caption: str, start: float, end: float) -> CaptionRow:
    if not start < end:
        raise CaptionError(f"a segment from {start:g} to {end:g} seconds")
    if len(caption) > MOST_BYTES // 4:  # a character has up to four bytes
        raise CaptionError(f"a caption of {len(caption):,} characters")
    try:
        return CaptionRow(video, one_line(caption), start, end)
    except ValueError as error:
        raise CaptionError(f"its caption: {error}") from None


def _literal(cell: Any, column: str) -> list[Any]:
    """A list as it is, or as text with the list written in Python, which is read as a literal and never run."""
    if isinstance(cell, str):
        try:
            cell = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            cell = None
    if not isinstance(cell, list | tuple):
        raise CaptionError(f"{column!a} is no list")
    return list(cell)


def _text(row: dict[str, Any], column: str) -> str:
    """A cell as text; '' for one that is empty, null or NaN."""
    cell = row.get(column)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    raise CaptionError(f"{column!a} is {type(cell).__name__}, not text")


def _seconds(cell: Any, otherwise: float = 0.0) -> float:
    """Seconds as a number, or as text: '12.5', '1:02.5' or '0:01:02.5'; ``otherwise`` where there is nothing."""
    if cell is None or cell == "":
        return otherwise
    if isinstance(cell, str) and (match := _TIME.fullmatch(cell.strip())):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds
    if isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell) and cell >= 0:
        return float(cell)
    raise CaptionError(f"{cell!a:.40} is no time in seconds or as h:mm:ss")
