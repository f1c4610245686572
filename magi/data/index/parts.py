"""The work of an index in parts, so that it can be stopped, continued, and shared by workers that never talk.

The listing is cut into blocks of about a hundred files where a hash of a path says so: a file that comes or goes moves
the ends of its own block only. What is found of a block's files is appended, in their order, to a part that is named
after the block's content. A part is whole when it has a line for each file, so a kill costs the files that were being
decoded; worker i of N takes every N-th block, and whoever finds all parts whole may put them together.

This module decodes through jails and knows no format but that of an index's lines.
"""

import contextlib
import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from magi.data.decoding.frames import DecodeLimits, Skip, VideoProbe
from magi.data.decoding.sandbox import DecodeJail
from magi.data.index.records import DAMAGED, Entry, entry_from_line, entry_to_line
from magi.data.index.sources import ListedFile
from magi.errors import DataError

_MEAN_BLOCK, _LARGEST_BLOCK = 100, 400
_AHEAD = 16  # files a jail that wait for a slow one before them

Known = Callable[[ListedFile], "VideoProbe | Skip | None"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """Files that follow one another in a listing."""

    digest: str
    files: tuple[ListedFile, ...]

    def part(self, folder: Path) -> Path:
        """Where its outcomes are written."""
        return folder / f"{self.digest}.jsonl"


@dataclass(frozen=True)
class PartName:
    """What is kept of a block: its part and how many lines make it whole."""

    path: Path
    files: int


def blocks(files: Iterable[ListedFile]) -> Iterator[Block]:
    """Cut a listing into blocks; the same files give the same blocks."""
    block: list[ListedFile] = []
    for file in files:
        block.append(file)
        if len(block) == _LARGEST_BLOCK or zlib.crc32(_bytes(file.path)) % _MEAN_BLOCK == 0:
            yield _block(block)
            block = []
    if block:
        yield _block(block)


def _bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def _block(files: list[ListedFile]) -> Block:
    digest = hashlib.sha256()
    for file in files:
        digest.update(_bytes(f"{file.path}\0{file.bytes}\0{file.mtime_ns}\0{file.label}\0"))
    return Block(digest.hexdigest()[:32], tuple(files))


def read_part(path: Path) -> list[Entry]:
    """The entries of a part so far, in order; lines that a kill has cut or doubled are left out."""
    entries: dict[str, Entry] = {}
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as lines:
        for line in lines:
            with contextlib.suppress(*DAMAGED):
                entry = entry_from_line(line)
                entries.setdefault(entry.file.path, entry)
    return list(entries.values())


class Parts:
    """The unfinished work of one index, in a folder of its own."""

    def __init__(self, root: Path, folder: Path, limits: DecodeLimits, jails: int) -> None:
        """``root``: what the files' paths are relative to; ``jails``: decoding processes at a time."""
        self.root, self.folder, self.limits, self.jails = root, folder, limits, jails

    def work(
        self, all_blocks: Iterable[Block], known: Known, worker: tuple[int, int], total: int, progress: Progress | None
    ) -> list[PartName]:
        """Complete the parts of a worker; returns the names of all parts in order. ``total``: files, for progress."""
        names: list[PartName] = []
        mine, of = worker
        total, done = (total if of == 1 else max(1, total // of)), 0
        self.folder.mkdir(parents=True, exist_ok=True)

        def to_do() -> Iterator[tuple[Block, ListedFile, VideoProbe | Skip | None]]:
            nonlocal done
            for number, block in enumerate(all_blocks):
                names.append(PartName(block.part(self.folder), len(block.files)))
                if number % of == mine:
                    before = {entry.file.path for entry in read_part(block.part(self.folder))}
                    done += len(before)
                    yield from ((block, file, known(file)) for file in block.files if file.path not in before)

        with contextlib.closing(_Writer(self.folder)) as writer, contextlib.closing(self._outcomes(to_do())) as found:
            for block, entry in found:
                writer.write(block, entry)
                done += 1
                if progress is not None:  # one of several workers estimates its total, and knows it at the end
                    progress(done, max(done + (of > 1), total))
        if progress is not None and of > 1 and done:
            progress(done, done)
        return names

    def missing(self, names: Iterable[PartName]) -> list[PartName]:
        """Parts that are not whole yet."""
        return [name for name in names if len(read_part(name.path)) < name.files]

    def entries(self, names: Iterable[PartName]) -> Iterator[Entry]:
        """The entries of whole parts; ``DataError`` if one has gone."""
        for name in names:
            entries = read_part(name.path)
            if len(entries) < name.files:
                raise DataError(f"{name.path}: is no longer whole; run 'magi data index' again")
            yield from entries

    def _outcomes(
        self, to_do: Iterable[tuple[Block, ListedFile, VideoProbe | Skip | None]]
    ) -> Generator[tuple[Block, Entry], None, None]:
        """An entry for each file, in order; those that are not known are decoded, some at a time."""
        with contextlib.ExitStack() as stack:
            jails: SimpleQueue[DecodeJail] = SimpleQueue()
            for _ in range(self.jails):
                jails.put(stack.enter_context(DecodeJail(self.limits)))
            executor = ThreadPoolExecutor(self.jails)
            stack.callback(executor.shutdown, cancel_futures=True)
            pending: deque[tuple[Block, ListedFile, VideoProbe | Skip | Future[VideoProbe | Skip]]] = deque()
            for block, file, known in to_do:
                pending.append((block, file, known or executor.submit(self._probe, file, jails)))
                while pending and (len(pending) > _AHEAD * self.jails or _is_there(pending[0][2])):
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())

    def _probe(self, file: ListedFile, jails: SimpleQueue[DecodeJail]) -> VideoProbe | Skip:
        jail = jails.get()
        try:
            outcome = jail.probe(self.root / file.path)
        finally:
            jails.put(jail)
        if not ListedFile.of(self.root, file.path).unchanged(file):
            return Skip("changed_on_disk", "was written to or deleted while it was read")
        return outcome


def _is_there(outcome: VideoProbe | Skip | Future[VideoProbe | Skip]) -> bool:
    return not isinstance(outcome, Future) or outcome.done()


def _finished(
    block: Block, file: ListedFile, outcome: VideoProbe | Skip | Future[VideoProbe | Skip]
) -> tuple[Block, Entry]:
    return block, Entry(file, outcome.result() if isinstance(outcome, Future) else outcome)


class _Writer:
    """Appends whole lines to the part of a block; one part is open at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._block: Block | None = None
        self._file: IO[bytes] | None = None

    def write(self, block: Block, entry: Entry) -> None:
        if self._file is None or block is not self._block:
            self.close()
            self._block, self._file = block, open(block.part(self._folder), "ab")  # noqa: SIM115
            if self._file.tell():
                self._file.write(b"\n")  # ends a line that a kill has cut; an empty one is no entry
        self._file.write(entry_to_line(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
