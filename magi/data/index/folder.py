"""The files below a folder in a fixed order, told apart by name alone: nothing is opened.

Links are followed, loops of links are not. Hidden files and folders are left out. Files that operating systems leave
behind (``._*``, ``.DS_Store``, ``Thumbs.db``) are junk. Memory is that of one folder's names.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from magi.errors import DataError
from magi.files import is_temporary

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_OTHER_VIDEOS = (
    ".3gp",
    ".asf",
    ".flv",
    ".gif",
    ".m2ts",
    ".mpeg",
    ".mpg",
    ".mts",
    ".mxf",
    ".ogv",
    ".ts",
    ".vob",
    ".wmv",
)
INDEX_NAME = "magi-index"
"""What the names of an index and of its report begin with."""
_JUNK_NAMES = (".ds_store", "thumbs.db", "desktop.ini")


def kind_of(path: str) -> str:
    """'video', 'junk', 'index' (files of this project), the suffix of a video of another type, or 'other'."""
    name = path.rpartition("/")[2]
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("._") or name.lower() in _JUNK_NAMES:
        return "junk"
    if name.startswith(INDEX_NAME) or is_temporary(name):
        return "index"
    if name.startswith("."):
        return "other"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return suffix if suffix in _OTHER_VIDEOS else "other"


def videos_below(root: Path) -> Iterator[str]:
    """Relative paths of the videos below ``root``, sorted as whole paths are."""
    return (path for path in walk_folder(root) if kind_of(path) == "video")


def walk_folder(root: Path) -> Iterator[str]:
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
