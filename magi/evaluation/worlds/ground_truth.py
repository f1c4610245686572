"""Metrics of a dreamed world against its exact simulator, frame by frame, by what the world's oracle reads.

- ``control``: whether the step to this frame is what the pressed action does: from the state read in the frame before,
  the simulator under that action ends about as near to what is read here as under any other action. States that look
  the same count for the player. ``control_shuffled`` is the same under the actions of another clip: what is left
  without control.
- ``position_error``: distance of the player from the real simulator's under the same actions, in the world's unit.
- ``things_right``: whether exactly the things are there (coins, bricks) that the real simulator has left.
- ``violation``: whether the player is inside a wall, or a thing has come back.
- ``alive``: 1 up to the first frame whose residual, the distance between the frame and the drawing of what is read in
  it, passes 3 times the 99th percentile of the autoencoder's frames of real clips.
- ``psnr``: of the frame against the real one, dB, at most 60.

Beside them the reaction: how many frames after a change of action the player first obeys the new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.worlds.contract import World, WorldState
from magi.evaluation.protocol.ground_truth import Badness, Curves

BADNESS: dict[str, Badness] = {
    "control": lambda mean: -mean,
    "control_shuffled": lambda mean: mean,
    "position_error": lambda mean: mean,
    "things_right": lambda mean: -mean,
    "violation": lambda mean: mean,
    "alive": lambda mean: -mean,
    "psnr": lambda mean: -mean,
}
"""The metrics, and by what the worst mean of each is known."""

NEAR = 0.75
"""An action explains a step if it ends as near to it as the best one does, up to this..."""
FAR = 2.5
"""... and no farther than this, in the world's unit of length."""
REACTION_FRAMES = 4
_RESIDUAL_FACTOR = 3.0
_MOST_PSNR = 60.0


@dataclass(frozen=True)
class PlayedClip:
    """The first frames of a real clip of a world, the action that led to each (the first unused), and exact states."""

    world: str
    video_THWC: NDArray[np.uint8]
    actions: tuple[int, ...]
    states: tuple[WorldState, ...]


@dataclass(frozen=True)
class Readings:
    """What the oracle reads in every frame of B videos, and its residual_BT (RMS of 0..255)."""

    states: list[list[WorldState]]
    residual_BT: NDArray[np.float64]


def read_videos(world: World[Any], video_BTHWC: NDArray[np.uint8]) -> Readings:
    """Read every frame; what one frame cannot show comes from the frame before."""
    states: list[list[WorldState]] = []
    residual_BT = np.empty(video_BTHWC.shape[:2])
    for video_THWC, residual_T in zip(video_BTHWC, residual_BT, strict=True):
        read: list[WorldState] = []
        for t, frame_HWC in enumerate(video_THWC):
            read.append(world.read(frame_HWC, read[-1] if read else None))
            difference_HWC = frame_HWC.astype(np.float64) - world.draw(read[-1])
            residual_T[t] = np.sqrt((difference_HWC**2).mean())
        states.append(read)
    return Readings(states, residual_BT)


def residual_limit(readings: Readings) -> float:
    """What ``alive`` is judged by: 3 times the 99th percentile of the residuals of real clips."""
    return _RESIDUAL_FACTOR * float(np.percentile(readings.residual_BT, 99))


def measure(
    world: World[Any], video_BTHWC: NDArray[np.uint8], readings: Readings, clips: Sequence[PlayedClip], limit: float
) -> Curves:
    """The metrics of videos of which ``readings`` are, against the real ``clips`` that they continue."""
    real_BTHWC = np.stack([clip.video_THWC for clip in clips])
    actions_BT = np.array([clip.actions for clip in clips])
    error_BTA = np.stack([_step_errors(world, states) for states in readings.states])
    read_BT2 = np.array([[_position(world, state) for state in states] for states in readings.states])
    true_BT2 = np.array([[_position(world, state) for state in clip.states] for clip in clips])
    things = [[getattr(state, world.things) for state in states] for states in readings.states]
    true_things = [[getattr(state, world.things) for state in clip.states] for clip in clips]
    return {
        "control": _explained(error_BTA, actions_BT),
        "control_shuffled": _explained(error_BTA, np.roll(actions_BT, 1, axis=0)),
        "position_error": np.linalg.norm(read_BT2 - true_BT2, axis=-1),
        "things_right": np.array(
            [[a == b for a, b in zip(one, other, strict=True)] for one, other in zip(things, true_things, strict=True)],
            np.float64,
        ),
        "violation": np.array([_violations(world, states) for states in readings.states]),
        "alive": np.logical_and.accumulate(readings.residual_BT <= limit, axis=1).astype(np.float64),
        "psnr": psnr(video_BTHWC, real_BTHWC),
    }


