"""The oracle's metrics on dreams whose faults are known: perfect, late, deaf, teleported, with coins that come back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magi.data.worlds.platform import COINS, GROUND, HEIGHT, PlatformState
from magi.data.worlds.worlds import find_world, play_clip
from magi.evaluation.protocol.ground_truth import Curves
from magi.evaluation.worlds.ground_truth import PlayedClip, measure, reactions, read_videos, residual_limit

WORLD, FRAMES, CLIPS = find_world("platform"), 60, 4


def real_clip(number: int) -> PlayedClip:
    actions, states = play_clip(WORLD, 5, number, FRAMES)
    return PlayedClip("platform", drawn(states), (0, *actions[1:]), tuple(states))


def drawn(states: Any) -> NDArray[np.uint8]:
    return np.stack([WORLD.draw(state) for state in states])


@pytest.fixture(scope="module")
def clips() -> list[PlayedClip]:
    return [real_clip(number) for number in range(CLIPS)]


def measured(clips: list[PlayedClip], dream: Callable[[PlayedClip], NDArray[np.uint8]]) -> Curves:
    limit = residual_limit(read_videos(WORLD, np.stack([clip.video_THWC for clip in clips])))
    video_BTHWC = np.stack([dream(clip) for clip in clips])
    return measure(WORLD, video_BTHWC, read_videos(WORLD, video_BTHWC), clips, limit)


def test_a_perfect_dream_is_perfect(clips: list[PlayedClip]) -> None:
    curves = measured(clips, lambda clip: clip.video_THWC)
    assert curves["control"].mean() > 0.99 and 0.25 < curves["control_shuffled"].mean() < 0.6
    assert curves["position_error"].max() < 0.5
    assert curves["things_right"].min() == curves["alive"].min() == 1 and curves["violation"].max() == 0
    assert curves["psnr"].min() == 60
    on_time, *late = reactions(WORLD, curves["control"], clips, 4)
    assert on_time > 20 and sum(late) <= 0.02 * on_time


def played(clip: PlayedClip, actions: list[int]) -> NDArray[np.uint8]:
    states = [clip.states[0]]
    for action in actions[1:]:
        states.append(WORLD.step(states[-1], action))
    return drawn(states)


def test_a_late_dream_reacts_late(clips: list[PlayedClip]) -> None:
    """Every key works two frames later, so most changes are first obeyed then."""
    late = measured(clips, lambda clip: played(clip, [0, 0, 0, *clip.actions[1:-2]]))
    assert late["control"].mean() < 0.85
    counts = reactions(WORLD, late["control"], clips, 4)
    assert counts[2] == max(counts), counts


def test_a_deaf_dream_obeys_no_better_than_another_clips_actions(clips: list[PlayedClip]) -> None:
    """Each clip plays the actions of the clip before it, as ``control_shuffled`` supposes."""
    actions = {id(clip): clips[number - 1].actions for number, clip in enumerate(clips)}
    deaf = measured(clips, lambda clip: played(clip, list(actions[id(clip)])))
    assert deaf["control"].mean() < 0.6 and deaf["control_shuffled"].mean() > 0.99
    assert deaf["position_error"][:, 30:].mean() > 5


def test_a_frozen_dream_only_stands(clips: list[PlayedClip]) -> None:
    frozen = measured(clips, lambda clip: np.repeat(clip.video_THWC[3:4], FRAMES, axis=0))
    assert frozen["control"][:, 8:].mean() < 0.5 and frozen["psnr"][:, 8:].mean() < 30


def changed(clip: PlayedClip, frame: int, **fields: Any) -> NDArray[np.uint8]:
    states = [state if t < frame else replace(state, **fields) for t, state in enumerate(clip.states)]
    return drawn(states)


def test_a_jump_across_the_screen_is_no_action(clips: list[PlayedClip]) -> None:
    def teleported(clip: PlayedClip) -> NDArray[np.uint8]:
        x = 50.0 if clip.states[20].x < 30 else 5.0
        return changed(clip, 20, x=x, y=GROUND.y - HEIGHT, vy=0.0, on_ground=True)

    curves = measured(clips, teleported)
    assert curves["control"][:, 20].max() == 0
    assert curves["position_error"][:, 20].min() > 15 and curves["position_error"][:, :20].max() < 0.5


def test_coins_that_come_back_are_violations_once_and_wrong_from_then_on(clips: list[PlayedClip]) -> None:
    gone = [clip for clip in clips if not all(clip.states[20].coins)]
    assert len(gone) >= 2
    curves = measured(gone, lambda clip: changed(clip, 20, coins=(True,) * len(COINS)))
    assert curves["violation"][:, 20].min() == 1 and curves["violation"][:, :20].max() == 0
    assert curves["things_right"][:, :20].min() == 1 and curves["things_right"][:, 20].max() == 0


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [(10.0, 38.0, True), (10.0, 33.4, False), (-3.0, 20.0, True), (-1.0, 20.0, False), (30.0, 52.0, True)],
)
def test_a_player_within_a_block_or_off_the_screen_is_one(x: float, y: float, inside: bool) -> None:
    state = PlatformState(x, y, 0.0, False, (True,) * len(COINS), 40.0, 1.0)
    assert WORLD.is_inside(state) is inside


def test_a_dream_that_dissolves_is_dead_from_then_on(clips: list[PlayedClip]) -> None:
    noise = np.random.default_rng(0)

    def dissolved(clip: PlayedClip) -> NDArray[np.uint8]:
        video_THWC = clip.video_THWC.copy()
        video_THWC[30:40] = noise.integers(0, 255, video_THWC[30:40].shape)
        return video_THWC

    alive_BT = measured(clips, dissolved)["alive"]
    assert alive_BT[:, :30].min() == 1 and alive_BT[:, 30:].max() == 0
