"""``probe_file`` in a sandbox: a child process that may crash, hang or run out of memory without harm.

The child starts once and probes many files, answers one JSON line a file, and loads numpy and PyAV but no torch. When
it dies, or exceeds its time or its memory, the file is rejected with that reason and the next file gets a new child.
The child may write no file, opens few, and cannot grow beyond its address space. POSIX only.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Self

from magi.data.decoding.probe import (
    DecodeLimits,
    Outcome,
    RejectedFile,
    outcome_from_json,
    outcome_to_json,
    probe_file,
)
from magi.untrusted.child import apply_rlimits, call_in_child

_START_SECONDS = 60.0
_FILES_A_CHILD = 1000  # recycled then, against slow leaks in decoders


class DecodingSandbox:
    """Probes files one after another in a child process; use it as a context manager. Not for use by two threads."""

    def __init__(self, limits: DecodeLimits | None = None) -> None:
        self.limits = limits or DecodeLimits()
        self._child: subprocess.Popen[bytes] | None = None
        self._files = 0
        self.starts = 0
        """Children started so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def probe(self, path: Path) -> Outcome:
        """What is in a file, or why it cannot be used; ``RuntimeError`` only if no child can be started at all."""
        child, seconds = self._running_child(), self.limits.seconds
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({"path": os.path.abspath(path), "seconds": seconds}).encode() + b"\n")
            child.stdin.flush()
            answer = self._read_line(child, seconds)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self._kill()
            return self._timeout()
        if not answer:
            return self._exit_reason()
        outcome = _parse_answer(answer)
        if isinstance(outcome, RejectedFile) and outcome.reason == "memory_limit":
            self._kill()  # what it still holds would be missing for the next file
        return outcome

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._files == _FILES_A_CHILD or (self._child is not None and self._child.poll() is not None):
            self._kill()
        if self._child is None:
            self._child = _start_child(self.limits)
            self._files = 0
            self.starts += 1
            if not self._read_line(self._child, _START_SECONDS):
                code = self._kill()
                raise RuntimeError(f"the decoding process does not start (exit code {code}); is PyAV installed?")
        self._files += 1
        return self._child

    def _read_line(self, child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """A line of the child's; empty if it died, None if the time is over."""
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        line = bytearray()
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                return None
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                return b""
            line += part
        return bytes(line)

    def _timeout(self) -> RejectedFile:
        detail = (
            f"not decoded after {self.limits.seconds:g} seconds; 'magi data index --seconds-per-file' gives it more"
        )
        return RejectedFile("timeout", detail)

    def _exit_reason(self) -> RejectedFile:
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=5)  # it has closed its end already: dying, not running
        code = self._kill()
        if code == -signal.SIGALRM:
            return self._timeout()
        died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return RejectedFile("decoder_crashed", f"the decoder died with {died}")

    def _kill(self) -> int:
        """End the child and return its exit code, the negative signal number if a signal ended it."""
        child, self._child = self._child, None
        if child is None:
            return 0
        assert child.stdin is not None and child.stdout is not None
        child.kill()
        code = child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        return code


def probe_safely(path: Path, limits: DecodeLimits | None = None) -> Outcome:
    """Probe a single file in a sandbox of its own (about a third of a second to start)."""
    with DecodingSandbox(limits) as sandbox:
        return sandbox.probe(path)


def _start_child(limits: DecodeLimits) -> subprocess.Popen[bytes]:
    command, environment = call_in_child("magi.data.decoding.sandbox", asdict(limits))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # keeps Ctrl-C of the terminal away from it
        env=environment,
    )


def child_main() -> None:
    """The child's side: answer requests until the parent goes away."""
    limits = DecodeLimits(**json.loads(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints must not end up among the answers
    apply_rlimits(limits.memory_bytes, written_bytes=0)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    os.write(answers, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 5)  # also ends it when the parent has died and cannot
        outcome = probe_file(Path(request["path"]), limits)
        signal.alarm(0)
        _write_all(answers, json.dumps(outcome_to_json(outcome)).encode() + b"\n")


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _parse_answer(line: bytes) -> Outcome:
    """A child that decoded a hostile file is not trusted: its answer is checked like any input."""
    try:
        return outcome_from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        return RejectedFile("decoder_crashed", f"the decoder gave no sensible answer ({type(error).__name__})")
