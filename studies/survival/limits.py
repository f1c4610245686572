"""Machines that lack something: every verb ends well or in one line, loses nothing, and works once there is enough.

Disks are small or read-only file systems in memory where mounts are allowed (Linux, as root); elsewhere a limit on the
size of files stands for a full disk, and what cannot be tried is left out of the count.
"""

import ctypes
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from magi.files import is_temporary
from studies.survival.commands import Ended, World, magi
from studies.survival.damage import last_line
from studies.survival.report import Trial
from studies.survival.verbs import Verb, verbs

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of unshare(2)
_PAGES = 24 << 10
"""Bytes of the small disk: enough for a config, not for weights."""


@dataclass(frozen=True)
class Lack:
    """What a machine lacks: done in the command's process, told to it, and done to the folder that it writes to."""

    limit: Callable[[], object] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Callable[[Path], Any] | None = None
    fresh: bool = False
    """Python reads its environment when it starts."""


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def no_home() -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MAGI_CACHE"):
        os.environ.pop(name, None)


def no_temporary_folder() -> None:
    tempfile.tempdir = None
    os.environ["TMPDIR"] = "/proc/none"


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_PAGES, _PAGES))


def no_shared_memory() -> None:
    """A /dev/shm of one page, for this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o size=4k none /dev/shm"):
        subprocess.run(command.split(), check=True)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at ``folder``, with what lies there; afterwards it is writable, and then gone."""
    held = folder.with_name(f"{folder.name}.held")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", folder, held], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True)
    try:
        subprocess.run(["cp", "-a", f"{held}/.", folder], check=True)
        used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        size = max(_PAGES, used + (8 << 10)) if "size" not in options else 0
        subprocess.run(["mount", "-o", f"remount,{options}" + (f",size={size}" if size else ""), folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    with disk(folder, "rw"):
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with disk(folder, "ro,size=64m"):
        yield


def can_mount() -> bool:
    """Whether this machine lets its user mount."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def lacks() -> dict[str, Lack]:
    """What is tried on this machine: name, with how it is done where that differs -> what is done."""
    always = {
        "64 descriptors": Lack(few_descriptors),
        "C locale": Lack(environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, fresh=True),
        "no HOME": Lack(no_home),
        "unwritable TMPDIR": Lack(no_temporary_folder),
    }
    if not can_mount():
        return always | {"disk full (limit on files)": Lack(small_files)}
    return always | {
        "disk full (tmpfs)": Lack(folder=full),
        "read-only (tmpfs)": Lack(folder=read_only),
        "no shared memory": Lack(no_shared_memory),
    }


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials: every verb with everything that may be lacking, in turn; ``seed`` draws nothing."""
    commands: dict[str, Verb] = {
        "train" if name == "train, 2 workers" else name: verb
        for name, verb in verbs(world).items()
        if name not in ("train", "train, 2 processes")
    }
    commands["play"] = lambda out, **how: magi(
        *("play", world.export, "--port", "0", "--no-open-page", "--device", "cpu"), enough="http://", **how
    )
    kinds = [
        Trial(lack, lambda verb=verb, name=name, how=how: _lacking(world, name, verb, how))  # type: ignore[misc]
        for lack, how in lacks().items()
        for name, verb in commands.items()
        if not (name == "play" and how.folder)  # it writes nothing
    ]
    return islice(cycle(kinds), count)


def _lacking(world: World, name: str, verb: Verb, lack: Lack) -> str:
    """Run a verb that lacks something, then with all it needs; returns what went wrong."""
    before = _contents(world)
    with tempfile.TemporaryDirectory(dir=world.folder) as parent:
        out = Path(parent) / "nämlich" / "out"
        out.parent.mkdir()
        if name == "index":
            world.link_videos(out)
        ended = _run(verb, out, lack)
        wrong = _not_one_line(ended)
        if not wrong and (left := [path.name for path in out.rglob("*") if is_temporary(path.name)]):
            wrong = f"left behind: {', '.join(left)}"
        again = verb(out) if not wrong and name != "play" else None
        if again is not None and again.code:
            wrong = f"with all it needs again: exit code {again.code}, {last_line(again.said)}"
    if not wrong and _contents(world) != before:
        wrong = "changed what it read"
    return f"{name}: {wrong}" if wrong else ""


def _run(verb: Verb, out: Path, lack: Lack) -> Ended:
    with lack.folder(out) if lack.folder else nullcontext():
        return verb(out, limit=lack.limit, environment=lack.environment, fresh=lack.fresh)


def _not_one_line(ended: Ended) -> str:
    """What is wrong with how a command ended: well, or with one line of error and an exit code of its own."""
    errors = [line for line in ended.said.splitlines() if line.startswith("magi: error:")]
    if ended.code == 0 and not errors and "Traceback" not in ended.said:
        return ""
    if ended.code in (2, 3, 5) and len(errors) == 1 and "Traceback" not in ended.said:
        return ""
    return f"exit code {ended.code}, {len(errors)} lines of error: {last_line(ended.said)}"


def _contents(world: World) -> dict[Path, tuple[int, int]]:
    """Size and time of every file that the verbs read."""
    folders = (world.videos, world.latents, world.run, world.export)
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
