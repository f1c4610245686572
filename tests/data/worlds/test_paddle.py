"""The paddle world's rules; test_worlds.py holds what every world keeps."""

from dataclasses import replace

import pytest

from magi.data.worlds.paddle import AIMS, BALL_SIZE, BRICKS, FALL, FLOOR, FRAME_SIZE, RUN, WIDTH, Paddle, PaddleState

WORLD = Paddle()
FLYING = PaddleState(12.0, 12.0, 18.0, AIMS[2], FALL, (True,) * len(BRICKS))
STAND, LEFT, RIGHT = range(3)


def played(state: PaddleState, *actions: int) -> PaddleState:
    for action in actions:
        state = WORLD.step(state, action)
    return state


@pytest.mark.parametrize(("action", "distance"), [(STAND, 0), (LEFT, -RUN), (RIGHT, RUN)])
def test_a_key_moves_the_paddle_in_the_very_next_frame_up_to_the_wall(action: int, distance: float) -> None:
    assert played(FLYING, action).x - FLYING.x == distance
    assert 0 <= played(FLYING, *[action] * 20).x <= FRAME_SIZE - WIDTH


@pytest.mark.parametrize(("ball_x", "vx"), [(9.0, -1.5), (13.0, -0.75), (14.5, 0.75), (17.0, 1.5), (24.0, 0.75)])
def test_the_part_of_the_paddle_that_the_ball_falls_on_aims_it(ball_x: float, vx: float) -> None:
    landed = played(replace(FLYING, ball_x=ball_x - AIMS[2], ball_y=FLOOR - BALL_SIZE - 1), STAND)
    assert (landed.ball_y, landed.ball_vy, landed.ball_vx) == (FLOOR - BALL_SIZE, -FALL, vx)


def test_walls_turn_the_ball() -> None:
    left = played(replace(FLYING, ball_x=0.5, ball_vx=-1.5), STAND)
    right = played(replace(FLYING, ball_x=27.5, ball_vx=1.5), STAND)
    top = played(replace(FLYING, ball_y=1.0, ball_vy=-FALL), STAND)
    assert (left.ball_x, left.ball_vx, right.ball_x, right.ball_vx) == (0.0, 1.5, 28.0, -1.5)
    assert (top.ball_y, top.ball_vy) == (0.0, FALL)


def test_a_brick_is_gone_by_touch_and_turns_the_ball() -> None:
    rising = replace(FLYING, ball_x=10.0, ball_y=13.0, ball_vy=-FALL)
    hit = played(rising, STAND)
    assert hit.ball_vy == FALL and hit.bricks == (True,) * 5 + (False, True, True)
    assert played(replace(rising, bricks=hit.bricks), STAND).ball_vy == -FALL, "what is gone turns nothing"
    beside = replace(FLYING, ball_x=4.5, ball_y=8.5, bricks=(False,) * 5 + (True, False, False))
    assert played(beside, STAND).ball_vx == -AIMS[2] and not any(played(beside, STAND).bricks)
