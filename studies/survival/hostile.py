"""Videos that were changed to harm who reads them, through the real index: it ends well and touches nothing else.

Whole videos of every container and codec that can be written here are mutated, a folder at a time, and ``magi data
index`` decodes the folder while strace writes down each file and host that its processes ask for.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np

from magi.files import read_text
from studies.survival.commands import ROOT, World
from studies.survival.report import Trial

A_FOLDER = 20
SECRET = "secret.ts"
"""A file beside the folder, which playlists in it name."""
FRAMES, HEIGHT, WIDTH = 12, 48, 64
KINDS = {
    "h264.mp4": "libx264", "hevc.mp4": "libx265", "mpeg4.mp4": "mpeg4", "av1.mp4": "libsvtav1", "vp9.mp4": "libvpx-vp9",
    "h264.mov": "libx264", "mjpeg.mov": "mjpeg", "prores.mov": "prores_ks", "h264.mkv": "libx264", "vp8.mkv": "libvpx",
    "mpeg2.mkv": "mpeg2video", "ffv1.mkv": "ffv1", "vp9.webm": "libvpx-vp9", "vp8.webm": "libvpx",
    "mpeg4.avi": "mpeg4", "mjpeg.avi": "mjpeg", "h264.avi": "libx264", "huffyuv.avi": "huffyuv",
}  # fmt: skip
"""Container and codec -> encoder; those that this build of FFmpeg lacks are left out."""
_FORMATS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p"}
_OPTIONS = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"}}
_READ_BY_PYTHON = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/opt", "/dev/null", "/dev/urandom")
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
_CHANGES = re.compile(r"^(unlink|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|mknod|creat|utime)")
_CALL = re.compile(r'^\d+ +(\w+)\((?:[^"]*)"([^"]*)"(.*)')
_HOST = re.compile(r"sa_family=AF_INET6?\b|AF_PACKET")


def whole_videos(folder: Path) -> list[Path]:
    """A small video of each of ``KINDS``."""
    folder.mkdir()
    made = []
    for name, encoder in KINDS.items():
        if encoder in av.codecs_available:
            with suppress(av.error.FFmpegError, ValueError):  # a container that does not take the codec in this build
                made.append(write_video(folder / name, encoder))
    assert len(made) >= 12, f"too few kinds can be written here: {made}"
    return made


@contextmanager
def same_priority() -> Iterator[None]:
    """NOTE: run by root, SVT-AV1 gives the thread that opens it real-time priority and leaves it with that."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_video(path: Path, encoder: str, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A texture that moves, which is hard to code, with a keyframe every few frames."""
    texture = np.random.default_rng(0).integers(0, 255, (height + frames, width + frames, 3)).astype(np.uint8)
    with same_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(25), options=dict(_OPTIONS.get(encoder, {})))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.gop_size = height, width, max(6, frames // 4)
        stream.pix_fmt = _FORMATS.get(encoder, "yuv420p")
        for number in range(frames):
            frame_HWC = np.ascontiguousarray(texture[number : number + height, number : number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def flipped_bits(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    for _ in range(draw.choice((1, 8, 64, 512))):
        held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)


def flipped_in_headers(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """In the first and the last kilobyte, where containers keep their tables."""
    for _ in range(draw.choice((1, 4, 16))):
        place = draw.randrange(min(1024, len(held)))
        held[place if draw.random() < 0.5 else -1 - place] ^= 1 << draw.randrange(8)


def truncated(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    del held[draw.randrange(len(held)) :]


def swapped_chunks(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    size = draw.randrange(1, len(held) // 4)
    one, other = sorted(draw.sample(range(0, len(held) - size, size), 2))
    held[one : one + size], held[other : other + size] = held[other : other + size], held[one : one + size]


def zeroed(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    begin, size = draw.choice((0, 4, 8, draw.randrange(len(held)))), draw.choice((4, 64, 1024))
    held[begin : begin + size] = bytes(len(held[begin : begin + size]))


def largest_numbers(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Sizes, counts and offsets are numbers of four or eight bytes."""
    for _ in range(draw.choice((1, 4, 16))):
        begin, number = draw.randrange(len(held)), draw.choice((b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(3)))
        held[begin : begin + len(number)] = number


def random_bytes(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    begin, size = draw.randrange(len(held)), draw.choice((16, 256, 4096))
    held[begin : begin + size] = draw.randbytes(len(held[begin : begin + size]))


def repeated(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    begin = draw.randrange(len(held))
    held[begin:begin] = held[begin : begin + draw.choice((64, 1024))] * draw.choice((2, 100))


def spliced(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """The head of one with the tail of another, of another container or codec."""
    other = draw.choice(others)
    held[draw.randrange(len(held)) :] = other[draw.randrange(len(other)) :]


def sparse(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Is followed by a hole of gigabytes, see ``_mutate``; its header may promise them."""
    if draw.random() < 0.5:
        largest_numbers(held, draw, others)


def playlist(held: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Names a file of the machine and a host, in the words of the formats that FFmpeg follows."""
    where = draw.choice((f"../{SECRET}", "http://127.0.0.1:9/x.ts", f"concat:../{SECRET}|../{SECRET}"))
    held[:] = draw.choice(
        (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{where}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{where}'\n",
            f"[playlist]\nFile1={where}\n",
            f"<MPD><Period><AdaptationSet><Representation><BaseURL>{where}</BaseURL></Representation></AdaptationSet>"
            f"</Period></MPD>",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na={where}\n",
        )
    ).encode()


Mutation = Callable[[bytearray, random.Random, list[bytes]], None]
MUTATIONS: tuple[Mutation, ...] = (
    flipped_bits, flipped_in_headers, truncated, swapped_chunks, zeroed, largest_numbers, random_bytes, repeated,
    spliced, sparse, playlist,
)  # fmt: skip


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` files, ``A_FOLDER`` of them in a folder; every mutation in turn."""
    draw, whole = random.Random(seed), whole_videos(world.folder / "whole")
    for mutation in islice(cycle(MUTATIONS), -(-count // A_FOLDER)):
        files, count = min(A_FOLDER, count), count - A_FOLDER
        yield Trial(mutation.__name__, partial(_indexed, whole, mutation, files, draw), files)


def _indexed(whole: list[Path], mutation: Mutation, files: int, draw: random.Random) -> str:
    """Index a folder of mutated videos; returns what went wrong."""
    with tempfile.TemporaryDirectory() as parent:
        folder, log = Path(parent) / "videos", Path(parent) / "calls"
        folder.mkdir()
        (Path(parent) / SECRET).write_text("no video\n")
        others = [path.read_bytes() for path in whole]
        for number in range(files):
            path = draw.choice(whole)
            held = bytearray(path.read_bytes())
            mutation(held, draw, others)
            mutated = folder / f"{number:03d}-{path.name}"
            mutated.write_bytes(held)
            if mutation is sparse:
                os.truncate(mutated, draw.choice((1, 4, 8)) << 30)
        before = _listing(Path(parent).parent)
        code, said = index_traced(folder, log)
        wrong = [] if code in (0, 3) and "Traceback" not in said else [f"exit code {code}: {said.strip()[-200:]}"]
        report = folder / "magi-index-report.json"
        text = read_text(report) if report.is_file() else ""
        wrong += [
            f"{text.count(reason)} files: {reason}" for reason in ("decoder_crashed", "timeout") if reason in text
        ]
        if not log.exists():
            wrong += sorted(_listing(Path(parent).parent) - before)
        elif f"{files - 1:03d}-" not in log.read_text(errors="replace"):
            wrong.append("strace saw no video being opened")
        else:
            wrong += outside(log, folder)
        return "; ".join(wrong)


def _listing(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def index_traced(folder: Path, log: Path) -> tuple[int, str]:
    """Exit code and output of ``magi data index``, with every call to files and hosts in ``log`` if strace is there."""
    strace = shutil.which("strace")
    watched = [strace, "-f", "-qq", "-e", "trace=%file,%network", "-o", str(log)] if strace else []
    indexing = [sys.executable, "-m", "magi", "data", "index", str(folder), "--processes", "1"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*watched, *indexing, "--max-bad-fraction", "1"],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        cwd=folder,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def outside(log: Path, allowed: Path) -> list[str]:
    """What the calls in a log of strace touched beside a folder and what Python itself reads."""
    readable = (str(allowed), str(ROOT), sys.prefix, sys.base_prefix, *_READ_BY_PYTHON)
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        if _HOST.search(line):
            found.add(f"asked for a host: {line[:160]}")
        call = _CALL.match(line)
        if call is None or " = -1 " in line:
            continue
        name, path, rest = call.groups()
        absolute = os.path.normpath(os.path.join(allowed, path))
        within = absolute.startswith(str(allowed))
        if (_WRITES.search(rest) or _CHANGES.match(name)) and not within and absolute != "/dev/null":
            found.add(f"wrote: {name} {absolute}")
        elif name.startswith("open") and not absolute.startswith(readable):
            found.add(f"read: {absolute}")
    return sorted(found)
