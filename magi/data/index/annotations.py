"""Tables that say which videos belong to a split and what they show: UCF-101's, Kinetics', and lists of the user's own.

- UCF-101: a folder with ``classInd.txt`` (``1 ApplyEyeMakeup``), ``trainlist01.txt`` (``Class/v_x.avi 1``) and
  ``testlist01.txt`` (without numbers), as its authors give them. Labels count from 0 in the order of ``classInd.txt``.
- Kinetics: CSV with the columns label, youtube_id, time_start, time_end, split; one file, or a folder of train.csv,
  val.csv, test.csv. A video is called ``ID_000010_000020.mp4`` or ``ID.mp4``, in class folders or not. Labels are
  numbered by sorted name over all rows of all files, so every split has the same.
- A list: CSV or JSONL with the columns path, label, split; paths are relative to the list. Labels are names, or class
  numbers from 0.

A table is read through, never held: memory is some 20 bytes a row. This module knows no folders and no decoding.
"""

import csv
import difflib
import json
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.errors import DataError

_CLASS_LIST = "classInd.txt"
_KINETICS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
_OWN = ("path", "label", "split")
_VALIDATION = ("val", "validate", "validation", "valid")
_MOST_CLASSES = 100_000


class TableError(DataError):
    """A table contradicts itself or the folder, or cannot be read."""


@dataclass(frozen=True)
class PathList:
    """A list of paths with labels, in its own order."""

    classes: tuple[str, ...]
    count: int
    walk: Callable[[], Iterator[tuple[str, int | None]]]


@dataclass(frozen=True)
class _Row:
    """A video of a table: the names that its file may have, and its label."""

    names: tuple[str, ...]
    label: int | None


class Annotations:
    """Finds the row of a video by its path."""

    def __init__(
        self,
        path: Path,
        classes: tuple[str, ...],
        rows: Callable[[], Iterator[_Row]],
        name_of: Callable[[str], str],
    ) -> None:
        self.path, self.classes, self._rows, self._name_of = path, classes, rows, name_of
        self._folders = {_plain(name): label for label, name in enumerate(classes)}
        keys, numbers, labels = array("q"), array("i"), array("i")
        for number, row in enumerate(rows()):
            labels.append(-1 if row.label is None else row.label)
            for name in row.names:
                keys.append(hash(name))
                numbers.append(number)
        self._labels: NDArray[np.int32] = np.array(labels, np.int32)
        keys_K, self._first = np.unique(np.array(keys, np.int64), return_index=True)
        self._keys, self._numbers = keys_K, np.array(numbers, np.int32)

    @property
    def count(self) -> int:
        """Rows of the split."""
        return len(self._labels)

    def find(self, path: str) -> int | None:
        """Number of the row that names the video, if one does."""
        key = hash(self._name_of(path))
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        return int(self._numbers[self._first[place]])

    def label(self, row: int) -> int | None:
        """Class number of a row; None where the table has no label."""
        label = int(self._labels[row])
        return None if label < 0 else label

    def names(self) -> Iterator[str]:
        """The first name of each row, in order."""
        return (row.names[0] for row in self._rows())

    def class_of_folder(self, path: str) -> int | None:
        """The class whose name the video's folder has, if it has one's."""
        return self._folders.get(_plain(path.rpartition("/")[0].rpartition("/")[2]))


def open_annotations(path: Path, split: str) -> Annotations:
    """The rows of ``split``; ``ValueError`` if a file or the split is missing, ``TableError`` for a bad table."""
    if not path.exists():
        raise ValueError(f"data.annotations {path}: no such file or folder")
    if path.suffix.lower() == ".txt" and path.is_file():
        raise ValueError(f"data.annotations {path}: is one split file; name its folder, and the split as data.split")
    if path.is_dir() and (path / _CLASS_LIST).is_file():
        return _open_ucf(path, split)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if not tables:
            raise ValueError(
                f"data.annotations {path}: holds neither {_CLASS_LIST} (UCF-101) nor a .csv (Kinetics); "
                f"name the folder of the split files"
            )
    else:
        tables = [path]
    return _open_kinetics(path, tables, split)


def open_path_list(path: Path, split: str) -> PathList:
    """The rows of ``split`` of a list of the user's own; errors as for ``open_annotations``."""
    if not path.is_file():
        raise ValueError(f"data.root {path}: no such list")
    labels, splits, seen = set(), set(), array("q")
    labelled = unlabelled = 0
    for line, row in _read_rows(path, _OWN, ("path",)):
        splits.add(_split_name(row.get("split", "")))
        if not row["path"]:
            raise TableError(f"{path}: line {line}: path is empty")
        seen.append(hash(row["path"]))
        labels.add(row.get("label", ""))
        labelled, unlabelled = (labelled + 1, unlabelled) if row.get("label") else (labelled, unlabelled + 1)
        if labelled and unlabelled:
            raise TableError(f"{path}: line {line}: labels do not match up: some rows have one and some have none")
    _check_split(path, split, splits)
    _check_repeats(path, seen)
    classes = _class_names(path, labels - {""})
    numbers = {name: number for number, name in enumerate(classes)}

    def walk() -> Iterator[tuple[str, int | None]]:
        for _, row in _read_rows(path, _OWN, ("path",)):
            if not split or _split_name(row.get("split", "")) == _split_name(split):
                label = row.get("label", "")
                yield row["path"], numbers[_class_key(label)] if label else None

    return PathList(classes, sum(1 for _ in walk()), walk)


