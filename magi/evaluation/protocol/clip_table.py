"""The clip table: which real clips a protocol uses, a row each, fixed once and read from a CSV ever after.

A row is a video (path below the data folder), the first frame, the interval, the number of frames, where the square is
cut and the label. Two sets of the same size and no row in common are drawn: ``real``, which generated clips are
compared with, and ``floor``, which says how far two sets of real clips are from each other. In a fold no row comes
twice. Clips of one video are alike, so a floor of the real set's own videos is too low: it takes other videos where
there are enough, and where there are not, ``shared_clips`` says how many of its clips are such. Videos too short for a
clip are listed, not dropped in silence. Knows no networks and no models.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from magi.data.clips import clip_span
from magi.data.index.index import VideoIndex
from magi.data.index.records import VideoRecord
from magi.errors import DataError
from magi.evaluation.protocol.protocols import EvaluationProtocol
from magi.files import write_json, write_text
from magi.seeding import numpy_generator

SetName = Literal["real", "floor"]
SETS: tuple[SetName, ...] = ("real", "floor")
TABLE_FILE = "clips.csv"
_TABLE_KEY = 20


@dataclass(frozen=True)
class ClipRow:
    """One real clip; ``crop_x`` and ``crop_y`` are shares of the slack left of and above the square."""

    set: SetName
    fold: int
    video: str
    start: int
    interval: int
    frames: int
    crop_x: Annotated[float, Field(ge=0, le=1)]
    crop_y: Annotated[float, Field(ge=0, le=1)]
    label: int
    """-1: none."""

    @property
    def place(self) -> tuple[str, int, float, float]:
        """What no two rows of a fold share."""
        return self.video, self.start, self.crop_x, self.crop_y


_ROW = TypeAdapter(ClipRow)


@dataclass(frozen=True)
class ClipTable:
    """The rows in order of set, fold and number, and the videos that no clip fits in."""

    rows: tuple[ClipRow, ...]
    too_short: tuple[str, ...] = ()

    def of(self, name: str, fold: int) -> list[ClipRow]:
        """The rows of a set and fold."""
        return [row for row in self.rows if row.set == name and row.fold == fold]

    def videos(self, name: str) -> set[str]:
        """The videos that a set has clips of, over all folds."""
        return {row.video for row in self.rows if row.set == name}

    @property
    def shared_clips(self) -> int:
        """How many clips of the floor are of videos that the real set of their fold has clips of."""
        used = {(row.fold, row.video) for row in self.rows if row.set == "real"}
        return sum(row.set == "floor" and (row.fold, row.video) in used for row in self.rows)

    @property
    def hash(self) -> str:
        """SHA-256 of the table as CSV."""
        return hashlib.sha256(self.csv().encode()).hexdigest()

    def csv(self) -> str:
        """The table as text, a line a row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(ClipRow))
        for row in self.rows:
            writer.writerow(f"{value:.4f}" if isinstance(value, float) else value for value in astuple(row))
        return text.getvalue()


def build_table(protocol: EvaluationProtocol, index: VideoIndex) -> ClipTable:
    """Draw the clips of ``protocol`` from the videos of ``index``: a pure function of both.

    ``ValueError`` where the videos do not hold two disjoint sets of ``count`` clips.
    """
    draw = _Draw(protocol, index)
    too_short = tuple(record.path for record in index.videos if record.frames < draw.span)
    if protocol.clip_sampling == "in_order":
        return ClipTable(tuple(draw.in_order()), too_short)
    folds = [draw.real_and_floor() for _ in range(protocol.folds)]
    rows = [
        replace(row, set=name, fold=fold)
        for number, name in enumerate(SETS)
        for fold, drawn in enumerate(folds)
        for row in drawn[number]
    ]
    return ClipTable(tuple(rows), too_short)


def by_number(path: Path) -> tuple[str, str]:
    """What sorts videos by the number after the last underscore of their names."""
    name, _, number = path.stem.rpartition("_")
    return number.zfill(12), name


