"""The protocol 'game' on stand-in models: one that obeys, one that is deaf, one that is late by a frame."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.config import Config, DataConfig
from magi.data.index.index import open_index
from magi.data.video_writer import write_mp4
from magi.errors import DataError
from magi.evaluation.protocol.clip_table import build_table
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import overridden, protocol
from magi.evaluation.protocol.real_clips import RealClips
from magi.evaluation.protocol.result import EvaluationResult, read_result
from magi.evaluation.protocol.samples import generate_samples
from magi.evaluation.protocol.score import score
from magi.evaluation.report import FILES, write_report
from magi.evaluation.worlds import recorded_game
from magi.evaluation.worlds.inverse_dynamics import train_inverse_dynamics
from magi.presets import preset
from magi.vae.pixel import PixelVae

SIZE, CLIPS, FRAMES, VIDEOS = 16, 3, 20, 14
RAMP = np.zeros((SIZE, SIZE, 3), np.uint8)
RAMP[4:12, 2:10] = np.arange(8, dtype=np.uint8)[:, None] * 32


def moved(image_HWC: NDArray[np.uint8], action: int) -> NDArray[np.uint8]:
    """A picture that stays, or goes one pixel left or right and around."""
    return np.roll(image_HWC, (0, -1, 1)[action], axis=1)


def played(number: int) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(number)
    frames, actions = [moved(RAMP, 0)], [0]
    for action in rng.integers(0, 3, FRAMES + 1):
        frames.append(moved(frames[-1], action))
        actions.append(int(action))
    return np.stack(frames), actions


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    for number in range(VIDEOS):
        video_THWC, actions = played(number)
        write_mp4(folder / f"game_{number:05d}.mp4", video_THWC, 10, "yuv444p")
        facts = {"actions": [None, *actions[1:]], "action_names": ["stay", "left", "right"]}
        (folder / f"game_{number:05d}.json").write_text(json.dumps(facts))
    return folder


class InvertedVae(PixelVae):
    """One whose pictures are the negatives of the real ones."""

    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        return 255 - super().decode(latents_BTCHW)


class Player:
    """A pipeline that moves the last context frame by the actions it is given, ``late`` by frames, or not at all."""

    def __init__(self, late: int = 0, deaf: bool = False, actions: int = 3) -> None:
        values = preset("world-paddle").model_dump()
        values["model"]["actions"] = actions
        values["data"] |= {"height": SIZE, "width": SIZE}
        self.vae, self.config = PixelVae(8), Config.model_validate(values)
        self.late, self.deaf, self.classes, self.model = late, deaf, None, torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)

    def stream(self, *, frames: int, context: Tensor, actions: Tensor, **rest: Any) -> Iterator[Tensor]:
        images = list(context[:, -1].numpy())
        for t in range(context.shape[1], frames):
            for clip, rows_TA in enumerate(actions.numpy()):
                row_A = rows_TA[t - self.late]
                images[clip] = moved(images[clip], 0 if self.deaf else int(row_A.argmax()))
            yield torch.from_numpy(np.stack(images))


def evaluation(videos: Path, out: Path, models: dict[str, Any], **changes: Any) -> Evaluation:
    one, overrides = overridden(
        protocol("game"), **({"frames": FRAMES, "count": CLIPS, "score_size": SIZE, "read_size": SIZE} | changes)
    )
    index = open_index(DataConfig(root=str(videos), workers=0))
    return Evaluation(one, overrides, Metrics(), RealClips(one, index), build_table(one, index), out, models, batch=2)


@pytest.fixture(scope="module")
def evaluated(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Evaluation]:
    models: dict[str, Any] = {"obeys": Player(), "deaf": Player(deaf=True), "late": Player(late=1)}
    asked = evaluation(videos, tmp_path_factory.mktemp("evaluated"), models)
    assert generate_samples(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_game, "train_inverse_dynamics", partial(train_inverse_dynamics, steps=150))
        return score(asked), asked


def test_actions_are_read_from_the_dream(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    scores = evaluated[0].ground_truth
    assert scores is not None and scores.inverse_dynamics_videos == VIDEOS - CLIPS
    assert list(scores.series) == ["real", "last frame repeated", "vae", "obeys", "deaf", "late"]
    obeyed = {name: series.ranges[f"5-{FRAMES}"]["control"].value.value for name, series in scores.series.items()}
    assert min(obeyed[name] for name in ("real", "vae", "obeys")) > 0.95
    assert max(obeyed[name] for name in ("deaf", "late", "last frame repeated")) < 0.6
    others = {
        name: series.ranges[f"5-{FRAMES}"]["control_shuffled"].value.value for name, series in scores.series.items()
    }
    assert max(others.values()) < 0.6
    assert [scores.targets[name][0].met for name in ("obeys", "deaf", "late")] == [True, False, False]


def test_actions_are_read_as_well_from_what_the_autoencoder_leaves(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Player()
    player.vae = InvertedVae(8)
    asked = evaluation(videos, tmp_path, {"obeys": player})
    assert generate_samples(asked)
    monkeypatch.setattr(recorded_game, "train_inverse_dynamics", partial(train_inverse_dynamics, steps=300))
    scores = score(asked).ground_truth
    assert scores is not None
    for name in ("real", "vae"):
        assert scores.series[name].ranges[f"5-{FRAMES}"]["control"].value.value > 0.95


def test_the_page_says_how_it_was_measured(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    result, asked = evaluated
    assert read_result(asked.out) == result
    write_report(asked, result, {})
    assert all((asked.out / name).stat().st_size > 1000 for name in FILES)
    page = (asked.out / "report.html").read_text()
    assert f"trained on {VIDEOS - CLIPS} other real videos" in page
    assert "simulator" not in page and "Reaction" not in page


def test_what_cannot_be_measured_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 videos of at least 20 frames beside the 10 that are measured; .*--count"):
        evaluation(videos, tmp_path, {"a": Player()}, count=10)
    with pytest.raises(ValueError, match="game plays actions, but this model has none"):
        generate_samples(evaluation(videos, tmp_path, {"mute": Player(actions=0)}))
    two = evaluation(videos, tmp_path / "two", {"a": Player(), "b": Player(actions=4)})
    with pytest.raises(ValueError, match=r"models of \[3, 4\] actions are not of one game"):
        recorded_game.score_game(two)


def test_axes_are_no_kinds_of_action(videos: Path, tmp_path: Path) -> None:
    for path in videos.glob("game_*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("*.json"):
        path.write_text(json.dumps({"actions": [None] + [[0.2, 0.1, 0.7]] * (FRAMES + 1)}))
    with pytest.raises(DataError, match="game needs one of 3 kinds of action at every frame"):
        recorded_game.score_game(evaluation(tmp_path, tmp_path / "out", {"a": Player()}))


def test_training_is_reproducible_and_rare_actions_come_as_often() -> None:
    clips = [played(number) for number in range(4)]
    video_BTHWC, action_BT = np.stack([clip for clip, _ in clips]), np.array([actions for _, actions in clips])
    one, other = (train_inverse_dynamics(video_BTHWC, action_BT, 3, steps=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    third = train_inverse_dynamics(video_BTHWC, action_BT, 3, seed=1, steps=3)
    assert not torch.equal(one.layers[0].weight, third.layers[0].weight)
