"""The Kinetics annotations: CSV with the columns label, youtube_id, time_start, time_end, split.

One file, or a folder of train.csv, val.csv, test.csv. A video is called ``ID_000010_000020.mp4`` or ``ID.mp4``, in
class folders or not. Labels are numbered by sorted name over all rows of all files, so every split has the same.
"""

from collections.abc import Iterator
from pathlib import Path

from magi.data.index.table import Annotations, Row, TableError, check_split, read_rows, split_name

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")


def open_kinetics(path: Path, tables: list[Path], split: str) -> Annotations:
    """The rows of a split (empty: of all); ``ValueError`` if it is missing, ``TableError`` for a bad row."""
    labels, splits = set(), set()
    for table in tables:
        for _, row in read_rows(table, _COLUMNS, ("youtube_id", "label")):
            labels.add(row["label"])
            splits.add(_split_of(row, table))
    check_split(path, split, splits)
    classes = tuple(sorted(labels - {""}))
    numbers = {name: number for number, name in enumerate(classes)}

    def rows() -> Iterator[Row]:
        for table in tables:
            for line, row in read_rows(table, _COLUMNS, ("youtube_id", "label")):
                if not split or _split_of(row, table) == split_name(split):
                    yield Row(_kinetics_names(table, line, row), numbers.get(row["label"]))

    return Annotations(path, classes, rows, lambda name: name.rpartition("/")[2].rpartition(".")[0])


def _kinetics_names(table: Path, line: int, row: dict[str, str]) -> tuple[str, ...]:
    video, start, end = row["youtube_id"], row.get("time_start", ""), row.get("time_end", "")
    if not start or not end:
        return (video,)
    try:
        return f"{video}_{int(float(start)):06d}_{int(float(end)):06d}", video
    except (ValueError, OverflowError):
        raise TableError(f"{table}: line {line}: time_start {start!a} and time_end {end!a} are no seconds") from None


def _split_of(row: dict[str, str], table: Path) -> str:
    """The column says it, or else the name of the file."""
    return split_name(row.get("split") or table.stem.rpartition("_")[2].rpartition("-")[2])
