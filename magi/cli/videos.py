"""``magi data digits``, ``world``, ``record`` and ``import-lerobot``: what writes videos to train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from magi.cli.data import SHOWN
from magi.cli.options import existing_folder, parse
from magi.progress import progress


@dataclass(frozen=True)
class DigitsOptions:
    """Write the built-in videos: ten classes of bouncing digits with exact physics, as mp4 files.

    OUT/<digit>/<digit>_<number>.mp4, 25 frames a second, each beside a .json of the exact positions. The same options
    give the same pixels; clips that are there already are kept.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 1000
    """number of videos, spread evenly over the classes"""
    size: int = 64
    """height and width in pixels; even"""
    seed: int = 0
    """another seed gives other videos of the same kind"""
    glyphs: int = 1
    """digits a video; they pass through each other, and the first one is the label"""
    frames: int = 200
    """frames a video"""


def data_digits(words: list[str]) -> None:
    """Write the built-in videos."""
    options = parse(DigitsOptions, "data digits", words)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: expected 0 or more")
    from magi.data.moving_digits import write_digits

    with progress("writing videos", "videos") as on_progress:
        written = write_digits(
            options.out, options.clips, options.size, options.seed, options.glyphs, options.frames, on_progress
        )
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class WorldOptions:
    """Write videos of a built-in world: an exact simulator played by a policy that tries every action.

    OUT/<world>_<number>.mp4, each beside a .json of its actions and of the exact state of every frame. The same options
    give the same pixels; clips that are there already are kept.
    """

    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """platform: a player who runs and jumps among platforms, coins and an enemy; paddle: a paddle, a ball, bricks; or
    maze: first person, walls of one hue a cell"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 1000
    """number of videos"""
    seed: int = 0
    """another seed gives other videos of the same world"""
    frames: int = 200
    """frames a video"""


def data_world(words: list[str]) -> None:
    """Write videos of a built-in world."""
    options = parse(WorldOptions, "data world", words)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: expected 0 or more")
    from magi.data.worlds.worlds import find_world, write_world

    world = find_world(options.world)
    with progress("writing videos", "videos") as on_progress:
        written = write_world(world, options.out, options.clips, options.seed, options.frames, on_progress)
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class RecordOptions:
    """Record episodes of a Gymnasium environment that renders 'rgb_array', with the action that led to every frame.

    OUT/<environment>_<number>.mp4, each beside a .json of its actions, and of its states where they are observed.
    Random actions are held for random lengths. The same options give the same episodes; what is there is kept.
    """

    environment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV_ID")]
    """as gymnasium.make takes it: CartPole-v1, or PACKAGE:NAME where another package has it"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 200
    """number of episodes"""
    frames: int = 200
    """most frames of an episode"""
    shortest: int = 16
    """an episode that ends earlier is played again from another start"""
    size: int = 128
    """pixels of the short side; 0 is as rendered"""
    hold: int = 12
    """most frames that an action is held; 1 draws one a frame"""
    seed: int = 0
    """another seed gives other episodes"""


def data_record(words: list[str]) -> None:
    """Record episodes of an environment."""
    options = parse(RecordOptions, "data record", words)
    from magi.data.record import Recording, record

    recording = Recording(
        options.clips, options.frames, options.shortest, options.size, options.hold, seed=options.seed
    )
    with progress("recording", "episodes") as on_progress:
        written = record(options.environment, options.out, recording, progress=on_progress)
    _say_written(options.out, written, options.clips)


@dataclass(frozen=True)
class LerobotOptions:
    """Write the episodes of a LeRobot dataset (v2.1 or v3, stored as video) with the action that led to every frame.

    OUT/episode_<number>.mp4, each beside a .json of its actions. LeRobot's action t leads to frame t + 1. What is there
    is kept.
    """

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """folder that holds meta, data and videos"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    camera: str = ""
    """feature that is shown, such as observation.images.top; needed where there are several"""
    column: str = "action"
    """column of the actions: a vector, or a whole number that says which one"""
    size: int = 128
    """pixels of the short side; 0 is as stored"""
    max_bad_fraction: float = 0.01
    """share of unusable episodes that is tolerated; above it the exit code is 3"""


def data_import_lerobot(words: list[str]) -> None:
    """Write the episodes of a LeRobot dataset."""
    options = parse(LerobotOptions, "data import-lerobot", words)
    if options.size < 0:
        raise ValueError(f"--size {options.size}: expected 0 (as stored) or more")
    existing_folder(options.dataset)
    from magi.data.lerobot import Dataset, import_lerobot

    dataset = Dataset.opened(options.dataset, options.camera, options.column)
    with progress("importing", "episodes") as on_progress:
        written, reasons = import_lerobot(dataset, options.out, options.size, options.max_bad_fraction, on_progress)
    print(f"{options.out}: {written} videos written")
    for reason in reasons[:SHOWN]:
        print(f"skipped {reason}")


def _say_written(out: Path, written: int, clips: int) -> None:
    found = clips - written
    print(f"{out}: {written} videos written" + (f", {found} were there" if found else ""))
