"""Which videos are to be indexed, by name alone: nothing is opened.

A source is a folder (its first-level folders are the classes), a folder with annotations that name its videos, or a
.csv or .jsonl of paths. Annotated videos that are not there are counted apart from bad ones. A listing is walked
through, never held in memory.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from magi.data.index.folder import INDEX_NAME, kind_of, videos_below, walk_folder
from magi.data.index.kinetics import open_kinetics
from magi.data.index.path_list import SUFFIXES, PathList, open_path_list
from magi.data.index.table import Annotations, TableError
from magi.data.index.ucf101 import CLASS_LIST, open_ucf101
from magi.errors import DataError


@dataclass(frozen=True)
class ListedFile:
    """A video by name; size and time of modification tell whether it has changed."""

    path: str
    """Relative to the root, with forward slashes, or absolute where a list says so."""
    bytes: int
    mtime_ns: int
    label: int | None = None

    @classmethod
    def of(cls, root: Path, path: str, label: int | None = None) -> Self:
        """The file as it is now; sizes of zero if it is gone or a broken link."""
        try:
            status = os.stat(root / path)
        except (OSError, ValueError):
            return cls(path, 0, 0, label)
        return cls(path, status.st_size, status.st_mtime_ns, label)

    @property
    def content(self) -> int:
        """A number that is the same, within this process, for a file that has not changed, whatever its label."""
        return hash((self.path, self.bytes, self.mtime_ns))


@dataclass(frozen=True)
class Source:
    """Where the videos of an index lie, what names them, and what the index and its report are called."""

    root: Path
    """Folder that relative paths start from."""
    tag: str = ""
    annotations: Path | None = None
    path_list: Path | None = None
    split: str = ""

    @classmethod
    def of(cls, root: Path, annotations: str = "", split: str = "") -> Self:
        """From the fields of ``data``; ``ValueError`` for a combination that means nothing."""
        if root.suffix.lower() in SUFFIXES and not root.is_dir():
            if annotations:
                raise ValueError(f"data.annotations {annotations!r}: {root} is a list and names its labels itself")
            return cls(root.parent, "-".join(filter(None, (root.name, split))), path_list=root, split=split)
        if split and not annotations:
            raise ValueError(
                f"data.split {split!r}: {root} is a folder, and only a list or data.annotations have splits; "
                f"name the annotations, or leave data.split empty"
            )
        if not annotations:
            return cls(root)
        tag = "-".join(filter(None, (Path(annotations).stem, split)))
        return cls(root, tag, annotations=Path(annotations), split=split)

    @property
    def index_path(self) -> Path:
        """The index of this source, in its root."""
        return self.root / f"{self.name}.safetensors"

    @property
    def report_path(self) -> Path:
        """The report beside the index, which accounts for every file."""
        return self.root / f"{self.name}-report.json"

    @property
    def index_command(self) -> str:
        """The command that makes the index."""
        argv = [f"magi data index {self.path_list or self.root}"]
        argv += [f"--annotations {self.annotations}"] if self.annotations else []
        return " ".join(argv + ([f"--split {self.split}"] if self.split else []))

    @property
    def name(self) -> str:
        """Of the index, without its suffix."""
        return f"{INDEX_NAME}-{self.tag}" if self.tag else INDEX_NAME


@dataclass(frozen=True)
class Listing:
    """The videos of a source in a fixed order, and what else lies there."""

    source: Source
    classes: tuple[str, ...]
    """Names of the labels; a label is a position here."""
    count: int
    walk: Callable[[], Iterator[tuple[str, int | None]]]
    """Paths and labels, anew at each call."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Files in the folder by ``kind_of``."""
    unlisted: int = 0
    """Videos in the folder that the annotations or their split do not name."""
    missing: int = 0
    """Videos that the annotations name and the folder does not hold."""
    missing_names: Callable[[], Iterator[str]] = field(default=lambda: iter(()))

    @property
    def other_videos(self) -> dict[str, int]:
        """How many videos of types that are not read lie in the folder, by suffix."""
        return {kind: self.kinds[kind] for kind in sorted(self.kinds) if kind.startswith(".")}

    def files(self) -> Iterator[ListedFile]:
        """The listed files as they are now."""
        for path, label in self.walk():
            yield ListedFile.of(self.source.root, path, label)


