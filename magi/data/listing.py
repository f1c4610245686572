"""Which files of a folder are videos, by name alone: nothing is opened.

Files that operating systems leave behind (``._*``, ``.DS_Store``, ``Thumbs.db``) are counted apart from bad videos.
Links are followed, loops of links are not. This module knows no decoding.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from magi.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
INDEX_NAME, REPORT_NAME = "magi-index.jsonl", "magi-index-report.json"
_JUNK_NAMES = (".ds_store", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ListedFile:
    """A video by name; size and time of modification tell whether it has changed."""

    path: str
    """Relative to the root, with forward slashes."""
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, root: Path, path: str) -> Self:
        """The file as it is now; sizes of zero if it is gone or a broken link."""
        try:
            status = os.stat(root / path)
        except OSError:
            return cls(path, 0, 0)
        return cls(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Listing:
    """The videos of a folder, sorted by path, and what else lies there."""

    files: tuple[ListedFile, ...]
    classes: tuple[str, ...]
    """Names of the first-level folders that hold videos, sorted; a video's label is its folder's place here."""
    junk: int
    other: int


def list_videos(root: Path) -> Listing:
    """List a folder and all below it; ``ValueError`` if it is missing or no folder, ``DataError`` if it is locked."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise ValueError(f"{root}: {what}; expected a folder of videos")
    paths, junk, other = [], 0, 0
    try:
        found = list(_walk(root, "", frozenset()))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error
    for path in found:
        name = path.rpartition("/")[2]
        if name.startswith("._") or name.lower() in _JUNK_NAMES:
            junk += 1
        elif name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
            paths.append(path)
        elif path not in (INDEX_NAME, REPORT_NAME):
            other += 1
    paths.sort()
    classes = sorted({folder for folder, slash, _ in (path.partition("/") for path in paths) if slash})
    return Listing(tuple(ListedFile.of(root, path) for path in paths), tuple(classes), junk, other)


def _walk(root: Path, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Paths of all files below ``folder``; hidden folders are left out, and those that a link leads back up to."""
    status = os.stat(root / folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(root / folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if os.path.isdir(entry):  # unlike entry.is_dir(), False for a link to itself
                if not entry.name.startswith("."):
                    yield from _walk(root, path, above | {identity})
            else:
                yield path
