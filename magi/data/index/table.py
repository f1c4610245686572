"""Tables of videos: rows of a CSV or JSONL file, and annotations that find the row of a video by its path.

A table is read through, never held in memory: some 20 bytes a row are.
"""

import csv
import json
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.errors import DataError, hint
from magi.files import text_lines

_VALIDATION = ("val", "validate", "validation", "valid")


class TableError(DataError):
    """A table contradicts itself or the folder, or cannot be read."""


@dataclass(frozen=True)
class Row:
    """A video of a table: the names that its file may have, and its label."""

    names: tuple[str, ...]
    label: int | None


class Annotations:
    """Finds the row of a video by its path."""

    def __init__(
        self,
        path: Path,
        classes: tuple[str, ...],
        rows: Callable[[], Iterator[Row]],
        name_of: Callable[[str], str],
    ) -> None:
        self.path, self.classes, self._rows, self._name_of = path, classes, rows, name_of
        self._folders = {plain_name(name): label for label, name in enumerate(classes)}
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
        position = int(np.searchsorted(self._keys, key))
        if position == len(self._keys) or self._keys[position] != key:
            return None
        return int(self._numbers[self._first[position]])

    def label(self, row: int) -> int | None:
        """Class number of a row; None where the table has no label."""
        label = int(self._labels[row])
        return None if label < 0 else label

    def names(self) -> Iterator[str]:
        """The first name of each row, in order."""
        return (row.names[0] for row in self._rows())

    def class_of_folder(self, path: str) -> int | None:
        """The class whose name the video's folder has, if it is that of one."""
        return self._folders.get(plain_name(path.rpartition("/")[0].rpartition("/")[2]))


def split_name(name: str) -> str:
    """The name of a split as it is compared: lower case, and one word for validation."""
    return "val" if name.lower() in _VALIDATION else name.lower()


def check_split(path: Path, split: str, splits: Collection[str]) -> None:
    """``ValueError`` unless ``split`` is empty or one of ``splits``."""
    if split and split_name(split) not in splits:
        found = ", ".join(sorted(set(splits) - {""})[:10])
        raise ValueError(f"data.split {split!r}: {path} has no such split; it has {found or 'none'}")


def read_rows(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV or JSONL with these columns and no others; ``TableError`` with one line."""
    checked: frozenset[str] = frozenset()
    for line, row in open_rows(path):
        names = frozenset(row)
        if names != checked:
            _check_columns(path, list(row), columns, needed)
            checked = names
        yield line, {name: _text(path, line, value) for name, value in row.items()}


def open_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a CSV or JSONL, whatever its columns; ``TableError`` with one line, or without rows."""
    reader = _read_json_rows if path.suffix.lower() == ".jsonl" else _read_csv_rows
    empty = True
    try:
        for line, row in reader(path):
            empty = False
            yield line, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as a table ({error})") from None
    if empty:
        raise TableError(f"{path}: has no rows; expected a table that names its columns")


def _read_csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text_lines(path), strict=True)
    for row in reader:
        if None in row or None in row.values():
            raise TableError(
                f"{path}: line {reader.line_num}: has another number of fields than the "
                f"{len(reader.fieldnames or ())} columns; quote what contains a comma"
            )
        yield reader.line_num, row


def _read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text_lines(path), start=1):
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
            expected = hint(name or "", columns, f"expected {', '.join(columns)}")
            raise TableError(f"{path}: unknown column {name!a}; {expected}")
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


def plain_name(name: str) -> str:
    """A class name as folders and tables may write it differently."""
    return name.lower().replace("_", " ").strip()