def list_videos(source: Source) -> Listing:
    """List a source; ``ValueError`` where it, its annotations or its split are missing, ``DataError`` if unreadable."""
    if source.path_list is not None:
        return _listed_paths(source, open_path_list(source.path_list, source.split))
    root = source.root
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise ValueError(f"{root}: {what}; expected a folder of videos, or a .csv or .jsonl that lists them")
    if source.annotations is not None:
        return _annotated_folder(source, open_annotations(source.annotations, source.split))
    return _class_folders(source)


def open_annotations(path: Path, split: str) -> Annotations:
    """The rows of ``split``; ``ValueError`` if a file or the split is missing, ``TableError`` for a bad table."""
    if not path.exists():
        raise ValueError(f"data.annotations {path}: no such file or folder")
    if path.suffix.lower() == ".txt" and path.is_file():
        raise ValueError(f"data.annotations {path}: is one split file; name its folder, and the split as data.split")
    if path.is_dir() and (path / CLASS_LIST).is_file():
        return open_ucf101(path, split)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if not tables:
            raise ValueError(
                f"data.annotations {path}: holds neither {CLASS_LIST} (UCF-101) nor a .csv (Kinetics); "
                f"name the folder of the split files"
            )
    else:
        tables = [path]
    return open_kinetics(path, tables, split)


def _listed_paths(source: Source, paths: PathList) -> Listing:
    return Listing(source, paths.classes, paths.count, paths.walk)


def _class_folders(source: Source) -> Listing:
    kinds, found = Counter[str](), set[str]()
    for path in walk_folder(source.root):
        kind = kind_of(path)
        kinds[kind] += 1
        if kind == "video" and "/" in path:
            found.add(path.partition("/")[0])
    classes = tuple(sorted(found))
    labels = {name: label for label, name in enumerate(classes)}

    def walk() -> Iterator[tuple[str, int | None]]:
        for path in videos_below(source.root):
            folder, slash, _ = path.partition("/")
            yield path, labels.get(folder) if slash else None

    return Listing(source, classes, kinds["video"], walk, kinds)


def _annotated_folder(source: Source, annotations: Annotations) -> Listing:
    kinds, count, unlisted = Counter[str](), 0, 0
    there = np.zeros(annotations.count, bool)
    for path in walk_folder(source.root):
        kind = kind_of(path)
        kinds[kind] += 1
        if kind == "video":
            row = annotations.find(path)
            if row is None:
                unlisted += 1
            else:
                _check_folder(source, annotations, path, row)
                there[row] = True
                count += 1
    missing = int(len(there) - there.sum())
    if not count:
        raise DataError(
            f"{source.root}: holds none of the {annotations.count} videos that {annotations.path} names, as "
            f"{next(annotations.names())!a}; check data.root and data.split"
        )

    def walk() -> Iterator[tuple[str, int | None]]:
        for path in videos_below(source.root):
            row = annotations.find(path)
            if row is not None:
                yield path, annotations.label(row)

    def missing_names() -> Iterator[str]:
        return (name for row, name in enumerate(annotations.names()) if not there[row])

    return Listing(source, annotations.classes, count, walk, kinds, unlisted, missing, missing_names)


def _check_folder(source: Source, annotations: Annotations, path: str, row: int) -> None:
    """A class folder and the annotations must not contradict each other."""
    folder, label = annotations.class_of_folder(path), annotations.label(row)
    if None not in (folder, label) and folder != label:
        assert folder is not None and label is not None
        raise TableError(
            f"{source.root / path}: lies in the folder of class {annotations.classes[folder]!a}, but "
            f"{annotations.path} says {annotations.classes[label]!a}; the labels do not match"
        )
