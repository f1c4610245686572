"""Videos of real motion that is not ours: episodes of Gymnasium's Pendulum-v1, rendered and written as mp4 files.

The pendulum swings without torque, from a random angle and speed: a rod moved by gravity alone, so that what comes next
follows from what was seen. Gymnasium is an extra ('studies'); this module knows no models.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from magi.data.video_writer import write_mp4
from magi.progress import progress
from magi.seeding import numpy_generator

FRAMES_PER_SECOND = 20
FRAMES = 120


def record(folder: Path, episodes: int, seed: int, size: int) -> None:
    """Write the episodes that are missing, of ``size`` pixels; episode k starts from (``seed``, k).

    ``ValueError`` where Gymnasium is missing.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # rendering to arrays needs no display
    try:
        import gymnasium
    except ImportError:
        raise ValueError("--source pendulum: recording it needs Gymnasium; pip install -e '.[studies]'") from None
    environment = gymnasium.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=FRAMES + 1)
    folder.mkdir(parents=True, exist_ok=True)
    with progress("recording", "episodes") as on_progress:
        for episode in range(episodes):
            path = folder / f"{seed:02d}_{episode:05d}.mp4"
            if not path.is_file():
                write_mp4(path, _episode(environment, numpy_generator(seed, episode), size), FRAMES_PER_SECOND)
            on_progress(episode + 1, episodes)


def _episode(environment: Any, random: np.random.Generator, size: int) -> np.ndarray:
    """video_THWC uint8 of one episode."""
    environment.reset(seed=int(random.integers(2**31)))
    # The environment itself starts slow; any angle at up to half of the largest speed shows all of its motion.
    environment.unwrapped.state = np.array([random.uniform(-np.pi, np.pi), random.uniform(-4, 4)])
    frames = []
    for _ in range(FRAMES):
        image = Image.fromarray(np.ascontiguousarray(environment.render()))
        frames.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
        environment.step(np.zeros_like(environment.action_space.sample()))
    return np.stack(frames)
