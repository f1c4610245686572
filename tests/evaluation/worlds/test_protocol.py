"""The protocol 'world' on stand-in models: a perfect one, and one that ignores its actions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magi.config import Config, DataConfig
from magi.data.index.index import open_index
from magi.data.worlds.worlds import find_world, write_world
from magi.errors import DataError
from magi.evaluation.protocol.clip_table import build_table
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import overridden, protocol
from magi.evaluation.protocol.real_clips import RealClips
from magi.evaluation.protocol.result import EvaluationResult, GroundTruthScores, read_result
from magi.evaluation.protocol.samples import generate_samples
from magi.evaluation.protocol.score import score
from magi.evaluation.report import FILES, text_rows, write_report
from magi.evaluation.worlds.protocol import REPEATED, compared_videos, read_clip
from magi.presets import preset
from magi.vae.pixel import PixelVae

CLIPS, FRAMES = 4, 44
WORLD = find_world("platform")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_world(WORLD, folder, CLIPS, seed=11, frames=FRAMES + 2)
    return folder


class Simulator:
    """A pipeline that reads the state from the context and plays the actions it is given, or always stands."""

    def __init__(self, obeys: bool = True, actions: int = 6) -> None:
        values = preset("world-platform").model_dump()
        values["model"]["actions"] = actions
        self.vae, self.config, self.obeys = PixelVae(8), Config.model_validate(values), obeys
        self.classes, self.model = None, torch.nn.Linear(1, 1)
        for parameter in self.model.parameters():
            torch.nn.init.zeros_(parameter)

    def stream(self, *, frames: int, context: Tensor, actions: Tensor, **rest: Any) -> Iterator[Tensor]:
        videos = []
        for context_THWC, rows_TA in zip(context.numpy(), actions.numpy(), strict=True):
            before = state = WORLD.read(context_THWC[0])
            for frame_HWC in context_THWC[1:]:
                before, state = state, WORLD.read(frame_HWC, state)
            video = []
            for t in range(len(context_THWC), frames):
                action = int(rows_TA[t].argmax()) if self.obeys else 0
                if t == len(context_THWC):  # where the player stands or moves shows only between frames
                    state = WORLD.alike(state, before)[-1]
                before, state = state, WORLD.step(state, action)
                video.append(WORLD.draw(state))
            videos.append(np.stack(video))
        yield from torch.from_numpy(np.stack(videos)).unbind(1)


def evaluation(videos: Path, out: Path, models: dict[str, Any], **changes: Any) -> Evaluation:
    one, overrides = overridden(protocol("world"), **({"frames": FRAMES, "count": CLIPS} | changes))
    index = open_index(DataConfig(root=str(videos), workers=0))
    return Evaluation(one, overrides, Metrics(), RealClips(one, index), build_table(one, index), out, models, batch=3)


@pytest.fixture(scope="module")
def evaluated(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Evaluation]:
    models: dict[str, Any] = {"good": Simulator(), "deaf": Simulator(obeys=False)}
    asked = evaluation(videos, tmp_path_factory.mktemp("evaluated"), models)
    assert generate_samples(asked)
    return score(asked), asked


def truth(result: EvaluationResult) -> GroundTruthScores:
    assert result.ground_truth is not None and result.frechet is None
    return result.ground_truth


def test_the_simulator_itself_is_as_good_as_real(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    scores = truth(evaluated[0])
    assert list(scores.series) == ["real", "last frame repeated", "vae", "good", "deaf"]
    control = {name: series.ranges["5-44"]["control"].value.value for name, series in scores.series.items()}
    assert min(control[name] for name in ("real", "vae", "good")) > 0.97
    assert control["deaf"] < 0.7 and control["last frame repeated"] < 0.7
    assert scores.series["good"].ranges["5-44"]["position_error"].value.value < 0.6
    assert scores.reactions["good"][0] > 10 > 3 * sum(scores.reactions["good"][1:])
    assert scores.median_survival["good"] == FRAMES - 4


def test_the_last_frame_that_was_given_is_repeated(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    asked = evaluated[1]
    real_BTHWC = torch.cat(list(asked.real(asked.protocol.context_set, 0, CLIPS))).numpy()
    repeated_BTHWC = compared_videos(asked, real_BTHWC)[REPEATED]
    assert repeated_BTHWC.shape == real_BTHWC.shape and (repeated_BTHWC == real_BTHWC[:, 3:4]).all()
    assert (real_BTHWC[:, 3] != real_BTHWC[:, 0]).any()


def test_targets_are_judged(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    judged = {(one.frames, one.metric): one for one in truth(evaluated[0]).targets["good"]}
    assert set(judged) == {
        ("5-44", "control"), ("5-44", "things_right"), ("5-44", "violation"), ("44-44", "position_error"),
        ("36-36", "position_error"),
    }  # fmt: skip
    assert all(one.met for one in judged.values())
    assert not all(one.met for one in truth(evaluated[0]).targets["deaf"])


def test_result_and_report_are_written(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    result, asked = evaluated
    assert read_result(asked.out) == result
    write_report(asked, result, {})
    for name in FILES:
        assert (asked.out / name).stat().st_size > 1000
    page = (asked.out / "report.html").read_text()
    assert "Reaction" in page and "actions obeyed" in page and "classifier" not in page
    assert any("median survival" in what for what, _ in text_rows(result))


def test_a_model_without_actions_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="world plays actions, but this model has none"):
        generate_samples(evaluation(videos, tmp_path, {"mute": Simulator(actions=0)}))


def test_a_damaged_sidecar_is_one_line(videos: Path, tmp_path: Path) -> None:
    video = tmp_path / "platform_00000.mp4"
    video.write_bytes((videos / video.name).read_bytes())
    with pytest.raises(ValueError, match=r"a world is measured on its own videos: magi data world NAME OUT"):
        read_clip(video, 8)
    good = json.loads((videos / "platform_00000.json").read_text())
    for change in ({"world": "plat"}, {"actions": [None, 9] * 30}, {"actions": 3}, {"states": [{"x": 1}] * 60}):
        video.with_suffix(".json").write_text(json.dumps(good | change))
        with pytest.raises(DataError, match="not a sidecar of a world"):
            read_clip(video, 8)
    video.with_suffix(".json").write_text(json.dumps(good))
    with pytest.raises(ValueError, match="a clip of 46 frames, asked 47"):
        read_clip(video, 47)
