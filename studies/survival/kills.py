"""SIGKILL at random moments: what was finished stays, and the same command ends as if nothing had happened."""

import json
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from magi.files import CHECKPOINTS_FOLDER, METRICS_FILE, is_temporary, read_text, write_json
from magi.training.log import read_metrics
from studies.survival.commands import World, newest
from studies.survival.report import Trial
from studies.survival.sameness import differing
from studies.survival.verbs import Verb, verbs

TIMES = ("seconds", "clips_per_second", "frames_per_second")
INDEX_LOGS = ".magi-index"
"""What indexing has seen so far, in the order in which it was seen; the index and its report are made of it."""


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials, of every verb that writes in turn."""
    draw = random.Random(seed)
    commands = verbs(world)
    kinds = [Trial(name, partial(_killed, world, name, command, draw)) for name, command in commands.items()]
    return islice(cycle(kinds), count)


def _whole(world: World, name: str, command: Verb) -> tuple[Path, float]:
    """What the command writes when nobody kills it, made once, and the seconds that it takes."""
    folder = world.folder / "wholes"
    whole, told = folder / name / "out", folder / f"{name}.json"
    if not told.exists():
        ended = command(whole)
        assert ended.code == 0, ended.said
        write_json(told, ended.seconds)
    return whole, json.loads(read_text(told))


def _killed(world: World, name: str, command: Verb, draw: random.Random) -> str:
    """Killed twice, at moments drawn from the time that it takes, and then let run to its end."""
    whole, seconds = _whole(world, name, command)
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        out = Path(folder) / "out"
        for _ in range(2):
            command(out, kill_after=draw.uniform(0, seconds))
        ended = command(out)
        if ended.code:
            return f"exit code {ended.code}, {ended.said.strip().splitlines()[-1:]}"
        return _difference(whole, out)


def _difference(whole: Path, out: Path) -> str:
    """How what a killed command left differs from what a whole one did; nothing where it does not."""
    left = [path.name for path in out.rglob("*") if is_temporary(path.name) or path.name.startswith(".tmp-")]
    if left:
        return f"left behind: {', '.join(left)}"
    if (whole / METRICS_FILE).exists():
        told = [
            [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)] for run in (whole, out)
        ]
        if told[0] != told[1]:
            return "other losses"
        if (whole / CHECKPOINTS_FOLDER).exists():
            whole, out = newest(whole), newest(out)
    differ = differing(whole, out, left_out=INDEX_LOGS)
    return f"other files: {', '.join(differ)}" if differ else ""
