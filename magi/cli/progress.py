"""Progress of a command that counts something: a bar on a terminal, a plain line now and then elsewhere.

Knows no verb. Training has its own log.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 5.0

Report = Callable[[int, int], None]


@contextmanager
def progress(what: str, unit: str) -> Iterator[Report]:
    """Context that yields ``report(done, total)``; shown on stderr, so that results alone are on stdout."""
    if sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        yield _Lines(what, unit)


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Prints a line at the end, and every few seconds before."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.began = self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.told < LINE_SECONDS:
            return
        self.told, seconds = now, now - self.began
        left = f", {seconds * (total - done) / done:.0f} s left" if 0 < done < total else f", {seconds:.0f} s"
        print(f"{self.what}: {done}/{total} {self.unit}{left}", file=sys.stderr, flush=True)
