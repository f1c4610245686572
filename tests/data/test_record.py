"""Recordings of Gymnasium environments: what was pressed led to what is seen; what cannot be recorded is one line."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from magi.cli.main import main
from magi.config import DataConfig
from magi.data.actions import count_actions, track_path, video_track
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.data.record import Recording, record
from magi.errors import DataError


class Counter(gymnasium.Env[Any, Any]):
    """Shows the action that led to a frame as grey; ends after ``length``."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 7}
    observation_space = gymnasium.spaces.Discrete(3)
    action_space: Any = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, render_mode: str | None = None, length: int = 40) -> None:
        self.length = length

    def reset(self, **given: Any) -> Any:
        super().reset(seed=given["seed"])
        self.number, self.grey = 0, 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.number, self.grey = self.number + 1, 60 * (int(action) - 4)
        return 0, 0.0, self.number == self.length, False, {}

    def render(self) -> Any:
        return np.full((33, 48, 3), self.grey, np.uint8)


class Silent(Counter):
    metadata: ClassVar = {"render_modes": ["ansi"]}


class Nested(Counter):
    action_space = gymnasium.spaces.Dict({"key": gymnasium.spaces.Discrete(2)})


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    for kind in (Counter, Silent, Nested):
        gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)


def test_an_action_leads_to_the_frame_of_its_number(tmp_path: Path) -> None:
    assert record("Counter-v0", tmp_path, Recording(clips=3, frames=30, size=0, hold=3)) == 3
    for video in open_index(DataConfig(root=str(tmp_path))).videos:
        grey_T = read_frames(tmp_path / video.path, range(30), video).mean((1, 2, 3))
        rows_TA = video_track(tmp_path / video.path, 3, 30)
        assert (video.height, video.width, video.fps) == (32, 48, 7) and np.isnan(rows_TA[0]).all()
        assert np.abs(grey_T[1:] - 60 * (rows_TA[1:].argmax(1) + 1)).max() < 3
        assert len({*rows_TA[1:].argmax(1)}) == 3


def test_actions_are_held_and_a_policy_is_asked(tmp_path: Path) -> None:
    lengths = {}
    for hold in (1, 6):
        record("Counter-v0", tmp_path / str(hold), Recording(clips=6, frames=40, hold=hold))
        actions = [json.loads(path.read_text())["actions"][1:] for path in (tmp_path / str(hold)).glob("*.json")]
        changes = sum(a != b for track in actions for a, b in pairwise(track))
        lengths[hold] = 6 * 39 / changes
    assert lengths[1] < 2 < 4 < lengths[6]
    record("Counter-v0", tmp_path / "asked", Recording(clips=1, frames=20), policy=lambda observation: 7)
    assert json.loads(next((tmp_path / "asked").glob("*.json")).read_text())["actions"] == [None] + [2] * 19


@pytest.mark.parametrize(
    ("name", "actions", "states"), [("CartPole-v1", 2, 4), ("Pendulum-v1", 1, 3), ("MountainCarContinuous-v0", 1, 2)]
)
def test_classic_control_is_recorded_by_command(name: str, actions: int, states: int, tmp_path: Path) -> None:
    words = ["data", "record", name, str(tmp_path / "a"), "--clips", "2", "--frames", "24", "--size", "32"]
    assert main(words) == main([*words[:3], str(tmp_path / "b"), *words[4:]]) == 0
    for video in sorted((tmp_path / "a").glob("*.mp4")):
        track = track_path(video)
        assert track is not None and count_actions(track) == actions
        facts = json.loads(video.with_suffix(".json").read_text())
        assert (
            16 <= facts["frames"] == len(facts["actions"]) == len(facts["states"]) and len(facts["states"][0]) == states
        )
    first, second = (path.read_bytes() for path in sorted((tmp_path / "a").glob("*.mp4")))
    assert first != second
    assert main(words) == 0 and main([*words, "--seed", "1"]) == 2, "another seed is refused"


def test_states_are_what_the_actions_lead_to(tmp_path: Path) -> None:
    record("CartPole-v1", tmp_path, Recording(clips=1, frames=60, size=32))
    facts = json.loads(next(tmp_path.glob("*.json")).read_text())
    environment = gymnasium.make("CartPole-v1")
    environment.reset()
    environment.unwrapped.state = np.array(facts["states"][0])  # type: ignore[attr-defined]
    for action, state in zip(facts["actions"][1:], facts["states"][1:], strict=True):
        assert np.allclose(environment.step(action)[0], state, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CartPol-v1", "CartPol-v1: no environment to record: .*Did you mean: `CartPole`"),
        ("no_such_package:Game-v0", "no_such_package:Game-v0: no environment to record"),
        ("Silent-v0", r"it has no render mode 'rgb_array', only \['ansi'\]"),
        ("Nested-v0", "its actions are Dict.*; Discrete, Box and MultiBinary are recorded"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        record(name, tmp_path, Recording(clips=1))
    assert "\n" not in str(caught.value)


def test_episodes_that_are_too_short_say_so(tmp_path: Path) -> None:
    gymnasium.register("Short-v0", entry_point=Counter, kwargs={"length": 4})
    with pytest.raises(DataError, match="50 episodes ended before frame 16; ask fewer with --shortest"):
        record("Short-v0", tmp_path, Recording(clips=1))
    with pytest.raises(ValueError, match="expected 2 <= shortest <= frames"):
        Recording(clips=1, frames=8)


def test_without_gymnasium_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"recording needs Gymnasium; pip install -e '.\[gymnasium\]'"):
        record("CartPole-v1", tmp_path, Recording(clips=1))
