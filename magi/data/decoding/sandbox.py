"""The decode jail: ``probe_file`` in a child process that may crash, hang or eat memory without harm.

The child starts once and probes many files, answers one JSON line a file, and loads numpy and PyAV but no torch. When
it dies, exceeds its time or its memory, the file is skipped with that reason and the next file gets a new child. The
child may write no file, opens few, and cannot grow beyond its address space. POSIX only.
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
import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from magi.data.decoding.frames import DecodeLimits, Skip, VideoProbe, probe_file

_PACKAGE_PARENT = Path(__file__).resolve().parents[3]
_START_SECONDS = 60.0
FROM_THE_START = "from the start"
"""What an index says of a video whose frames cannot be found by a seek."""
_FILES_A_CHILD = 1000  # recycled then, against slow leaks in decoders


class DecodeJail:
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

    def probe(self, path: Path) -> VideoProbe | Skip:
        """What is in a file, or why it cannot be used; ``RuntimeError`` only if no child can be started at all."""
        try:
            size = os.path.getsize(path)
        except OSError as error:
            return Skip("unreadable", " ".join(str(error).split()))
        child = self._running_child()
        seconds = self.limits.seconds + self.limits.seconds_per_megabyte * size / 1e6
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({"path": os.path.abspath(path), "seconds": seconds}).encode() + b"\n")
            child.stdin.flush()
            answer = self._read_line(child, seconds)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self._kill()
            return Skip("timeout", f"not decoded after {seconds:.0f} seconds")
        if not answer:
            return self._post_mortem(seconds)
        outcome = _parse_answer(answer)
        if isinstance(outcome, Skip) and outcome.reason == "memory_limit":
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

    def _post_mortem(self, seconds: float) -> Skip:
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=5)  # it has closed its end already: dying, not running
        code = self._kill()
        if code == -signal.SIGALRM:
            return Skip("timeout", f"not decoded after {seconds:.0f} seconds")
        died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Skip("decoder_crashed", f"the decoder died with {died}")

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


def probe_safely(path: Path, limits: DecodeLimits | None = None) -> VideoProbe | Skip:
    """Probe a single file in a jail of its own (about a third of a second to start)."""
    with DecodeJail(limits) as jail:
        return jail.probe(path)


def _start_child(limits: DecodeLimits) -> subprocess.Popen[bytes]:
    # -c and -P keep the caller's script and working directory out of the child's imports; its own session keeps
    # Ctrl-C of the terminal away from it; one BLAS thread keeps its address space small.
    paths = [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "from magi.data.decoding.sandbox import serve; serve()",
            json.dumps(asdict(limits)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )


def serve() -> None:
    """The child's side: answer requests until the parent goes away."""
    limits = DecodeLimits(**json.loads(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints must not end up among the answers
    _lock_up(limits)
    os.write(answers, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 5)  # also ends it when the parent has died and cannot
        answer = probe_file(Path(request["path"]), limits)
        signal.alarm(0)
        _write_all(answers, json.dumps(_to_json(answer)).encode() + b"\n")


def _lock_up(limits: DecodeLimits) -> None:
    """Bound memory, open files and written bytes; macOS refuses some of these limits, the others still hold."""
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _to_json(answer: VideoProbe | Skip) -> dict[str, Any]:
    if isinstance(answer, Skip):
        return {"skip": [answer.reason, answer.detail]}
    return {"video": probe_to_json(answer)}


def probe_to_json(probe: VideoProbe) -> dict[str, Any]:
    """A probe as plain JSON values: two numbers for a constant frame rate, packed steps for another one."""
    pts: dict[str, int | str] | str
    if isinstance(probe.pts, range):
        pts = {"start": probe.pts.start, "step": probe.pts.step}
    elif probe.pts is None:
        pts = FROM_THE_START
    else:
        steps = np.diff(np.array(probe.pts, "<i8"))
        pts = {"start": int(probe.pts[0]), "packed_steps": b64encode(zlib.compress(steps.tobytes())).decode("ascii")}
    size = {"frames": probe.frames, "height": probe.height, "width": probe.width}
    return {**size, "fps": probe.fps, "pts": pts}


def probe_from_json(values: dict[str, Any]) -> VideoProbe:
    """The reverse of ``probe_to_json``; ``ValueError``, ``TypeError`` or ``KeyError`` for anything else."""
    frames, height, width = (int(values[key]) for key in ("frames", "height", "width"))
    pts = _pts_from_json(values["pts"], frames)
    if min(frames, height, width) < 1 or (pts is not None and len(pts) != frames):
        raise ValueError(f"impossible video: {frames} frames of {height}x{width}")
    return VideoProbe(frames, height, width, float(values["fps"]), pts)


def _pts_from_json(table: Any, frames: int) -> range | tuple[int, ...] | None:
    if table is None or table == FROM_THE_START:  # None is that of an older index
        return None
    if not isinstance(table, dict):
        return tuple(int(time) for time in table)
    start = int(table["start"])
    if "step" in table:
        step = int(table["step"])
        return range(start, start + step * frames, step)
    try:
        # No more than what the frames need is unpacked, whatever a stranger has packed.
        packed = zlib.decompressobj().decompress(b64decode(table["packed_steps"], validate=True), 8 * frames)
    except zlib.error as error:
        raise ValueError(f"time stamps are damaged ({error})") from None
    return tuple(int(time) for time in np.cumsum(np.concatenate(([start], np.frombuffer(packed, "<i8")))))


def _parse_answer(line: bytes) -> VideoProbe | Skip:
    """A child that decoded a hostile file is not trusted: its answer is checked like any input."""
    try:
        answer = json.loads(line)
        if "skip" in answer:
            reason, detail = answer["skip"]
            return Skip(str(reason), str(detail))
        return probe_from_json(answer["video"])
    except (ValueError, TypeError, KeyError) as error:
        return Skip("decoder_crashed", f"the decoder gave no sensible answer ({type(error).__name__})")