def _class_names(path: Path, labels: Collection[str]) -> tuple[str, ...]:
    """Names sorted; class numbers as they are, so that 3 stays class 3."""
    if not labels or not all(label.isdecimal() for label in labels):
        return tuple(sorted(labels))
    largest = max(int(label) for label in labels)
    if largest >= _MOST_CLASSES:
        raise TableError(f"{path}: label {largest} is no class number: expected numbers from 0, or names")
    return tuple(str(number) for number in range(largest + 1))


def _class_key(label: str) -> str:
    return str(int(label)) if label.isdecimal() else label


def _check_repeats(path: Path, seen: "array[int]") -> None:
    keys, counts = np.unique(np.array(seen, np.int64), return_counts=True)
    repeated = set(keys[counts > 1].tolist())
    if repeated:
        lines = [
            (line, row["path"]) for line, row in _read_rows(path, _OWN, ("path",)) if hash(row["path"]) in repeated
        ]
        raise TableError(f"{path}: line {lines[1][0]}: {lines[1][1]!a} is listed twice; every path once")


def _open_ucf(folder: Path, split: str) -> Annotations:
    lists = sorted(path.stem for path in folder.glob("*list*.txt"))
    if not split:
        raise ValueError(f"data.split is empty: {folder} has {', '.join(lists) or 'no split files'}; choose one")
    names = (split, split.replace("train", "trainlist").replace("test", "testlist"))
    path = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder / names[0]}.txt: no such split file; {folder} has {', '.join(lists) or 'no split files'}"
        )
    classes = _read_class_list(folder / _CLASS_LIST)
    numbers = {name: number for number, name in enumerate(classes)}
    found: Path = path

    def rows() -> Iterator[_Row]:
        for line, words in _read_words(found):
            name = words[0]
            folder_name = name.rpartition("/")[0]
            if folder_name not in numbers:
                raise TableError(f"{found}: line {line}: {folder_name!a} is no class of {_CLASS_LIST}")
            if len(words) > 1 and words[1] != str(numbers[folder_name] + 1):
                raise TableError(
                    f"{found}: line {line}: the label of {name!a} is {words[1]}, but {_CLASS_LIST} numbers "
                    f"{folder_name} {numbers[folder_name] + 1}; the files do not belong together"
                )
            yield _Row((name,), numbers[folder_name])

    return Annotations(found, classes, rows, lambda path: "/".join(path.split("/")[-2:]))


def _read_class_list(path: Path) -> tuple[str, ...]:
    classes = []
    for line, words in _read_words(path):
        if len(words) != 2 or words[0] != str(line):
            raise TableError(f"{path}: line {line}: expected '{line} ClassName', got {' '.join(words)!a}")
        classes.append(words[1])
    return tuple(classes)


def _read_words(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if words := line.split():
                    yield number, words
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as text ({error})") from None


def _open_kinetics(path: Path, tables: list[Path], split: str) -> Annotations:
    labels, splits = set(), set()
    for table in tables:
        for _, row in _read_rows(table, _KINETICS, ("youtube_id", "label")):
            labels.add(row["label"])
            splits.add(_split_of(row, table))
    _check_split(path, split, splits)
    classes = tuple(sorted(labels - {""}))
    numbers = {name: number for number, name in enumerate(classes)}

    def rows() -> Iterator[_Row]:
        for table in tables:
            for line, row in _read_rows(table, _KINETICS, ("youtube_id", "label")):
                if not split or _split_of(row, table) == _split_name(split):
                    yield _Row(_kinetics_names(table, line, row), numbers.get(row["label"]))

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
    return _split_name(row.get("split") or table.stem.rpartition("_")[2].rpartition("-")[2])


def _split_name(name: str) -> str:
    return "val" if name.lower() in _VALIDATION else name.lower()


def _check_split(path: Path, split: str, splits: Collection[str]) -> None:
    if split and _split_name(split) not in splits:
        there = ", ".join(sorted(splits - {""})[:10]) if isinstance(splits, set) else ""
        raise ValueError(f"data.split {split!r}: {path} has no such split; it has {there or 'none'}")


def _read_rows(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV or JSONL with these columns and no others; ``TableError`` with one line."""
    reader = _read_json_rows if path.suffix.lower() == ".jsonl" else _read_csv_rows
    checked: frozenset[str] = frozenset()
    empty = True
    try:
        for line, row in reader(path):
            names = frozenset(row)
            if names != checked:
                _check_columns(path, list(row), columns, needed)
                checked = names
            empty = False
            yield line, {name: _text(path, line, value) for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as a table ({error})") from None
    if empty:
        raise TableError(f"{path}: has no rows; expected the columns {', '.join(columns)}")


def _read_csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise TableError(
                    f"{path}: line {reader.line_num}: has another number of fields than the "
                    f"{len(reader.fieldnames or ())} columns; quote what contains a comma"
                )
            yield reader.line_num, row


def _read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TableError(f"{path}: line {number}: is no JSON ({error})") from None
            if not isinstance(row, dict):
                raise TableError(f"{path}: line {number}: expected an object, got {type(row).__name__}")
            yield number, row


def _check_columns(path: Path, names: list[str], columns: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for name in names:
        if name not in columns:
            match = difflib.get_close_matches(name or "", columns, n=1)
            hint = f"did you mean '{match[0]}'?" if match else f"expected {', '.join(columns)}"
            raise TableError(f"{path}: unknown column {name!a}; {hint}")
    for name in needed:
        if name not in names:
            raise TableError(f"{path}: the column '{name}' is missing; it has {', '.join(names)}")


def _text(path: Path, line: int, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TableError(f"{path}: line {line}: expected text or a number, got {value!a}")


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()