class _Draw:
    """Draws distinct clips by the rule of a protocol, fold after fold; all are rows of the real set until they are put.

    Two clips of one place are equal rows, so that what is taken is known by comparison.
    """

    def __init__(self, protocol: EvaluationProtocol, index: VideoIndex) -> None:
        self.protocol, self.index = protocol, index
        self.rng = numpy_generator(protocol.table_seed, _TABLE_KEY)
        self.span = clip_span(protocol.frames, protocol.interval)
        self.usable = [record for record in index.videos if record.frames >= self.span]

    def in_order(self) -> list[ClipRow]:
        """The first frames of the first videos, in the order of the numbers in their names: 3_00012 after 2_00011."""
        videos = sorted(self.usable, key=lambda record: by_number(Path(record.path)))
        if len(videos) < self.protocol.count:
            raise ValueError(
                f"{self.index.root}: holds {len(videos)} videos of at least {self.span} frames, {self.protocol.name} "
                f"needs {self.protocol.count}; write more, or ask fewer with --count"
            )
        return [self._row(video, 0) for video in videos[: self.protocol.count]]

    def real_and_floor(self) -> tuple[list[ClipRow], list[ClipRow]]:
        """Two disjoint sets of ``count`` clips in random order, of different videos where there are enough.

        One clip a video: the floor takes the videos that the real set leaves, and when they run out other windows of
        the rest. Several: it takes the videos that are left where they are as many as the real set uses (of fewer, its
        clips would be more alike than the real ones) and hold enough clips, else all videos.
        """
        real = self._enough(self._clips(self.usable, []), 0)
        used = {row.video for row in real}
        others = [record for record in self.usable if record.path not in used]
        if not self.protocol.one_per_video and len(others) >= len(used):
            floor = self._clips(others, real)
            if len(floor) == self.protocol.count:
                return real, floor
        return real, self._enough(self._clips(self.usable, real), len(real))

    def _clips(self, videos: list[VideoRecord], taken: list[ClipRow]) -> list[ClipRow]:
        """``count`` distinct clips of ``videos``, none of which is ``taken``; fewer where there are no more."""
        if self.protocol.clip_sampling in ("random_window", "random_clip"):
            return self._random(videos, taken)
        candidates = list(self._candidates(videos, taken))
        order = self.rng.permutation(len(candidates)).tolist()
        if self.protocol.one_per_video:
            used = {row.video for row in taken}
            order.sort(key=lambda number: candidates[number].video in used)  # stable: other videos first
        return [candidates[number] for number in order[: self.protocol.count]]

    def _enough(self, rows: list[ClipRow], before: int) -> list[ClipRow]:
        """The rows, if they are ``count``; ``before`` is how many were found for the set before."""
        count = self.protocol.count
        if len(rows) == count:
            return rows
        raise ValueError(
            f"{self.index.root}: {before + len(rows)} clips of {self.protocol.frames} frames at interval "
            f"{self.protocol.interval}, {self.protocol.name} needs {2 * count} ({count} to score against and as many "
            "for the floor); add videos, or override with --count, which the name of the score then says"
        )

    def _candidates(self, videos: list[VideoRecord], taken: list[ClipRow]) -> Iterator[ClipRow]:
        """Every clip that the rule allows and that is not taken, in the order of the index."""
        known, starts = set(taken), {row.video: row.start for row in taken}
        for video in videos:
            slack = video.frames - self.span
            match self.protocol.clip_sampling:
                case "one_window":
                    yield from self._one_window(video, slack, starts.get(video.path))
                case "centre_window" if video.path not in starts:
                    yield self._placed(video, slack // 2)
                case "windows":
                    rows = (self._placed(video, start) for start in range(0, slack + 1, self.span))
                    yield from (row for row in rows if row not in known)
                case "grid":
                    yield from (row for row in self._grid(video, slack) if row not in known)

    def _one_window(self, video: VideoRecord, slack: int, taken: int | None) -> Iterator[ClipRow]:
        """A random window, beside the one that starts at ``taken``; none where there is no room beside it."""
        starts = list(range(slack + 1))
        if taken is not None:
            starts = [start for start in starts if abs(start - taken) >= self.span]
        if starts:
            yield self._placed(video, starts[int(self.rng.integers(len(starts)))])

    def _grid(self, video: VideoRecord, slack: int) -> Iterator[ClipRow]:
        windows, crops = self.protocol.windows, self.protocol.crops
        for start in sorted({round(slack * number / max(1, windows - 1)) for number in range(windows)}):
            for share in [number / (crops - 1) for number in range(crops)] if crops > 1 else [0.5]:
                yield self._row(video, start, *((share, 0.5) if video.width >= video.height else (0.5, share)))

    def _random(self, videos: list[VideoRecord], taken: list[ClipRow]) -> list[ClipRow]:
        found, wanted = dict.fromkeys(taken), len(taken) + self.protocol.count
        slacks = [video.frames - self.span for video in videos]
        ends = np.cumsum([slack + 1 for slack in slacks])
        for _ in range(20 * self.protocol.count if videos else 0):
            if self.protocol.clip_sampling == "random_clip":
                number = int(np.searchsorted(ends, self.rng.integers(ends[-1]), side="right"))
            else:
                number = int(self.rng.integers(len(videos)))
            found[self._placed(videos[number], int(self.rng.integers(slacks[number], endpoint=True)))] = None
            if len(found) == wanted:
                break
        return list(found)[len(taken) :]

    def _placed(self, video: VideoRecord, start: int) -> ClipRow:
        """The clip from frame ``start``, its square in the centre or drawn."""
        if self.protocol.crop != "random":
            return self._row(video, start)
        x, y = (round(float(self.rng.random()), 4) for _ in range(2))  # as many digits as the table has
        return self._row(video, start, x, y)

    def _row(self, video: VideoRecord, start: int, crop_x: float = 0.5, crop_y: float = 0.5) -> ClipRow:
        label = -1 if video.label is None else video.label
        frames, interval = self.protocol.frames, self.protocol.interval
        return ClipRow("real", 0, video.path, start, interval, frames, crop_x, crop_y, label)


def write_table(table: ClipTable, path: Path) -> None:
    """Write the CSV, and beside it a JSON that lists the videos left out."""
    write_text(path, table.csv())
    left_out = {"rows": len(table.rows), "sha256": table.hash, "too_short": list(table.too_short)}
    write_json(path.with_suffix(".json"), left_out)


def read_table(path: Path, protocol: EvaluationProtocol, index: VideoIndex) -> ClipTable:
    """Read a table back and hold it against the protocol and the videos.

    ``DataError`` for a damaged table, a row that comes twice, a clip that its video does not hold, and other counts,
    frames or intervals than the protocol's.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such clip table")
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for line, values in enumerate(csv.DictReader(file), start=2):
            try:
                rows.append(_ROW.validate_python(values))
            except ValidationError as error:
                wrong = error.errors()[0]
                field = ".".join(map(str, wrong["loc"]))
                raise DataError(
                    f"{path}: line {line} is damaged ({field}: {wrong['msg']}); write the table again"
                ) from None
    table = ClipTable(tuple(rows))
    _check(table, path, protocol, index)
    return table


def _check(table: ClipTable, path: Path, protocol: EvaluationProtocol, index: VideoIndex) -> None:
    lengths = {record.path: record.frames for record in index.videos}
    for fold in range(protocol.folds):
        places = [row.place for name in protocol.sets for row in table.of(name, fold)]
        twice = sorted(place for place, times in Counter(places).items() if times > 1)
        if twice:
            raise DataError(f"{path}: {len(twice)} clips come twice in fold {fold} (the first is {twice[0][0]})")
        for name in protocol.sets:
            if (found := len(table.of(name, fold))) != protocol.count:
                raise DataError(
                    f"{path}: {found} rows of set {name}, fold {fold}; {protocol.name} has {protocol.count}"
                )
    for row in table.rows:
        if (row.frames, row.interval) != (protocol.frames, protocol.interval):
            raise DataError(
                f"{path}: {row.video} has {row.frames} frames at interval {row.interval}, {protocol.name} has "
                f"{protocol.frames} at {protocol.interval}"
            )
        if row.start < 0 or row.start + clip_span(row.frames, row.interval) > lengths.get(row.video, 0):
            raise DataError(f"{path}: {index.root} holds no clip {row.video} from frame {row.start}; other data?")


def data_hash(index: VideoIndex) -> str:
    """SHA-256 of the list of usable videos with their lengths and sizes: two copies of a data set often differ."""
    digest = hashlib.sha256()
    for record in index.videos:
        digest.update(f"{record.path}\t{record.frames}\t{record.height}\t{record.width}\n".encode())
    return digest.hexdigest()
