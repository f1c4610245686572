"""Memory of a long command: flat after it has warmed up."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from studies.survival.commands import Ended, World, magi, train
from studies.survival.report import Trial

TOLERANCE = 0.02


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` steps of training, and half as many frames of one video."""
    steps, frames = str(count), str(count // 2)
    sampling = f"--frames {frames} --device cpu --seed {seed} --sampling.window-keep 2".split()
    out = world.folder / "memory"

    def training(seen: list[int]) -> Ended:
        every = ("--training.steps", steps, "--training.checkpoint-every", "100", "--training.log-every", "50")
        return train(out, world.latents, *every, watch=partial(_look, seen=seen), longest=3600)

    def stream(seen: list[int]) -> Ended:
        return magi(
            "sample",
            world.run,
            world.folder / "stream",
            *sampling,
            watch=lambda process: _look(process, seen),
            longest=3600,
        )

    yield Trial("steps of training", lambda: _growth(training), count)
    yield Trial("frames of a stream", lambda: _growth(stream), count // 2)


def _look(process: int, seen: list[int]) -> None:
    """Resident pages now."""
    seen.append(int(Path(f"/proc/{process}/statm").read_text().split()[1]))


def _growth(command: Callable[[list[int]], Ended]) -> str:
    """How a command ended that had to end well, or how its memory grew."""
    seen: list[int] = []
    ended = command(seen)
    if ended.code:
        return f"exit code {ended.code}, {ended.said[-300:]}"
    return growth(seen)


def growth(pages: list[int]) -> str:
    """The growth from the middle fifth of what was seen to the last, in words; nothing where it is tolerated."""
    fifth = len(pages) // 5
    grown = median(pages[-fifth:]) / median(pages[2 * fifth : 3 * fifth]) - 1
    return f"grew by {grown:.1%}" if grown > TOLERANCE else ""
