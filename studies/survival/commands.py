"""Runs ``magi`` commands in processes of their own, and makes the small data and runs that trials damage or kill."""

import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magi.cli.main import main
from magi.files import CHECKPOINTS_FOLDER
from magi.weights import step_folder

LOADED = (
    *(f"magi.cli.{verb}" for verb in ("data", "videos", "train", "sample", "distill", "evaluate", "play")),
    *("magi.training.distill", "magi.training.small_vae.trainer", "magi.evaluation.protocol.evaluation"),
    *("magi.training.loop", "magi.training.cost", "magi.latents.encode", "magi.latents.dataset", "magi.vae.pixel"),
    *("magi.data.index.index", "magi.data.sample_grid", "magi.sampling.pipeline", "matplotlib.figure", "PIL.Image"),
    *("matplotlib.backends.backend_agg", "torch._dynamo"),
)
"""What the commands import when they run: loaded once, before the processes are forked."""
ROOT = Path(__file__).parents[2]
STEPS, EVERY = 6, 2
MODEL = (
    "--data.frames 4 --data.height 32 --data.width 32 --data.workers 0 --vae.name pixel --vae.weights= --size tiny "
    "--model.width 32 --model.blocks 1 --model.heads 2 --model.head-width 32 --model.head-blocks 1 --model.frames 4 "
    "--sampling.iterations 2 --sampling.steps 2"
)
TRAINING = (
    f"--training.steps {STEPS} --training.batch 2 --training.warmup-steps 2 --training.cooldown-steps 0 "
    f"--training.log-every 1 --training.checkpoint-every {EVERY} --device cpu"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), what it said, and the seconds it took."""

    code: int
    said: str
    seconds: float


def magi(
    *words: str | Path,
    kill_after: float | None = None,
    longest: float = 900.0,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    limit: Callable[[], object] = lambda: None,
    enough: str | None = None,
    fresh: bool = False,
    watch: Callable[[int], object] = lambda process: None,
) -> Ended:
    """Run a command in a forked process, which has loaded torch already; SIGKILL comes after ``kill_after`` seconds.

    What takes longer than ``longest`` seconds is killed too, and what has said ``enough`` has ended well. The command
    has a process group of its own, so that no worker of it outlives it. ``limit`` is called in it before the command,
    and ``fresh`` starts Python anew for it; ``watch`` is called with its number, again and again while it runs.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child, begun = os.fork(), time.monotonic()
        if not child:
            os.environ.update(environment or {})
            torch.set_num_threads(threads)
            limit()
            _become([str(word) for word in words], said.fileno(), fresh)
        ended, status = 0, 0
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() - begun > (longest if kill_after is None else kill_after):
                _kill_group(child)
                ended, status = os.waitpid(child, 0)
            if not ended:
                watch(child)
                time.sleep(0.002)
            if not ended and enough is not None and enough in _read(said.fileno()):
                _kill_group(child)
                os.waitpid(child, 0)
                ended, status = child, 0
        seconds = time.monotonic() - begun
        _kill_group(child)
        return Ended(os.waitstatus_to_exitcode(status), _read(said.fileno()), seconds)


def _read(file: int) -> str:
    """All of a file, whose place stays that of who writes to it."""
    return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", errors="replace")


def magi_together(processes: int, *words: str | Path, kill_after: float | None = None, **how: Any) -> Ended:
    """Run a command as so many processes that train together; all are killed at once. Returns how the first ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    with ThreadPoolExecutor(processes) as executor:
        ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        running = [
            executor.submit(magi, *words, kill_after=kill_after, environment=environment, **how)
            for environment in ranks
        ]
        ended = [future.result() for future in running]
    return max(ended, key=lambda one: abs(one.code))


def _become(words: Sequence[str], output: int, fresh: bool) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if fresh:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "magi", *words])
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def good(*words: str | Path) -> Ended:
    """Run a command that must end well."""
    ended = magi(*words)
    assert ended.code == 0, ended.said
    return ended


def train(run: Path, latents: Path, *more: str, **how: Any) -> Ended:
    """``magi train`` of a model so small that a step takes milliseconds; ``how`` is as for ``magi``."""
    words: list[str | Path] = [
        "train",
        "digits",
        "--run",
        run,
        "--data.root",
        latents,
        *MODEL.split(),
        *TRAINING.split(),
        *more,
    ]
    return magi(*words, **how)


def newest(run: Path) -> Path:
    """The last checkpoint of a finished run."""
    return run / CHECKPOINTS_FOLDER / step_folder(STEPS)


class World:
    """Ten small videos, their index and latents, a finished run, another of another seed, and an export."""

    def __init__(self, folder: Path) -> None:
        for module in LOADED:
            importlib.import_module(module)
        self.folder = folder
        self.videos, self.latents = folder / "videos", folder / "latents"
        self.run, self.other, self.export = folder / "run", folder / "other", folder / "export"
        good("data", "digits", self.videos, "--clips", "10", "--size", "32", "--frames", "8")
        good("data", "index", self.videos)
        self.encode(self.latents)
        for run, seed in ((self.run, "0"), (self.other, "1")):
            ended = train(run, self.latents, "--training.seed", seed)
            assert ended.code == 0, ended.said
        good("export", self.run, self.export)

    def encode(self, out: Path, worker: str = "0/1", **how: Any) -> Ended:
        """``magi encode`` by the pixel adapter; ``how`` is as for ``magi``."""
        shape = "--vae pixel --height 32 --width 32 --device cpu"
        return magi("encode", self.videos, out, *shape.split(), "--worker", worker, **how)

    def link_videos(self, out: Path) -> Path:
        """Give a folder the videos, without their index."""
        for video in sorted(self.videos.glob("*/*.mp4")):
            copy = out / video.relative_to(self.videos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copy2(video, copy)
        return out

    @contextmanager
    def copy(self, of: Path) -> Iterator[Path]:
        """A copy of one of the folders, which is removed again."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield shutil.copytree(of, Path(folder) / of.name)
