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

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, rate="")

        def report(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.3g}/s" if speed else "")

        yield report


class _Lines:
    """Prints a line at the end, and every few seconds before.

    What was there already at the first call (work that is continued) counts as done, but not for the rate.
    """

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.began = self.told = time.monotonic()
        self.before: int | None = None
        self.shown: tuple[int, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.before = max(0, done - 1) if self.before is None else self.before
        if (done < total and now - self.told < LINE_SECONDS) or self.shown == (done, total):
            return
        self.told, self.shown, seconds = now, (done, total), now - self.began
        rate = (done - self.before) / seconds if seconds else 0.0
        left = f"{_time((total - done) / rate)} left" if rate and done < total else _time(seconds)
        print(f"{self.what}: {done}/{total} {self.unit}, {rate:.3g} a second, {left}", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    """Seconds up to two minutes, then hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
