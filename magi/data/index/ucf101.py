"""UCF-101's split files, as its authors give them.

A folder with ``classInd.txt`` (``1 ApplyEyeMakeup``), ``trainlist01.txt`` (``Class/v_x.avi 1``) and ``testlist01.txt``
(without numbers). Labels count from 0 in the order of ``classInd.txt``.
"""

from collections.abc import Iterator
from pathlib import Path

from magi.data.index.table import Annotations, Row, TableError
from magi.files import text_lines

CLASS_LIST = "classInd.txt"


def open_ucf101(folder: Path, split: str) -> Annotations:
    """The rows of a split (trainlist01, or train01); ``ValueError`` if it is missing, ``TableError`` for a bad row."""
    lists = sorted(path.stem for path in folder.glob("*list*.txt"))
    if not split:
        raise ValueError(f"data.split is empty: {folder} has {', '.join(lists) or 'no split files'}; choose one")
    names = (split, split.replace("train", "trainlist").replace("test", "testlist"))
    path = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder / names[0]}.txt: no such split file; {folder} has {', '.join(lists) or 'no split files'}"
        )
    classes = _read_class_list(folder / CLASS_LIST)
    numbers = {name: number for number, name in enumerate(classes)}
    found: Path = path

    def rows() -> Iterator[Row]:
        for line, words in _read_words(found):
            name = words[0]
            folder_name = name.rpartition("/")[0]
            if folder_name not in numbers:
                raise TableError(f"{found}: line {line}: {folder_name!a} is no class of {CLASS_LIST}")
            if len(words) > 1 and words[1] != str(numbers[folder_name] + 1):
                raise TableError(
                    f"{found}: line {line}: the label of {name!a} is {words[1]}, but {CLASS_LIST} numbers "
                    f"{folder_name} {numbers[folder_name] + 1}; the files do not belong together"
                )
            yield Row((name,), numbers[folder_name])

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
        for number, line in enumerate(text_lines(path), start=1):
            if words := line.split():
                yield number, words
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as text ({error})") from None
