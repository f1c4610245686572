"""Ground truth as scores of a protocol, on stand-in models whose figures are known: what it reads, judges, refuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi.config import Config, DataConfig
from magi.data.index.index import open_index
from magi.data.moving_digits import write_digits
from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.protocol import TARGETS, made_videos, read_real_clips
from magi.evaluation.protocol.clip_table import build_table
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import overridden, protocol
from magi.evaluation.protocol.real_clips import RealClips
from magi.evaluation.protocol.result import EvaluationResult, GroundTruthScores, read_result
from magi.evaluation.protocol.samples import generate_samples
from magi.evaluation.protocol.score import score
from magi.evaluation.report import FILES, write_report
from magi.presets import preset
from magi.vae.pixel import PixelVae

CLIPS, FRAMES, CONTEXT, SIZE = 12, 20, 4, 48


@pytest.fixture(scope="module", autouse=True)
def _few_digits_for_the_classifier() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.moving_digits.protocol.CLASSIFIER_CLIPS", 50)
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_digits(folder, CLIPS, size=SIZE, seed=11, frames=FRAMES + 4)
    return folder


class Repeat:
    """A pipeline that repeats the last context frame."""

    def __init__(self, stride: int = 8) -> None:
        values = preset("digits").model_dump()
        values["data"] |= {"height": SIZE, "width": SIZE}
        self.vae, self.config, self.labels = PixelVae(stride), Config.model_validate(values), []
        self.classes = tuple("0123456789")
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)

    def stream(
        self, *, frames: int, context: torch.Tensor, labels: Any, interval: int, seeds: Any, actions: None
    ) -> Any:
        self.labels.append(labels)
        return iter([context[:, -1]] * (frames - context.shape[1]))


def evaluation(videos: Path, out: Path, models: dict[str, Any], **changes: Any) -> Evaluation:
    small = {"frames": FRAMES, "count": CLIPS, "read_size": SIZE, "score_size": SIZE} | changes
    one, overrides = overridden(protocol("digits"), **small)
    index = open_index(DataConfig(root=str(videos)))
    metrics, table = Metrics(classifier=DigitClassifier.load()), build_table(one, index)
    return Evaluation(one, overrides, metrics, RealClips(one, index), table, out, models)


def scored(asked: Evaluation) -> EvaluationResult:
    assert generate_samples(asked)
    return score(asked)


def truth(result: EvaluationResult) -> GroundTruthScores:
    assert result.ground_truth is not None and result.frechet is None
    return result.ground_truth


@pytest.fixture(scope="module")
def evaluated(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Evaluation]:
    asked = evaluation(videos, tmp_path_factory.mktemp("evaluated"), {"still": Repeat()})
    return scored(asked), asked


def test_real_and_reconstructed_clips_are_perfect(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    scores = truth(evaluated[0])
    assert list(scores.series) == ["real", "vae", "still"]
    for name in ("real", "vae"):
        for metrics in scores.series[name].ranges.values():
            assert metrics["class_accuracy"].value.value == 1
            assert metrics["position_error_px"].value.value < 0.5
            assert metrics["intensity_ratio"].value.value == pytest.approx(1, abs=0.01)


def test_reconstructions_are_what_the_autoencoder_makes(videos: Path, tmp_path: Path) -> None:
    """Half as bright where it halves the light; the real clips stay as they are."""
    dark = Repeat()
    decode = dark.vae.decode
    dark.vae.decode = lambda latents: decode(latents) // 2  # type: ignore[method-assign]
    series = truth(scored(evaluation(videos, tmp_path, {"dark": dark}))).series
    ratios = {name: series[name].ranges["5-16"]["intensity_ratio"].value.value for name in ("real", "vae")}
    assert ratios == pytest.approx({"real": 1, "vae": 0.5}, abs=0.03)


def test_still_video_errs_by_the_exact_way_of_the_sidecars(
    evaluated: tuple[EvaluationResult, Evaluation], videos: Path
) -> None:
    """Its clips are those of the sidecars, one by one: another order of clips would have other errors."""
    series = truth(evaluated[0]).series["still"]
    sidecars = [json.loads(path.read_text()) for path in sorted(videos.glob("?/*.json"))]
    path_BT2 = np.array([sidecar["glyphs"][0]["positions"] for sidecar in sidecars])[:, :FRAMES]
    error_T = np.linalg.norm(path_BT2 - path_BT2[:, CONTEXT - 1 : CONTEXT], axis=-1).mean(0)
    error_T[:CONTEXT] = 0  # context frames are the real ones
    np.testing.assert_allclose(series.per_frame["position_error_px"].mean, error_T, atol=0.1)
    near = series.ranges["5-16"]["position_error_px"].value
    assert near.value == pytest.approx(error_T[4:16].mean(), abs=0.1)
    assert near.low <= near.value <= near.high


def test_targets_are_judged_on_the_ranges_they_name(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    judged = truth(evaluated[0]).targets["still"]
    assert [(one.frames, one.metric) for one in judged] == [("5-16", "class_accuracy"), ("5-16", "position_error_px")]
    assert [one.met for one in judged] == [True, False]
    intensity = next(target for target in TARGETS if target.metric == "intensity_ratio")
    assert [intensity.contains(value) for value in (0.69, 0.7, 1.3, 1.31)] == [False, True, True, False]


def test_files_and_settings_are_there(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    result, asked = evaluated
    assert read_result(asked.out) == result
    write_report(asked, result, {})
    for name in FILES:
        assert (asked.out / name).stat().st_size > 1000
    assert truth(result).classifier_accuracy >= 0.98
    assert result.models["still"].vae == PixelVae(8).id
    assert result.score_name.startswith("ground truth[count=12; frames=20")
    assert str(asked.out) not in (asked.out / "result.json").read_text()


def test_second_call_generates_nothing(evaluated: tuple[EvaluationResult, Evaluation]) -> None:
    result, asked = evaluated
    model, calls = Repeat(), []
    again = replace(asked, models={"still": model}, on_progress=lambda *call: calls.append(call))  # type: ignore[dict-item]
    assert scored(again) == result
    assert model.labels == []
    assert calls[-1][1] == calls[-1][2]


def test_clips_come_in_the_order_of_their_numbers_each_with_its_class_and_path(videos: Path, tmp_path: Path) -> None:
    clips = read_real_clips(videos, 11, 2)
    assert [clip.label for clip in clips] == [*range(10), 0]  # the first clips hold all classes
    assert all(clip.video_THWC.shape == (2, SIZE, SIZE, 3) and clip.path_T2.shape == (2, 2) for clip in clips)
    model = Repeat()
    asked = evaluation(videos, tmp_path, {"still": model}, count=11, labels="real")
    assert [Path(row.video).stem for row in asked.predicted] == [clip.name for clip in clips]
    assert generate_samples(asked)
    assert [label for labels in model.labels for label in labels] == [*map(str, range(10)), "0"]


def test_models_with_one_autoencoder_share_its_reconstructions(videos: Path, tmp_path: Path) -> None:
    same = evaluation(videos, tmp_path, {"a": Repeat(), "b": Repeat()})
    assert list(made_videos(same)) == ["vae", "a", "b"]
    other = evaluation(videos, tmp_path, {"a": Repeat(), "b": Repeat(stride=4)})
    assert list(made_videos(other)) == ["vae a", "vae b", "a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": CLIPS + 1}, "holds 12 videos of at least 20 frames, digits needs 13"),
        ({"frames": 30}, "holds 0 videos of at least 30 frames, digits needs 12"),
        ({"context_frames": FRAMES}, "context 20 must be below the 20 frames"),
    ],
)
def test_impossible_settings_are_refused(videos: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(videos, tmp_path, {"still": Repeat()}, **settings)


def test_unfit_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 built-in videos, asked 1"):
        read_real_clips(tmp_path, 1, 8)
    write_digits(tmp_path / "two", 1, size=48, seed=0, glyphs=2, frames=8)
    with pytest.raises(ValueError, match="one glyph"):
        read_real_clips(tmp_path / "two", 1, 8)
    write_digits(tmp_path / "one", 1, size=48, seed=0, frames=8)
    with pytest.raises(ValueError, match="8 frames, asked 9"):
        read_real_clips(tmp_path / "one", 1, 9)
    with pytest.raises(ValueError, match="48 pixels high and wide, expected 64"):
        scored(evaluation(tmp_path / "one", tmp_path, {}, count=1, frames=8, read_size=64, score_size=64))
    mp4 = next((tmp_path / "one").glob("0/*.mp4"))
    mp4.write_bytes(mp4.read_bytes()[:700])
    with pytest.raises(DataError, match=mp4.name):
        read_real_clips(tmp_path / "one", 1, 8)
    mp4.with_suffix(".json").write_text("{}")
    with pytest.raises(DataError, match="not a sidecar"):
        read_real_clips(tmp_path / "one", 1, 8)
    mp4.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="ground truth needs built-in videos"):
        read_real_clips(tmp_path / "one", 1, 8)
