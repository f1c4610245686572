"""Episodes of any Gymnasium environment as videos with their actions, beside each a ``.json`` as built-in worlds have.

Gymnasium is an extra ('gymnasium'), imported when a recording begins; an environment of another package is asked for
as Gymnasium does, ``package:Name-v0``. Knows no models.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.built_in import Progress, write_built_in
from magi.data.video_writer import even_image
from magi.errors import DataError
from magi.seeding import numpy_generator

TRIES = 50
"""Starts of an episode before one is long enough."""
MOST_STATE = 64
"""Numbers of an observation that is written as the state."""

Policy = Callable[[Any], Any]
"""From an observation to an action of the environment."""


@dataclass(frozen=True)
class Recording:
    """What is recorded: ``clips`` episodes of ``shortest`` to ``frames`` frames.

    ``size`` is the short side in pixels (0: as rendered), an action is held for 1 to ``hold`` frames, and ``options``
    are given to the environment's reset. ``ValueError`` for numbers that cannot be.
    """

    clips: int
    frames: int = 200
    shortest: int = 16
    size: int = 128
    hold: int = 12
    seed: int = 0
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.shortest <= self.frames or min(self.clips, self.hold) < 1 or min(self.size, self.seed) < 0:
            raise ValueError(
                f"expected 2 <= shortest <= frames, clips and hold of at least 1, size and seed of at least 0; got "
                f"shortest {self.shortest}, frames {self.frames}, clips {self.clips}, hold {self.hold}, size "
                f"{self.size}, seed {self.seed}"
            )


def record(
    name: str, out: Path, recording: Recording, policy: Policy | None = None, progress: Progress | None = None
) -> int:
    """Write episodes of the environment ``name``, the same for the same settings; returns how many were written.

    ``<name>_<number>.mp4``, beside each a ``.json``: ``actions``, where entry t led to frame t (a number, or a list),
    and ``states`` where the environment is observed by a small vector. ``policy`` gives a random action by default.
    What is there is kept, what is refused is as for ``write_built_in``; ``ValueError`` also where Gymnasium or the
    environment is missing, cannot be rendered or has no such actions, ``DataError`` where its episodes are too short.
    """
    environment = _made(name)
    space = environment.action_space
    settings = {
        "environment": name, "seed": recording.seed, "longest": recording.frames, "shortest": recording.shortest,
        "size": recording.size, "hold": recording.hold, "options": recording.options,
        "fps": environment.metadata.get("render_fps") or 30,
    }  # fmt: skip
    if type(space).__name__ == "Discrete":
        settings["action_names"] = [str(number) for number in range(int(space.start), int(space.start + space.n))]

    def make(number: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        rng = numpy_generator(recording.seed, number)
        for _ in range(TRIES):
            video_THWC, facts = _episode(environment, recording, policy or (lambda _: space.sample()), rng)
            if len(video_THWC) >= recording.shortest:
                return video_THWC, facts
        raise DataError(f"{name}: {TRIES} episodes ended before frame {recording.shortest}; ask fewer with --shortest")

    paths = [out / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}_{number:05d}.mp4" for number in range(recording.clips)]
    try:
        return write_built_in(f"recordings of {name}", out, paths, settings, make, "yuv444p", progress)
    finally:
        environment.close()


def _made(name: str) -> Any:
    """The environment, ready to be rendered; ``ValueError`` where that cannot be."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # rendering to arrays needs no display
    try:
        import gymnasium
    except ImportError:
        raise ValueError("recording needs Gymnasium; pip install -e '.[gymnasium]'") from None
    try:
        environment = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True)
        if "rgb_array" not in environment.metadata.get("render_modes", ()):
            raise ValueError(f"it has no render mode 'rgb_array', only {environment.metadata.get('render_modes')}")
        if type(environment.action_space).__name__ not in ("Discrete", "Box", "MultiBinary"):
            raise ValueError(f"its actions are {environment.action_space}; Discrete, Box and MultiBinary are recorded")
    except (gymnasium.error.Error, ImportError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"{name}: no environment to record: {' '.join(str(error).split())[:200]}") from None
    return environment


def _episode(
    environment: Any, recording: Recording, policy: Policy, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """video_THWC of one episode, and its facts."""
    seed = int(rng.integers(2**31))
    observation, _ = environment.reset(seed=seed, options=recording.options)
    environment.action_space.seed(seed)
    frames, observations, actions = [even_image(environment.render(), recording.size)], [observation], [None]
    action, left, ended = None, 0, False
    while len(frames) < recording.frames and not ended:
        if not left:
            action, left = policy(observation), int(rng.integers(1, recording.hold + 1))
        observation, _, terminated, truncated, _ = environment.step(action)
        left, ended = left - 1, terminated or truncated
        frames.append(even_image(environment.render(), recording.size))
        observations.append(observation)
        actions.append(_entry(environment.action_space, action))
    facts: dict[str, Any] = {"frames": len(frames), "actions": actions}
    if isinstance(observation, np.ndarray) and observation.ndim == 1 and observation.size <= MOST_STATE:
        facts["states"] = [values.tolist() for values in observations]
    return np.stack(frames), facts


def _entry(space: Any, action: Any) -> Any:
    """A number that counts from 0, or a list of numbers."""
    if type(space).__name__ == "Discrete":
        return int(action - space.start)
    return np.asarray(action, np.float64).reshape(-1).tolist()
