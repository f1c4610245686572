"""The built-in worlds by name, and their videos: pure functions of (world, seed, clip number)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.built_in import Progress, write_built_in
from magi.data.worlds.contract import World, WorldState
from magi.data.worlds.maze import Maze
from magi.data.worlds.paddle import Paddle
from magi.data.worlds.platform import Platform
from magi.errors import hint
from magi.seeding import numpy_generator, seed_of

FRAMES = 200
"""Of a video, where nothing else is asked."""
WORLDS: dict[str, World[Any]] = {world.name: world for world in (Platform(), Paddle(), Maze())}


def find_world(name: str) -> World[Any]:
    """The world of that name; ``ValueError`` with the nearest one if there is none."""
    if name not in WORLDS:
        raise ValueError(f"no world '{name}'; {hint(name, WORLDS)}")
    return WORLDS[name]


def play_clip(world: World[Any], seed: int, clip_number: int, frames: int | None) -> tuple[list[int], list[WorldState]]:
    """Actions (the first is never used) and states of a clip under the world's policy; more frames continue it.

    Without ``frames``: a round trip from the same start, whose last frame shows what the first one does.
    """
    rng = numpy_generator(seed_of("world", world.name, seed, clip_number))
    state = world.start(rng)
    actions = [0, *world.round_trip(state, rng)] if frames is None else world.policy(state, frames, rng)
    states = [state]
    for action in actions[1:]:
        state = world.step(state, action)
        states.append(state)
    return actions, states


def world_path(out: Path, world: World[Any], clip_number: int) -> Path:
    """Where ``write_world`` puts a clip."""
    return out / f"{world.name}_{clip_number:05d}.mp4"


def write_world(
    world: World[Any],
    out: Path,
    clips: int,
    seed: int = 0,
    frames: int | None = FRAMES,
    progress: Progress | None = None,
) -> int:
    """Write ``clips`` videos of ``world``, each beside a ``.json`` of its ``actions`` and exact ``states``.

    They are of ``frames`` frames, or without them of a round trip each (``play_clip``). ``actions[t]`` leads into
    frame t; that of frame 0 is null. Colour is stored at full resolution (yuv444p), because an oracle reads it. Returns
    the number of videos written; see ``write_built_in`` for what is kept and refused.
    """
    if clips < 1 or (frames is not None and frames < 2):
        raise ValueError(f"expected at least 1 clip of 2 frames, got {clips} of {frames}")
    settings = {
        "world": world.name, "size": world.size, "fps": world.fps, "seed": seed, "frames": frames,
        "action_names": list(world.actions),
    }  # fmt: skip
    if frames is None:
        length = len(play_clip(world, seed, 0, None)[0])
        if length == 1:
            raise ValueError(f"the world '{world.name}' has no round trips: nothing ever leaves its view")
        settings |= {"frames": length, "round_trips": True}

    def make(clip_number: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        actions, states = play_clip(world, seed, clip_number, frames)
        facts = {"actions": [None, *actions[1:]], "states": [state.to_json() for state in states]}
        return np.stack([world.draw(state) for state in states]), facts

    paths = [world_path(out, world, number) for number in range(clips)]
    return write_built_in(f"the world '{world.name}'", out, paths, settings, make, "yuv444p", progress)
