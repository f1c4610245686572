"""What decoding has found out, in append-only logs: a line a file, a log a worker.

A line says which file (path, size, time of modification) and what came of it, so it stays true for as long as the file
does not change: for a call that was stopped, for other splits of the same folder, for any other number of workers.
Workers append to logs of their own and never talk; whoever finds all outcomes in the logs can write the index. A kill
costs the files that were being decoded.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

from magi.data.decoding.probe import Outcome, RejectedFile, outcome_from_json, outcome_to_json
from magi.data.index.folder import INDEX_NAME
from magi.data.index.sources import ListedFile, Source
from magi.files import open_file

LOG_FOLDER = f".{INDEX_NAME}"
_LOG_BYTES = 1 << 48  # more than any log has
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)

# Another try (a less busy machine, other rights) may change these; 'magi data index' tries such files again.
PASSING = frozenset(("timeout", "memory_limit", "decoder_crashed", "unreadable", "changed_on_disk"))


def log_path(source: Source, share: tuple[int, int]) -> Path:
    """Where share i of N of a source is logged."""
    return source.root / LOG_FOLDER / f"{source.name}-{share[0]}-of-{share[1]}.jsonl"


def all_logs(root: Path) -> list[Path]:
    """All logs below a root."""
    return sorted((root / LOG_FOLDER).glob("*.jsonl"))


def is_passing(outcome: Outcome) -> bool:
    """Whether another try may have another outcome."""
    return isinstance(outcome, RejectedFile) and outcome.reason in PASSING


def to_line(file: ListedFile, outcome: Outcome) -> bytes:
    """A line of a log."""
    identity = {"path": file.path, "bytes": file.bytes, "mtime_ns": file.mtime_ns}
    return json.dumps(identity | outcome_to_json(outcome)).encode() + b"\n"


def from_line(line: bytes) -> tuple[ListedFile, Outcome]:
    """The reverse; raises one of ``_DAMAGED`` for anything else."""
    values = json.loads(line)
    return ListedFile(str(values["path"]), int(values["bytes"]), int(values["mtime_ns"])), outcome_from_json(values)


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Context of a log that whole lines are appended to, each to be flushed by the caller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_file(path, "ab") as file:
        if file.tell():
            file.write(b"\n")  # ends a line that a kill has cut; an empty line is no outcome
        yield file


class OutcomeLog:
    """The outcomes in some logs, found by the content of a file; about 120 bytes a file in memory. A context manager.

    A line that is damaged or cut is no error: its file is decoded again. Where several lines are about the same
    content, one that another try cannot change counts.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stack = ExitStack()
        self._logs: list[BinaryIO] = []
        self._places: dict[int, int] = {}  # log x _LOG_BYTES + first byte of the line
        self._passing: set[int] = set()
        for path in paths:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                log = self._stack.enter_context(open_file(path))
                self._logs.append(log)
                self._read(log)

    def _read(self, log: BinaryIO) -> None:
        begin = 0
        for line in log:
            with contextlib.suppress(*_DAMAGED):
                file, outcome = from_line(line)
                content = file.content
                if content not in self._places or content in self._passing:
                    self._places[content] = (len(self._logs) - 1) * _LOG_BYTES + begin
                    (self._passing.add if is_passing(outcome) else self._passing.discard)(content)
            begin += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def knows(self, content: int, retry: bool = False) -> bool:
        """Whether there is an outcome for ``ListedFile.content``; with ``retry``, one that no other try can change."""
        return content in self._places and not (retry and content in self._passing)

    def read(self, content: int, label: int | None) -> tuple[ListedFile, Outcome]:
        """The file with its label, and what came of it; ``KeyError`` where there is no outcome."""
        log, begin = divmod(self._places[content], _LOG_BYTES)
        self._logs[log].seek(begin)
        file, outcome = from_line(self._logs[log].readline())
        return replace(file, label=label), outcome
