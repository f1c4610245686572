"""The maze world's rules; test_worlds.py holds what every world keeps."""

import numpy as np
import pytest

from magi.data.worlds.maze import CEILING, FLOOR, MAP, RADIUS, TURN, WALK, Maze, MazeState
from magi.data.worlds.worlds import play_clip

WORLD = Maze()
FREE = MazeState(55.0, 25.0, 0.0)
STAND, LEFT, RIGHT, FORWARD = range(4)


def played(state: MazeState, *actions: int) -> MazeState:
    for action in actions:
        state = WORLD.step(state, action)
    return state


@pytest.mark.parametrize(
    ("action", "heading", "distance"),
    [
        (STAND, 0, 0),
        (LEFT, 360 - TURN, 0),
        (RIGHT, TURN, 0),
        (FORWARD, 0, WALK),
        (4, 360 - TURN, WALK),
        (5, TURN, WALK),
    ],
)
def test_a_key_turns_and_walks_in_the_very_next_frame(action: int, heading: float, distance: float) -> None:
    after = played(FREE, action)
    assert after.heading == heading % 360 and np.hypot(after.x - FREE.x, after.y - FREE.y) == pytest.approx(distance)
    assert played(FREE, *[RIGHT] * 30) == FREE, "a whole turn"


def test_walls_stop_the_player_at_the_radius_and_let_him_slide() -> None:
    stopped = played(FREE, *[FORWARD] * 40)
    assert 80 - RADIUS - WALK < stopped.x <= 80 - RADIUS and stopped.y == FREE.y
    slid = played(stopped, RIGHT, FORWARD)
    assert slid.x == stopped.x and slid.y > stopped.y


def test_a_round_trip_leaves_the_view_and_ends_where_it_began() -> None:
    walks = 0
    for clip in range(40):
        actions, states = play_clip(WORLD, 2, clip, None)
        assert len(states) == len(actions) == 41
        first, last = states[0], states[-1]
        assert (last.x, last.y, last.heading) == pytest.approx((first.x, first.y, first.heading), abs=1e-6)
        assert np.abs(WORLD.draw(first).astype(int) - WORLD.draw(last)).max() <= 1
        turned = [abs((state.heading - first.heading + 180) % 360 - 180) for state in states]
        assert max(turned) == pytest.approx(180), "looks the other way in between"
        away = max(np.hypot(state.x - first.x, state.y - first.y) for state in states)
        assert away == pytest.approx(0) or away == pytest.approx(5 * WALK)
        walks += away > 1
    assert 5 < walks < 30


def test_a_frame_shows_the_wall_ahead_its_hue_and_its_height() -> None:
    near, far = WORLD.draw(MazeState(70.0, 25.0, 0.0)), WORLD.draw(MazeState(50.0, 25.0, 0.0))
    assert tuple(near[0, 32]) == CEILING and tuple(near[-1, 32]) == FLOOR
    assert (near[32, 32] == far[32, 32]).all(), "the same cell"
    heights = [(frame[:, 32] != frame[32, 32]).any(-1).argmin() for frame in (near, far)]
    assert [64 - 2 * height for height in heights] == pytest.approx([0.36 * 64 / 1, 0.36 * 64 / 3], abs=2)


def test_no_wall_ever_fills_the_view() -> None:
    """Some ceiling and floor, and more than one hue, are in every frame."""
    for clip in range(4):
        for state in play_clip(WORLD, 0, clip, 150)[1]:
            frame_HWC = WORLD.draw(state)
            assert (frame_HWC[0] == CEILING).all(-1).any() and (frame_HWC[-1] == FLOOR).all(-1).any()
            assert len(np.unique(frame_HWC[32], axis=0)) > 1


def test_the_pose_is_found_anywhere_from_one_frame() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        state = WORLD.start(rng)
        read = WORLD.read(WORLD.draw(state))
        errors.append(
            [np.hypot(read.x - state.x, read.y - state.y), abs((read.heading - state.heading + 180) % 360 - 180)]
        )
    assert np.percentile(errors, 90, axis=0).max() < 0.5, np.array(errors).round(2)


def test_the_map_is_closed() -> None:
    assert {len(row) for row in MAP} == {len(MAP)} and set(
        MAP[0] + MAP[-1] + "".join(row[0] + row[-1] for row in MAP)
    ) == {"#"}
