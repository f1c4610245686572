"""A list of the user's own: CSV or JSONL with the columns path, label, split.

Paths are relative to the list. Labels are names, or class numbers from 0; all rows have one, or none.
"""

from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magi.data.index.table import TableError, check_split, read_rows, split_name

SUFFIXES = (".csv", ".jsonl")
_COLUMNS = ("path", "label", "split")
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class PathList:
    """A list of paths with labels, in its own order."""

    classes: tuple[str, ...]
    count: int
    walk: Callable[[], Iterator[tuple[str, int | None]]]


def open_path_list(path: Path, split: str) -> PathList:
    """The rows of ``split`` of a list; ``ValueError`` if it or the split is missing, ``TableError`` for a bad row."""
    if not path.is_file():
        raise ValueError(f"data.root {path}: no such list")
    labels, splits, seen = set(), set(), array("q")
    labelled = unlabelled = 0
    for line, row in _rows(path):
        splits.add(split_name(row.get("split", "")))
        if not row["path"]:
            raise TableError(f"{path}: line {line}: path is empty")
        seen.append(hash(row["path"]))
        labels.add(row.get("label", ""))
        labelled, unlabelled = (labelled + 1, unlabelled) if row.get("label") else (labelled, unlabelled + 1)
        if labelled and unlabelled:
            raise TableError(f"{path}: line {line}: labels do not match up: some rows have one and some have none")
    check_split(path, split, splits)
    _check_repeats(path, seen)
    classes = _class_names(path, labels - {""})
    numbers = {name: number for number, name in enumerate(classes)}

    def walk() -> Iterator[tuple[str, int | None]]:
        for _, row in _rows(path):
            if not split or split_name(row.get("split", "")) == split_name(split):
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
        lines = [(line, row["path"]) for line, row in _rows(path) if hash(row["path"]) in repeated]
        raise TableError(f"{path}: line {lines[1][0]}: {lines[1][1]!a} is listed twice; every path once")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    return read_rows(path, _COLUMNS, ("path",))
