"""The files of this project: their names, atomic writes, and blocks of Markdown pages that commands write.

A file appears whole or not at all: it is written under a temporary name in the same folder, flushed to the disk, and
renamed. What a killed process left is recognised by its name, and removed by the next one that writes to the folder.
"""

import errno
import fcntl
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

# A run, and an export of one.
CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
TEXT_ENCODER_FILE = "text_encoder.json"
MODEL_FILE = "model.safetensors"
CARD_FILE = "README.md"
VAE_FOLDER = "vae"
CHECKPOINTS_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
# A folder of weights with what they are.
MANIFEST_FILE = "manifest.json"
NORMALIZATION_FILE = "normalization.json"

DEMO_FOLDER = Path(__file__).with_name("demo_model")
SHIPPED = {
    "demo": DEMO_FOLDER,
    "platform": Path(__file__).with_name("demo_worlds") / "platform",
    "text": Path(__file__).with_name("demo_text"),
}
"""The shipped models by their names wherever a model is asked for: digits, the platform world, digits from text."""
_LONGEST_LINE = 1_000_000
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context that yields a temporary path to write; at its end the file is on the disk under the name ``path``.

    Folders above ``path`` are made. If anything goes wrong the temporary file is removed and an older ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_once(path.parent)
    # Not the process number: it is the same in containers that share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as held:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file is being written under this name, or was left by a process that was killed."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left there; who is still writing holds a lock on his file."""
    for path in folder.glob(".*.part"):
        if is_temporary(path.name):
            with suppress(OSError), open(path, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


_remove_leftovers_once = lru_cache(remove_leftovers)
"""Of a process: a folder may be large, and every writer of a file asks."""


@contextmanager
def open_file(path: Path, mode: Literal["rb", "ab", "a+b"] = "rb", most_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Context of an opened regular file, or a link to one, of at most ``most_bytes``; ``OSError`` for anything else.

    A FIFO in the place of a file would be waited on for ever, and a device may have no end.
    """

    def regular(name: str, flags: int) -> int:
        opened = os.open(name, flags | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(opened).st_mode):
            return opened
        os.close(opened)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))

    with open(path, mode, opener=regular) as file:
        status = os.fstat(file.fileno())
        if most_bytes is not None and status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, above {most_bytes:,}", str(path))
        yield file


def read_text(path: Path, most_bytes: int = 1 << 28) -> str:
    """A UTF-8 text file of a sane size; ``OSError``, or ``UnicodeDecodeError`` where it is no text."""
    with open_file(path, most_bytes=most_bytes) as file:
        return file.read().decode("utf-8")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file of any size; ``OSError`` for a line of a million characters, which is no text."""
    with open_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        while line := text.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise OSError(errno.EFBIG, f"has a line of more than {_LONGEST_LINE:,} characters", str(path))
            yield line


@contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """Context of a name of the file in UTF-8, as safetensors asks for: its own, or on Linux that of the opened file."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with open_file(path) as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        yield path


def write_text(path: Path, text: str) -> None:
    r"""Write a UTF-8 text file atomically.

    A byte of a file's name that is no UTF-8 (a lone surrogate in Python) becomes ``\udcXX``, as JSON and YAML write it.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON atomically; ``ValueError`` for a NaN or an infinity, which JSON has no words for."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace_markdown_block(path: Path, name: str, text: str) -> str:
    """The page at ``path`` with ``text`` between the markers of ``name``; nothing is written.

    ``ValueError`` where there is no such page, or ``<!-- results:NAME:begin -->`` and ``end`` are not there once each
    and in order.
    """
    begin, end = (f"<!-- results:{name}:{word} -->" for word in ("begin", "end"))
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    old = path.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(
            f"{path}: needs the lines '{begin}' and, after it, '{end}', once each; add them where it belongs"
        )
    before, _, rest = old.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def write_markdown_block(path: Path, name: str, text: str) -> None:
    """Write ``replace_markdown_block`` over the page, atomically; its errors."""
    write_text(path, replace_markdown_block(path, name, text))
