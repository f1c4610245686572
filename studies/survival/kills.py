"""SIGKILL at random moments: what was finished stays, and the same command ends as if nothing had happened."""

import random
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

from magi.files import is_temporary
from magi.training.log import read_metrics
from studies.survival.commands import Ended, World, magi, newest, train
from studies.survival.report import Trial
from studies.survival.sameness import differing

Command = Callable[[Path, float | None], Ended]
"""Writes into a folder; SIGKILL comes after some seconds."""
TIMES = ("seconds", "clips_per_second", "frames_per_second")
INDEX_LOGS = ".magi-index"
"""What indexing has seen so far, in the order in which it was seen; the index and its report are made of it."""


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials, of training, encoding, indexing and sampling in turn."""
    draw = random.Random(seed)
    commands: dict[str, Command] = {
        "train": lambda out, after: train(out, world.latents, kill_after=after),
        "encode": lambda out, after: world.encode(out, kill_after=after),
        "index": lambda out, after: magi("data", "index", _linked(world, out), kill_after=after),
        "sample": lambda out, after: magi(
            *("sample", world.run, out, "--frames", "4", "--count", "6", "--batch", "1", "--device", "cpu"),
            kill_after=after,
        ),
    }
    wholes = {name: Path(tempfile.mkdtemp(prefix=f"whole-{name}-", dir=world.folder)) / name for name in commands}
    seconds = {name: _whole(command, wholes[name]) for name, command in commands.items()}
    kinds = [_killed(name, command, wholes[name], seconds[name], draw) for name, command in commands.items()]
    return islice(cycle(kinds), count)


def _whole(command: Command, out: Path) -> float:
    ended = command(out, None)
    assert ended.code == 0, ended.said
    return ended.seconds


def _linked(world: World, out: Path) -> Path:
    """A folder with the videos and no index."""
    for video in sorted(world.videos.glob("*/*.mp4")):
        link = out / video.relative_to(world.videos)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.hardlink_to(video)
    return out


def _killed(name: str, command: Command, whole: Path, seconds: float, draw: random.Random) -> Trial:
    """Killed twice, at moments drawn from the time that it takes, and then let run to its end."""

    def run() -> str:
        with tempfile.TemporaryDirectory(dir=whole.parent.parent) as folder:
            out = Path(folder) / name
            for _ in range(2):
                command(out, draw.uniform(0, seconds))
            ended = command(out, None)
            if ended.code:
                return f"exit code {ended.code}, {ended.said.strip().splitlines()[-1:]}"
            return _difference(name, whole, out)

    return Trial(name, run)


def _difference(name: str, whole: Path, out: Path) -> str:
    """How what a killed command left differs from what a whole one did; nothing where it does not."""
    left = [path.name for path in out.rglob("*") if is_temporary(path.name) or path.name.startswith(".tmp-")]
    if left:
        return f"left behind: {', '.join(left)}"
    if name == "train":
        told = [
            [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)] for run in (whole, out)
        ]
        if told[0] != told[1]:
            return "other losses"
        whole, out = newest(whole), newest(out)
    differ = differing(whole, out, left_out=INDEX_LOGS)
    return f"other files: {', '.join(differ)}" if differ else ""