def _position(world: World[Any], state: WorldState) -> tuple[float, ...]:
    return tuple(getattr(state, name) for name in world.positions)


def _step_errors(world: World[Any], states: Sequence[Any]) -> NDArray[np.float64]:
    """error_TA: how far each action, from what is read in a frame, ends from what is read in the next one."""
    error_TA = np.zeros((len(states), len(world.actions)))
    for t in range(1, len(states)):
        found = np.array(_position(world, states[t]))
        starts = world.alike(states[t - 1], states[t - 2]) if t > 1 else (states[t - 1],)
        for action in range(len(world.actions)):
            ends = np.array([_position(world, world.step(start, action)) for start in starts])
            error_TA[t, action] = np.linalg.norm(ends - found, axis=-1).min()
    return error_TA


def _explained(error_BTA: NDArray[np.float64], actions_BT: NDArray[np.int64]) -> NDArray[np.float64]:
    pressed_BT = np.take_along_axis(error_BTA, actions_BT[..., None], axis=-1)[..., 0]
    obeyed_BT = (pressed_BT <= error_BTA.min(-1) + NEAR) & (pressed_BT <= FAR)
    obeyed_BT[:, 0] = True  # nothing leads to the first frame
    return obeyed_BT.astype(np.float64)


def _violations(world: World[Any], states: Sequence[Any]) -> list[float]:
    broken = [float(world.is_inside(states[0]))]
    for before, state in pairwise(states):
        things = zip(getattr(before, world.things), getattr(state, world.things), strict=True)
        back = any(now and not then for then, now in things)
        broken.append(float(back or world.is_inside(state)))
    return broken


def psnr(video_BTHWC: NDArray[np.uint8], real_BTHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """PSNR_BT of each frame against the real one, dB, at most 60."""
    values = np.empty(video_BTHWC.shape[:2])
    for row, video_THWC, real_THWC in zip(values, video_BTHWC, real_BTHWC, strict=True):
        error_T = ((video_THWC.astype(np.float64) - real_THWC) ** 2).mean((1, 2, 3))
        row[:] = np.minimum(10 * np.log10(255**2 / np.maximum(error_T, 1e-9)), _MOST_PSNR)
    return values


def reactions(
    world: World[Any], control_BT: NDArray[np.float64], clips: Sequence[PlayedClip], first: int
) -> tuple[int, ...]:
    """How many changes of action were first obeyed 0, 1, ... frames later; the last number is of those that never were.

    Counted from frame ``first`` on, where the real simulator tells the new action from the one before; an action that
    is let go before it is obeyed was never.
    """
    counts = [0] * (REACTION_FRAMES + 1)
    for obeyed_T, clip in zip(control_BT, clips, strict=True):
        for t in range(first, len(clip.actions)):
            new, old = clip.actions[t], clip.actions[t - 1]
            if new == old or t < 2 or not _differ(world, clip.states[t - 1], new, old):
                continue
            held = next((k for k in range(t, len(clip.actions)) if clip.actions[k] != new), len(clip.actions)) - t
            late = next((k for k in range(min(held, REACTION_FRAMES)) if obeyed_T[t + k]), REACTION_FRAMES)
            counts[late] += 1
    return tuple(counts)


def _differ(world: World[Any], state: WorldState, new: int, old: int) -> bool:
    ends = [np.array(_position(world, world.step(state, action))) for action in (new, old)]
    return float(np.linalg.norm(ends[0] - ends[1])) > 2 * NEAR
