"""A run's folder: one process group at a time, what it holds beside checkpoints, and the wish to stop.

It knows files and signals; no model or loop.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from magi.files import open_file, remove_leftovers

LOCK_FILE = "lock"
SHEETS_FOLDER = "samples"
LOSS_FILE = "loss.png"
STOP_FILE = "stop"
"""Made by anyone, it asks the run to stop, as a signal does: for schedulers whose signals reach no process of it."""
STOPPED_FILE = "stopped"
"""There while the last thing a run did was to stop cleanly: a launcher may turn exit code 75 into its own."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock; ``ValueError`` names the process that has it. A process that dies frees it."""
    with ExitStack() as held:
        try:
            run.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open_file(run / LOCK_FILE, "a+b"))
        except OSError as error:
            reason = f"{Path(error.filename or run).name}: {error.strerror}"
            raise ValueError(f"{run}: cannot be used as a run folder ({reason}); give another --run") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().decode(errors="replace").strip() or "unknown"
            raise ValueError(f"{run}: in use by process {owner}; wait for it, stop it, or give another --run") from None
        remove_leftovers(run / SHEETS_FOLDER)  # no later step draws a sheet that a kill has cut short
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield


class StopRequest:
    """Whether SIGINT, SIGTERM or a file ``stop`` in the run's folder asked it to stop; looked at between steps.

    A context: inside it the first signal asks to stop, a second Ctrl-C interrupts at once. Outside the main thread,
    where Python allows no handlers, only the file asks.
    """

    def __init__(self, run: Path) -> None:
        self._signalled = False
        self._file = run / STOP_FILE
        self._before: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        """Whether the run should stop."""
        return self._signalled or self._file.exists()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
