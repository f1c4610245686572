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
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from magi.data.clips import clip_span
from magi.data.index.index import VideoIndex
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
            writer.writerow(
                f"{value:.4f}" if isinstance(value, float) else value
                for value in (getattr(row, field.name) for field in fields(ClipRow))
            )
        return text.getvalue()


def build_table(protocol: EvaluationProtocol, index: VideoIndex) -> ClipTable:
    """Draw the clips of ``protocol`` from the videos of ``index``: a pure function of both.

    ``ValueError`` where the videos do not hold two disjoint sets of ``count`` clips.
    """
    span = clip_span(protocol.frames, protocol.interval)
    too_short = tuple(record.path for record in index.videos if record.frames < span)
    if protocol.clip_sampling == "in_order":
        return ClipTable(tuple(_in_order(protocol, index, span)), too_short)
    rng = numpy_generator(protocol.table_seed, _TABLE_KEY)
    rows: list[ClipRow] = []
    for fold in range(protocol.folds):
        for name, part in zip(SETS, _Draw(protocol, index, rng).real_and_floor(), strict=True):
            rows += [_row(protocol, index, name, fold, place) for place in part]
    order = {name: number for number, name in enumerate(SETS)}
    return ClipTable(tuple(sorted(rows, key=lambda row: (order[row.set], row.fold))), too_short)


def by_number(path: Path) -> tuple[str, str]:
    """What sorts videos by the number after the last underscore of their names."""
    name, _, number = path.stem.rpartition("_")
    return number.zfill(12), name


def _in_order(protocol: EvaluationProtocol, index: VideoIndex, span: int) -> list[ClipRow]:
    """The first frames of the first videos, in the order of the numbers in their names: 3_00012 after 2_00011."""
    videos = [number for number, record in enumerate(index.videos) if record.frames >= span]
    videos.sort(key=lambda number: by_number(Path(index.videos[number].path)))
    if len(videos) < protocol.count:
        raise ValueError(
            f"{index.root}: holds {len(videos)} videos of at least {span} frames, {protocol.name} needs "
            f"{protocol.count}; write more, or ask fewer with --count"
        )
    return [_row(protocol, index, "real", 0, _Place(video, 0, 0.5, 0.5)) for video in videos[: protocol.count]]


@dataclass(frozen=True)
class _Place:
    """A clip of a video: number in the index, first frame, place of the square."""

    video: int
    start: int
    crop_x: float
    crop_y: float


class _Draw:
    """Draws the distinct clips of one fold by the rule of a protocol."""

    def __init__(self, protocol: EvaluationProtocol, index: VideoIndex, rng: np.random.Generator) -> None:
        self.protocol, self.index, self.rng = protocol, index, rng
        self.span = clip_span(protocol.frames, protocol.interval)
        self.usable = [number for number, record in enumerate(index.videos) if record.frames >= self.span]

    def real_and_floor(self) -> tuple[list[_Place], list[_Place]]:
        """Two disjoint sets of ``count`` clips in random order, of different videos where there are enough.

        One clip a video: the floor takes the videos that the real set leaves, and when they run out other windows of
        the rest. Several: it takes the videos that are left where they are as many as the real set uses (of fewer, its
        clips would be more alike than the real ones) and hold enough clips, else all videos.
        """
        real = self._enough(self._places(self.usable, []), 0)
        used = {place.video for place in real}
        others = [video for video in self.usable if video not in used]
        if not self.protocol.one_per_video and len(others) >= len(used):
            floor = self._places(others, real)
            if len(floor) == self.protocol.count:
                return real, floor
        return real, self._enough(self._places(self.usable, real), len(real))

    def _places(self, videos: list[int], taken: list[_Place]) -> list[_Place]:
        """``count`` distinct clips of ``videos``, none of which is ``taken``; fewer where there are no more."""
        if self.protocol.clip_sampling in ("random_window", "random_clip"):
            return self._random(videos, taken)
        candidates = list(self._candidates(videos, taken))
        order = self.rng.permutation(len(candidates)).tolist()
        if self.protocol.one_per_video:
            used = {place.video for place in taken}
            order.sort(key=lambda number: candidates[number].video in used)  # stable: other videos first
        return [candidates[number] for number in order[: self.protocol.count]]

    def _enough(self, places: list[_Place], before: int) -> list[_Place]:
        """The places, if they are ``count``; ``before`` is how many were found for the set before."""
        count = self.protocol.count
        if len(places) == count:
            return places
        raise ValueError(
            f"{self.index.root}: {before + len(places)} clips of {self.protocol.frames} frames at interval "
            f"{self.protocol.interval}, {self.protocol.name} needs {2 * count} ({count} to score against and as many "
            "for the floor); add videos, or override with --count, which the name of the score then says"
        )

    def _candidates(self, videos: list[int], taken: list[_Place]) -> Iterator[_Place]:
        """Every clip that the rule allows, in the order of the index."""
        places, starts = set(taken), {place.video: place.start for place in taken}
        for video in videos:
            slack = self.index.videos[video].frames - self.span
            match self.protocol.clip_sampling:
                case "one_window":
                    yield from self._one_window(video, slack, starts.get(video))
                case "centre_window" if video not in starts:
                    yield self._placed(video, slack // 2)
                case "windows":
                    yield from (
                        place
                        for start in range(0, slack + 1, self.span)
                        if (place := self._placed(video, start)) not in places
                    )
                case "grid":
                    yield from (place for place in self._grid(video, slack) if place not in places)

    def _one_window(self, video: int, slack: int, taken: int | None) -> Iterator[_Place]:
        """A random window, beside the one that starts at ``taken``; none where there is no room beside it."""
        before, after = (slack + 1, 0) if taken is None else (taken - self.span + 1, slack - taken - self.span + 1)
        before, after = max(0, before), max(0, after)
        if before + after:
            drawn = int(self.rng.integers(before + after))
            yield self._placed(video, drawn if drawn < before else slack + 1 - after + (drawn - before))

    def _grid(self, video: int, slack: int) -> Iterator[_Place]:
        record, windows, crops = self.index.videos[video], self.protocol.windows, self.protocol.crops
        across = record.width >= record.height
        for start in sorted({round(slack * number / max(1, windows - 1)) for number in range(windows)}):
            for share in [number / (crops - 1) for number in range(crops)] if crops > 1 else [0.5]:
                yield _Place(video, start, share if across else 0.5, 0.5 if across else share)

    def _placed(self, video: int, start: int) -> _Place:
        if self.protocol.crop == "random":
            return _Place(video, start, self._share(), self._share())
        return _Place(video, start, 0.5, 0.5)

    def _share(self) -> float:
        return round(float(self.rng.random()), 4)  # as many digits as the table has

    def _random(self, videos: list[int], taken: list[_Place]) -> list[_Place]:
        found, wanted = dict.fromkeys(taken), len(taken) + self.protocol.count
        slacks = [self.index.videos[video].frames - self.span for video in videos]
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


def _row(protocol: EvaluationProtocol, index: VideoIndex, name: SetName, fold: int, place: _Place) -> ClipRow:
    record = index.videos[place.video]
    label = -1 if record.label is None else record.label
    return ClipRow(
        name, fold, record.path, place.start, protocol.interval, protocol.frames, place.crop_x, place.crop_y, label
    )


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
        twice = (
            sorted(place for place in set(places) if places.count(place) > 1) if len(set(places)) < len(places) else []
        )
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
