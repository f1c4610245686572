"""Which files are to be indexed, by name alone: nothing is opened.

A source is a folder (its first-level folders are the classes), a folder with annotations that name its videos
(``magi.data.index.annotations``), or a .csv or .jsonl of paths. Files that operating systems leave behind (``._*``,
``.DS_Store``, ``Thumbs.db``) are counted apart from bad videos, and so are annotated videos that are not there. Links
are followed, loops of links are not. A listing is walked through, never held: memory is that of one folder's names.

This module knows no decoding.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from magi.data.index.annotations import Annotations, PathList, TableError, open_annotations, open_path_list
from magi.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
LIST_SUFFIXES = (".csv", ".jsonl")
_OWN_NAMES = "magi-index"
_JUNK_NAMES = (".ds_store", "thumbs.db", "desktop.ini")


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

    def unchanged(self, other: "ListedFile") -> bool:
        """Whether both are the same content, whatever their labels."""
        return (self.path, self.bytes, self.mtime_ns) == (other.path, other.bytes, other.mtime_ns)


@dataclass(frozen=True)
class Source:
    """Where the videos of an index lie and what names them; also the names of the index and of its report."""

    root: Path
    """Folder that relative paths start from."""
    tag: str = ""
    annotations: Path | None = None
    path_list: Path | None = None
    split: str = ""

    @classmethod
    def of(cls, root: Path, annotations: str = "", split: str = "") -> Self:
        """From the fields of ``data``; ``ValueError`` for a combination that means nothing."""
        if root.suffix.lower() in LIST_SUFFIXES and not root.is_dir():
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
        return self.root / f"{self._name}.jsonl"

    @property
    def report_path(self) -> Path:
        """The account of every file beside the index."""
        return self.root / f"{self._name}-report.json"

    @property
    def parts_path(self) -> Path:
        """Folder of unfinished work."""
        return self.root / f".{self._name}.parts"

    @property
    def index_command(self) -> str:
        """The command that makes the index."""
        words = [f"magi data index {self.path_list or self.root}"]
        words += [f"--annotations {self.annotations}"] if self.annotations else []
        return " ".join(words + ([f"--split {self.split}"] if self.split else []))

    @property
    def _name(self) -> str:
        return f"{_OWN_NAMES}-{self.tag}" if self.tag else _OWN_NAMES


@dataclass(frozen=True)
class Listing:
    """The videos of a source in a fixed order, and what else lies there."""

    source: Source
    classes: tuple[str, ...]
    """Names of the labels; a label is a place here."""
    count: int
    walk: Callable[[], Iterator[tuple[str, int | None]]]
    """Paths and labels, anew at each call."""
    junk: int = 0
    other: int = 0
    unlisted: int = 0
    """Videos in the folder that the annotations or their split do not name."""
    missing: int = 0
    """Videos that the annotations name and the folder does not hold."""
    missing_names: Callable[[], Iterator[str]] = field(default=lambda: iter(()))

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


def _listed_paths(source: Source, paths: PathList) -> Listing:
    return Listing(source, paths.classes, paths.count, paths.walk)


def _class_folders(source: Source) -> Listing:
    junk = other = count = 0
    found: set[str] = set()
    for path in _walk_folder(source.root):
        kind = _kind(path)
        junk, other, count = junk + (kind == "junk"), other + (kind == "other"), count + (kind == "video")
        if kind == "video" and "/" in path:
            found.add(path.partition("/")[0])
    classes = tuple(sorted(found))
    labels = {name: label for label, name in enumerate(classes)}

    def walk() -> Iterator[tuple[str, int | None]]:
        for path in _videos(source.root):
            folder, slash, _ = path.partition("/")
            yield path, labels.get(folder) if slash else None

    return Listing(source, classes, count, walk, junk, other)


def _annotated_folder(source: Source, annotations: Annotations) -> Listing:
    junk = other = count = unlisted = 0
    there = np.zeros(annotations.count, bool)
    for path in _walk_folder(source.root):
        kind = _kind(path)
        junk, other = junk + (kind == "junk"), other + (kind == "other")
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
        for path in _videos(source.root):
            row = annotations.find(path)
            if row is not None:
                yield path, annotations.label(row)

    def missing_names() -> Iterator[str]:
        return (name for row, name in enumerate(annotations.names()) if not there[row])

    return Listing(source, annotations.classes, count, walk, junk, other, unlisted, missing, missing_names)


def _check_folder(source: Source, annotations: Annotations, path: str, row: int) -> None:
    """A class folder and the annotations must not contradict each other."""
    folder, label = annotations.class_of_folder(path), annotations.label(row)
    if None not in (folder, label) and folder != label:
        assert folder is not None and label is not None
        raise TableError(
            f"{source.root / path}: lies in the folder of class {annotations.classes[folder]!a}, but "
            f"{annotations.path} says {annotations.classes[label]!a}; the labels do not match"
        )


def _kind(path: str) -> str:
    name = path.rpartition("/")[2]
    if name.startswith("._") or name.lower() in _JUNK_NAMES:
        return "junk"
    if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
        return "video"
    return "ours" if name.startswith(_OWN_NAMES) else "other"


def _videos(root: Path) -> Iterator[str]:
    return (path for path in _walk_folder(root) if _kind(path) == "video")


def _walk_folder(root: Path) -> Iterator[str]:
    """Relative paths of all files below ``root``, sorted as whole paths are."""
    try:
        yield from _walk(root, "", frozenset())
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error


def _walk(root: Path, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Hidden folders are left out, and those that a link leads back up to."""
    status = os.stat(root / folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(root / folder) as entries:
        # With the slash in the key, a folder's files come where their whole paths sort.
        names = sorted(entry.name + "/" if _is_folder(entry) else entry.name for entry in entries)
    for name in names:
        path = f"{folder}/{name}" if folder else name
        if not name.endswith("/"):
            yield path
        elif not name.startswith("."):
            yield from _walk(root, path[:-1], above | {identity})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # The second way is for links: it asks the disk, and a link to itself is no error there.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))
