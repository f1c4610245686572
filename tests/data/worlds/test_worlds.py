"""What every built-in world keeps: an oracle that reads what was drawn, actions that are obeyed, videos with both."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magi.config import DataConfig
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.data.worlds.contract import World
from magi.data.worlds.worlds import WORLDS, find_world, play_clip, world_path, write_world
from magi.evaluation.worlds.ground_truth import PlayedClip, measure, read_videos, residual_limit

ALSO_READ = {"platform": ["enemy_x"], "paddle": ["ball_x", "ball_y", "ball_vx", "ball_vy"], "maze": ["heading"]}
EXACT = {"platform": 0.1, "paddle": 0.1, "maze": 0.5}
"""Units of length that a drawn frame is read to; 1 in the maze is a tenth of a cell."""


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World[Any]:
    return find_world(request.param)


def position(world: World[Any], state: Any) -> NDArray[np.float64]:
    return np.array([getattr(state, name) for name in world.positions])


def test_every_action_is_frequent(world: World[Any]) -> None:
    actions = np.concatenate([play_clip(world, 0, clip, 200)[0] for clip in range(30)])
    assert np.bincount(actions, minlength=len(world.actions)).min() / len(actions) > 0.06


def test_nothing_ends_and_no_rule_is_broken(world: World[Any]) -> None:
    """After 600 frames every key still moves the player somewhere, nothing is in a wall, and no thing came back."""
    for clip in range(4):
        _, states = play_clip(world, 5, clip, 600)
        assert not any(world.is_inside(state) for state in states)
        for before, state in pairwise(getattr(state, world.things) for state in states):
            assert not any(now and not then for then, now in zip(before, state, strict=True))
        ends = [position(world, world.step(state, action)) for state in states[-300:] for action in (1, 2)]
        assert np.linalg.norm(np.array(ends[::2]) - ends[1::2], axis=-1).max() > 3


def test_the_oracle_reads_what_was_drawn(world: World[Any]) -> None:
    """Up to where the player hides something: there 1 % may be off."""
    errors, other_errors = [], []
    for clip in range(6):
        _, states = play_clip(world, 3, clip, 60)
        read = None
        for number, state in enumerate(states):
            read = world.read(world.draw(state), read)
            errors.append(np.abs(position(world, read) - position(world, state)).max())
            assert getattr(read, world.things) == getattr(state, world.things)
            if number > 1:  # speeds need two frames
                other_errors.append([abs(getattr(read, name) - getattr(state, name)) for name in ALSO_READ[world.name]])
    exact = EXACT[world.name]
    assert max(errors) < exact and np.percentile(other_errors, 99, axis=0).max() < exact, np.max(other_errors, axis=0)


def test_what_the_oracle_reads_goes_on_as_the_world_does(world: World[Any]) -> None:
    """Hidden speeds are read well enough: the next state from the read one is where the next frame is."""
    near = total = 0
    for clip in range(6):
        actions, states = play_clip(world, 3, clip, 60)
        read = world.read(world.draw(states[0]))
        for action, state in zip(actions[1:], states[1:], strict=True):
            expected, read = world.step(read, action), world.read(world.draw(state), read)
            near += np.linalg.norm(position(world, expected) - position(world, state)) < 1.0
            total += 1
    assert near / total > 0.99, near / total


def test_the_actions_of_real_frames_are_obeyed_and_others_are_not(world: World[Any]) -> None:
    played = [play_clip(world, 5, number, 60) for number in range(6)]
    clips = [
        PlayedClip(world.name, np.stack([world.draw(state) for state in states]), (0, *actions[1:]), tuple(states))
        for actions, states in played
    ]
    readings = read_videos(world, np.stack([clip.video_THWC for clip in clips]))
    video_BTHWC = np.stack([clip.video_THWC for clip in clips])
    curves = measure(world, video_BTHWC, readings, clips, residual_limit(readings))
    assert curves["control"].mean() > 0.99 and 0.25 < curves["control_shuffled"].mean() < 0.7
    assert curves["things_right"].min() == 1 and curves["violation"].max() == 0


def test_a_clip_is_a_pure_function_and_more_frames_continue_it(world: World[Any]) -> None:
    assert play_clip(world, 1, 4, 50) == play_clip(world, 1, 4, 50) != play_clip(world, 2, 4, 50)
    short, long = play_clip(world, 1, 4, 50), play_clip(world, 1, 4, 80)
    assert long[0][:50] == short[0] and long[1][:50] == short[1]


def test_videos_hold_their_actions_and_states(world: World[Any], tmp_path: Path) -> None:
    assert write_world(world, tmp_path, clips=2, seed=3, frames=12) == 2
    assert write_world(world, tmp_path, clips=2, seed=3, frames=12) == 0
    actions, states = play_clip(world, 3, 1, 12)
    path = world_path(tmp_path, world, 1)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["actions"] == [None, *actions[1:]] and len(sidecar["states"]) == 12
    assert [world.state.from_json(state) for state in sidecar["states"]] == states
    record = open_index(DataConfig(root=str(tmp_path))).videos[1]
    stored_THWC = read_frames(path, range(12), record)
    for frame_HWC, state in zip(stored_THWC, states, strict=True):
        read = world.read(frame_HWC)
        assert np.abs(position(world, read) - position(world, state)).max() < 3 * EXACT[world.name]
        assert getattr(read, world.things) == getattr(state, world.things)


def test_round_trips_are_written_where_the_view_moves(tmp_path: Path) -> None:
    assert write_world(find_world("maze"), tmp_path, clips=2, frames=None) == 2
    sidecar = json.loads(world_path(tmp_path, find_world("maze"), 1).with_suffix(".json").read_text())
    assert sidecar["frames"] == len(sidecar["states"]) == 41 and sidecar["round_trips"]
    with pytest.raises(ValueError, match="'platform' has no round trips: nothing ever leaves its view"):
        write_world(find_world("platform"), tmp_path / "other", clips=2, frames=None)
    assert not (tmp_path / "other").exists()


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    world = find_world("platform")
    write_world(world, tmp_path, clips=2, frames=4)
    with pytest.raises(ValueError, match="has seed 0, asked 1"):
        write_world(world, tmp_path, clips=2, frames=4, seed=1)
    with pytest.raises(ValueError, match="holds clip 1, more than the 1 clips asked"):
        write_world(world, tmp_path, clips=1, frames=4)


def test_an_unknown_world_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'platform'"):
        find_world("platfrom")
