"""The platform world: its rules, and an oracle that reads the state it drew."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from magi.config import DataConfig
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.data.worlds.platform import (
    COINS,
    FRAME_SIZE,
    GROUND,
    HEIGHT,
    JUMP,
    RUN,
    SOLIDS,
    WIDTH,
    Platform,
    PlatformState,
)
from magi.data.worlds.worlds import find_world, play_clip, world_path, write_world

WORLD = Platform()
STANDING = PlatformState(24.0, GROUND.y - HEIGHT, 0.0, True, (True,) * len(COINS), 45.0, 1.0)
STAND, LEFT, RIGHT, LEAP = 0, 1, 2, 3


def played(state: PlatformState, *actions: int) -> PlatformState:
    for action in actions:
        state = WORLD.step(state, action)
    return state


@pytest.mark.parametrize(("action", "distance"), [(STAND, 0), (LEFT, -RUN), (RIGHT, RUN), (4, -RUN), (5, RUN)])
def test_a_key_moves_the_player_in_the_very_next_frame(action: int, distance: float) -> None:
    assert played(STANDING, action).x - STANDING.x == distance


def test_a_jump_leaves_the_ground_at_once_and_comes_back() -> None:
    assert played(STANDING, LEAP).y == STANDING.y - JUMP
    heights = [STANDING.y - played(STANDING, LEAP, *[STAND] * frames).y for frames in range(20)]
    assert max(heights) == 21.0 and heights[-1] == 0.0
    assert played(STANDING, LEAP, STAND, LEAP) == played(STANDING, LEAP, STAND, STAND), "no second jump in the air"


def test_edges_blocks_and_heads_stop_the_player() -> None:
    assert played(STANDING, *[LEFT] * 20).x == 0.0 and played(replace(STANDING, enemy_x=9.0), *[RIGHT] * 5).x == 34.0
    bumped = played(replace(STANDING, x=6.0), LEAP)
    assert bumped.y == SOLIDS[1].y + SOLIDS[1].height and bumped.vy == 0.0
    assert played(replace(STANDING, x=24.0, y=SOLIDS[3].y - HEIGHT), STAND).on_ground


def test_no_policy_ever_enters_a_block_or_brings_a_coin_back() -> None:
    for clip in range(10):
        _, states = play_clip(WORLD, 5, clip, 200)
        for before, state in pairwise(states):
            assert not any(state.player.overlaps(solid) for solid in SOLIDS)
            assert 0 <= state.x <= FRAME_SIZE - WIDTH and state.y >= 0
            assert not any(now and not then for now, then in zip(state.coins, before.coins, strict=True))


def test_coins_are_taken_by_touch_and_the_enemy_throws() -> None:
    assert played(replace(STANDING, x=8.0), LEFT, LEFT).coins == (False, *STANDING.coins[1:])
    assert played(replace(STANDING, x=8.0), LEFT).coins == STANDING.coins
    met = played(replace(STANDING, x=36.0, enemy_speed=-1.0), RIGHT, RIGHT)
    assert met.vy == -JUMP and not met.on_ground


def test_every_action_is_frequent() -> None:
    actions = np.concatenate([play_clip(WORLD, 0, clip, 200)[0] for clip in range(30)])
    assert np.bincount(actions, minlength=len(WORLD.actions)).min() / len(actions) > 0.06


def test_the_oracle_reads_what_was_drawn() -> None:
    errors, enemy_errors, frames = [], [], 0
    for clip in range(10):
        _, states = play_clip(WORLD, 3, clip, 120)
        read = None
        for state in states:
            read = WORLD.read(WORLD.draw(state), read)
            errors.append(np.hypot(read.x - state.x, read.y - state.y))
            enemy_errors.append(abs(read.enemy_x - state.enemy_x))
            assert read.coins == state.coins
            frames += 1
    assert max(errors) < 0.1 and np.percentile(enemy_errors, 99) < 0.1, (max(errors), max(enemy_errors))


def test_what_the_oracle_reads_goes_on_as_the_world_does() -> None:
    """Hidden speeds are read well enough: the next state from the read one is where the next frame is."""
    near = total = 0
    for clip in range(10):
        actions, states = play_clip(WORLD, 3, clip, 120)
        read = WORLD.read(WORLD.draw(states[0]))
        for action, state in zip(actions[1:], states[1:], strict=True):
            expected, read = WORLD.step(read, action), WORLD.read(WORLD.draw(state), read)
            near += np.hypot(expected.x - state.x, expected.y - state.y) < 1.0
            total += 1
    assert near / total > 0.99, near / total


def test_a_clip_is_a_pure_function_and_more_frames_continue_it() -> None:
    assert play_clip(WORLD, 1, 4, 50) == play_clip(WORLD, 1, 4, 50) != play_clip(WORLD, 2, 4, 50)
    short, long = play_clip(WORLD, 1, 4, 50), play_clip(WORLD, 1, 4, 80)
    assert long[0][:50] == short[0] and long[1][:50] == short[1]


def test_videos_hold_their_actions_and_states(tmp_path: Path) -> None:
    assert write_world(WORLD, tmp_path, clips=2, seed=3, frames=12) == 2
    assert write_world(WORLD, tmp_path, clips=2, seed=3, frames=12) == 0
    actions, states = play_clip(WORLD, 3, 1, 12)
    path = world_path(tmp_path, WORLD, 1)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["actions"] == [None, *actions[1:]] and len(sidecar["states"]) == 12
    assert [PlatformState.from_json(state) for state in sidecar["states"]] == states
    record = open_index(DataConfig(root=str(tmp_path))).videos[1]
    stored_THWC = read_frames(path, range(12), record)
    for frame_HWC, state in zip(stored_THWC, states, strict=True):
        read = WORLD.read(frame_HWC)
        assert np.hypot(read.x - state.x, read.y - state.y) < 0.3 and read.coins == state.coins


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_world(WORLD, tmp_path, clips=2, frames=4)
    with pytest.raises(ValueError, match="has seed 0, asked 1"):
        write_world(WORLD, tmp_path, clips=2, frames=4, seed=1)
    with pytest.raises(ValueError, match="holds clip 1, more than the 1 clips asked"):
        write_world(WORLD, tmp_path, clips=1, frames=4)


def test_an_unknown_world_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'platform'"):
        find_world("platfrom")
