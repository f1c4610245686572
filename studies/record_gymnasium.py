"""Videos of real motion that is not ours: episodes of a Gymnasium environment, rendered and written as mp4 files.

    python -m studies.record_gymnasium build/studies/pendulum/videos --episodes 300 --seed 0

The default is Pendulum-v1 without torque, from a random angle and speed: a rod that swings by gravity alone, so that
what comes next follows from what was seen. Gymnasium is an extra ('studies'); this module knows no models.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from magi.data.video_writer import write_mp4
from magi.progress import progress
from magi.seeding import numpy_generator
from studies.commands import run_command

FRAMES_PER_SECOND = 20


@dataclass(frozen=True)
class RecordOptions:
    """Record episodes of a Gymnasium environment; videos already there are kept."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    environment: str = "Pendulum-v1"
    """name of an environment that renders RGB arrays"""
    episodes: int = 300
    """videos to record"""
    frames: int = 120
    """frames of a video"""
    size: int = 64
    """height and width in pixels"""
    seed: int = 0
    """episode k starts from (seed, k)"""
    policy: str = "still"
    """still: the zero action; random: a random one every frame"""


def record(options: RecordOptions) -> int:
    """Write the episodes that are missing; returns how many. ``ValueError`` where the environment cannot be had."""
    if options.policy not in ("still", "random"):
        raise ValueError(f"--policy {options.policy}: expected still or random")
    environment = _make(options.environment, options.frames)
    options.out.mkdir(parents=True, exist_ok=True)
    written = 0
    with progress("recording", "episodes") as on_progress:
        for episode in range(options.episodes):
            path = options.out / f"{options.seed:02d}_{episode:05d}.mp4"
            if not path.is_file():
                write_mp4(path, _episode(environment, options, episode), FRAMES_PER_SECOND)
                written += 1
            on_progress(episode + 1, options.episodes)
    return written


def _make(name: str, frames: int) -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # rendering to arrays needs no display
    try:
        import gymnasium
    except ImportError:
        raise ValueError("recording needs Gymnasium: pip install -e '.[studies]'") from None
    try:
        return gymnasium.make(name, render_mode="rgb_array", max_episode_steps=frames + 1)
    except gymnasium.error.Error as error:
        raise ValueError(f"--environment {name}: {error}") from None


def _episode(environment: Any, options: RecordOptions, episode: int) -> np.ndarray:
    """video_THWC uint8 of one episode; an environment that ends early stands still on its last frame."""
    random = numpy_generator(options.seed, episode)
    environment.reset(seed=int(random.integers(2**31)))
    if options.environment.startswith("Pendulum"):
        # The environment itself starts slow; any angle at up to half of the largest speed shows all of its motion.
        environment.unwrapped.state = np.array([random.uniform(-np.pi, np.pi), random.uniform(-4, 4)])
    environment.action_space.seed(int(random.integers(2**31)))
    frames: list[np.ndarray] = []
    ended = False
    for _ in range(options.frames):
        if not ended or not frames:
            image = Image.fromarray(np.ascontiguousarray(environment.render()))
            frames.append(np.asarray(image.resize((options.size, options.size), Image.Resampling.BOX)))
        else:
            frames.append(frames[-1])
        action = environment.action_space.sample()
        if options.policy == "still":
            action = np.zeros_like(action)
        ended = ended or any(environment.step(action)[2:4])
    return np.stack(frames)


def main(options: RecordOptions) -> None:
    """Record what the options ask for."""
    print(f"{options.out}: {record(options)} videos written, {options.episodes} in all")


if __name__ == "__main__":
    run_command("record_gymnasium", RecordOptions, main)
