"""Python run beside this process: one after another or several at once, stopped together, continued later.

A signal to stop is passed on to every child, which saves itself; nothing new is begun, and ``StoppedCleanly`` is raised
when all have ended. Knows no models and no studies.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from magi.errors import StoppedCleanly

_POLL_SECONDS = 0.05
Words = Sequence[object]


def run(words: Words) -> None:
    """Run Python with ``words``; errors as ``run_all``."""
    run_all([words])


def run_all(commands: Sequence[Words], jobs: int = 1) -> None:
    """Run Python with each of ``commands``, at most ``jobs`` at a time, in their order; output goes where ours goes.

    Side by side they share the processor's cores: more threads than cores make each of them several times slower.
    ``ValueError`` with the exit codes of those that failed (they have said why), after all others have ended.
    ``StoppedCleanly`` if a signal came, or a child says that it was stopped.
    """
    waiting, failed = list(commands), list[str]()
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    running: dict[subprocess.Popen[bytes], Words] = {}
    with _signals() as received:
        while (waiting and not received) or running:
            while waiting and len(running) < jobs and not received:
                words = waiting.pop(0)
                # Their own session: a Ctrl-C of the terminal reaches them once, through us.
                program = [sys.executable, *map(str, words)]
                running[subprocess.Popen(program, start_new_session=True, env=threads | os.environ)] = words
            if received:
                for child in running:
                    child.send_signal(signal.SIGTERM)
                for child in running:
                    child.wait()
            for child in [child for child in running if child.poll() is not None]:
                words = running.pop(child)
                if child.returncode == StoppedCleanly.exit_code:
                    received.append(signal.SIGTERM)
                elif child.returncode:
                    failed.append(f"'{_named(words)}' ended with exit code {child.returncode}")
            time.sleep(_POLL_SECONDS)
    if received:
        raise StoppedCleanly("stopped; the same command continues")
    if failed:
        raise ValueError(f"{'; '.join(failed)}; see above")


def _named(words: Words) -> str:
    return " ".join(map(str, words[1:4]))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals to stop that came, instead of what they usually do; in the main thread only, as Python allows."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
