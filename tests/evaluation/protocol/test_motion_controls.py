"""Corrupted real clips: how many, against which floor, and what is said where a measure is insensitive to motion."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magi.data.index.index import VideoIndex
from magi.evaluation.metrics.frechet import FeatureStatistics, distance_of, expected_floor
from magi.evaluation.protocol import motion_controls
from magi.evaluation.protocol.result import EvaluationResult, MotionControl, RealScores
from magi.evaluation.report import score_rows
from tests.fakes.look_alikes import Projection, look_alike_index
from tests.fakes.score_fakes import COUNT, evaluation, features_of, scored


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.protocol.score._RESAMPLES", 8)
        yield


def real_of(result: EvaluationResult) -> RealScores:
    assert result.frechet is not None
    return result.frechet.real


@pytest.fixture(scope="module")
def index() -> VideoIndex:
    return look_alike_index(2 * COUNT)


def test_large_sets_are_corrupted_in_part_and_held_against_the_floor_of_that_part(
    index: VideoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion_controls, "CLIPS", 10)
    asked = evaluation(index, tmp_path)
    found = real_of(scored(asked))
    real_ND, floor_ND, frozen_ND = (
        features_of(asked, name, corrupt)[:10]
        for name, corrupt in (("real", torch.clone), ("floor", torch.clone), ("floor", motion_controls.frozen))
    )
    part = found.motion_controls["first_frame_frozen"]
    assert part.score is not None and part.floor is not None
    assert part.clips == 10 and part.score.value == pytest.approx(distance_of(real_ND, frozen_ND), rel=1e-5)
    assert part.floor.value == pytest.approx(distance_of(real_ND, floor_ND), rel=1e-5) != found.floor.value


@pytest.mark.parametrize("short", [5, 38])
def test_doubled_interval_takes_the_clips_that_are_long_enough_or_says_why_not(short: int, tmp_path: Path) -> None:
    whole = look_alike_index(2 * COUNT)
    videos = [replace(record, frames=20) if k < short else record for k, record in enumerate(whole.videos)]
    asked = evaluation(replace(whole, videos=tuple(videos)), tmp_path)
    part = real_of(scored(asked)).motion_controls["interval_doubled"]
    rows = asked.rows("floor")
    kept = [k for k, row in enumerate(rows) if asked.clips.lengths[row.video] >= 31]
    if short == 38:
        told = f"{len(kept)} of 22 clips are of videos with 31 frames, at least 7 are needed"
        assert len(kept) < 7 and part == MotionControl(not_run=told)
        return
    doubled = asked.clips.batches([rows[k] for k in kept], 8, interval=2)
    doubled_ND = torch.cat([Projection().features(video) for video in doubled])
    real_ND, floor_ND = (features_of(asked, name) for name in ("real", "floor"))
    assert part.clips == len(kept) < 22
    assert part.score.value == pytest.approx(distance_of(real_ND[: len(kept)], doubled_ND), rel=1e-5)
    assert part.floor.value == pytest.approx(distance_of(real_ND[: len(kept)], floor_ND[kept]), rel=1e-5)


class Still(Projection):
    """Sees the mean frame of a clip alone."""

    def features(self, video_BTHWC: Tensor) -> Tensor:
        mean_BHWC = video_BTHWC.float().mean(1) / 255
        return torch.cat([mean_BHWC.mean((1, 2)), mean_BHWC[:, :16, :16].mean((1, 2))], dim=1)


def test_a_measure_that_is_insensitive_to_motion_is_reported(index: VideoIndex, tmp_path: Path) -> None:
    found = scored(evaluation(index, tmp_path, network=Still()))
    shuffled = real_of(found).motion_controls["frames_shuffled"]
    assert shuffled.score is not None
    assert shuffled.score.value == pytest.approx(real_of(found).floor.value, rel=1e-3)
    assert shuffled.insensitive_to_motion
    assert dict(score_rows(found))["real, frames shuffled"].endswith("INSENSITIVE TO MOTION: no worse than the floor")


def test_floor_stands_beside_what_theory_expects_and_what_it_shares(index: VideoIndex, tmp_path: Path) -> None:
    asked = evaluation(index, tmp_path / "apart")
    found = scored(asked)
    covariance_DD = FeatureStatistics.of(features_of(asked, "real")).covariance_DD
    assert real_of(found).floor_expected == pytest.approx(expected_floor(covariance_DD, COUNT, COUNT), rel=1e-5)
    assert found.card["data"]["floor_clips_of_real_videos"] == 0
    assert "too low" not in dict(score_rows(found))["real against real (the floor)"]
    crowded = scored(evaluation(look_alike_index(COUNT), tmp_path / "shared"))
    assert crowded.card["data"]["floor_clips_of_real_videos"] == COUNT
    assert "22 of its clips are of the real set's videos" in dict(score_rows(crowded))["real against real (the floor)"]
