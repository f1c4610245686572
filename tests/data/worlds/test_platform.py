"""The platform world's rules; test_worlds.py holds what every world keeps."""

from dataclasses import replace
from itertools import pairwise

import pytest

from magi.data.worlds.platform import (
    COINS,
    FRAME_SIZE,
    GROUND,
    HEIGHT,
    JUMP,
    PLAYER,
    RUN,
    SOLIDS,
    WIDTH,
    Platform,
    PlatformState,
)
from magi.data.worlds.worlds import play_clip

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


def test_specks_of_the_players_colour_do_not_move_what_is_read() -> None:
    frame_HWC = WORLD.draw(STANDING)
    frame_HWC[2:4, 2:4] = frame_HWC[30, 60] = PLAYER
    assert WORLD.read(frame_HWC) == WORLD.read(WORLD.draw(STANDING))
