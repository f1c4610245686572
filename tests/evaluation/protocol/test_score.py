"""Scores from end to end on look-alike data: every preset runs, planted faults show, a stopped run ends the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.data.index.index import VideoIndex, VideoRecord
from magi.errors import DataError
from magi.evaluation.metrics.frechet import distance_of, extrapolated_distance
from magi.evaluation.networks.i3d import i3d_input
from magi.evaluation.networks.load import synthetic_i3d
from magi.evaluation.protocol.card import NetworkDescription, score_name
from magi.evaluation.protocol.clip_table import ClipRow, build_table, data_hash
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import PROTOCOLS, protocol
from magi.evaluation.protocol.real_clips import quantised
from magi.evaluation.protocol.result import EvaluationResult, FrameMetric, FrechetScores, read_result
from magi.evaluation.protocol.samples import generate_samples
from magi.evaluation.protocol.score import _frame_metric, score
from tests.fakes.look_alikes import PaintedClips, Painter, Projection, look_alike_index, painted
from tests.fakes.network_cases import synthetic_inception, synthetic_lpips
from tests.fakes.score_fakes import COUNT, Cheat, evaluation, features_of, scored


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.protocol.score._RESAMPLES", 8)
        yield


@pytest.fixture(scope="module")
def index() -> VideoIndex:
    return look_alike_index(2 * COUNT)


@pytest.fixture(scope="module")
def result(index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Path]:
    out = tmp_path_factory.mktemp("whole")
    return scored(evaluation(index, out)), out


def scores_of(result: EvaluationResult) -> FrechetScores:
    assert result.frechet is not None
    return result.frechet


@pytest.mark.parametrize("name", [name for name, one in PROTOCOLS.items() if one.network == "i3d"])
def test_every_preset_runs_end_to_end(name: str, index: VideoIndex, tmp_path: Path) -> None:
    """With a quick network; one preset runs with I3D, Inception and LPIPS themselves, below."""
    folds = min(2, PROTOCOLS[name].folds)
    found = scored(evaluation(index, tmp_path, name, count=8, folds=folds))
    real, model = scores_of(found).real, scores_of(found).models["painter"]
    assert found.score_name.startswith("fvd[projection; count=8") and model.score.value > 0
    assert real.floor.value > 0 and model.score.std > 0
    assert found.protocol["name"] == name and found.card["overrides"]["count"] == 8
    predicted = PROTOCOLS[name].frames - PROTOCOLS[name].context_frames
    if PROTOCOLS[name].context_frames:
        assert len(model.frames["psnr"].per_frame) == predicted and model.frames["psnr"].first_frame == 6
    else:
        assert model.frames == {}
    assert read_result(tmp_path) == found


@pytest.mark.slow
def test_a_preset_with_the_networks_themselves(index: VideoIndex, tmp_path: Path) -> None:
    distances, images = (synthetic_lpips("alex"),), synthetic_inception()
    beside = Metrics(synthetic_i3d(), images, distances, context_frames=5)
    asked = evaluation(index, tmp_path, count=1, frames=9, beside=beside, singular=True)
    found = scored(asked)
    real, model = scores_of(found).real, scores_of(found).models["painter"]
    assert found.score_name.startswith("fvd[i3d-kinetics400-logits[synthetic]; count=1")
    assert real.floor_expected is None  # of fewer clips than dimensions theory expects nothing
    assert found.other_networks.keys() == {d.name for d in (*distances, images)}
    assert len(model.frame_fid) == 9 == len(real.frame_fid_floor)
    assert len(model.frames["lpips_alex[synthetic]"].per_frame) == 4


class FramesCounted:
    """The mean colour of every frame; counts the clips that it is shown."""

    name, hash, clips = "colours", "0" * 64, 0

    def frame_features(self, video_BTHWC: Tensor) -> Tensor:
        self.clips += len(video_BTHWC)
        return video_BTHWC.float().mean((2, 3))


def test_frames_are_measured_of_the_sets_whose_distance_at_every_frame_is_asked(
    index: VideoIndex, tmp_path: Path
) -> None:
    """Real clips, the floor and the samples: not the reconstructions and the corrupted clips, which cost as much."""
    images = FramesCounted()
    found = scores_of(scored(evaluation(index, tmp_path, beside=Metrics(Projection(), images, context_frames=5))))
    assert images.clips == 3 * COUNT
    assert len(found.real.frame_fid_floor) == 16 == len(found.models["painter"].frame_fid)


def test_floor_is_low_and_corrupted_clips_are_not(result: tuple[EvaluationResult, Path]) -> None:
    real = scores_of(result[0]).real
    assert set(real.motion_controls) == {"frames_shuffled", "first_frame_frozen", "interval_doubled"}
    for name in ("frames_shuffled", "first_frame_frozen"):
        control = real.motion_controls[name]
        assert control.score is not None and control.score.value > 2 * real.floor.value, name
        assert not control.insensitive_to_motion and control.floor == real.floor, name
    assert set(real.adjacent_l2) == {"1", "2"}  # no clip of 16 frames at interval 4 fits into 56 frames
    one, two = real.adjacent_l2["1"].mean[0], real.adjacent_l2["2"].mean[0]
    assert one is not None and two is not None and two > one


def test_real_set_is_raw_video_whatever_the_autoencoder(index: VideoIndex, tmp_path: Path) -> None:
    """Scoring against reconstructed real clips would hide what the autoencoder costs."""
    lossy = Painter()
    decode = lossy.vae.decode
    lossy.vae.decode = lambda latents: decode(latents) // 2  # type: ignore[method-assign]
    asked = evaluation(index, tmp_path)
    found = scored(asked, painter=lossy)
    raw_ND, floor_ND = features_of(asked, "real"), features_of(asked, "floor")
    assert scores_of(found).real.floor.value == pytest.approx(distance_of(raw_ND, floor_ND), rel=1e-5)
    halved_ND = features_of(asked, "floor", lambda video: video // 2)
    reconstruction = scores_of(found).models["painter"].vae_reconstruction.value
    assert reconstruction == pytest.approx(distance_of(raw_ND, halved_ND), rel=1e-4)
    assert reconstruction > 2 * scores_of(found).real.floor.value


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda video: video.flip(-1),  # BGR
        lambda video: quantised((video.float() / 255 + 1) * 127.5),  # [0, 1] taken for [-1, 1]
        lambda video: video[:1].expand_as(video),  # one sample many times
        lambda video: video[:, :1].expand_as(video),  # nothing moves
    ],
    ids=["bgr", "range", "duplicates", "frozen"],
)
def test_planted_faults_of_samples_raise_the_score(
    corrupt: Callable[[Tensor], Tensor], index: VideoIndex, tmp_path: Path
) -> None:
    asked = evaluation(index, tmp_path, "ucf101-256-2048-s1")
    floor = torch.cat(list(asked.clips.batches(asked.rows("floor"), 8)))
    found = scored(asked, honest=Cheat(floor, 1), corrupted=Cheat(corrupt(floor), 2))
    honest, corrupted = (scores_of(found).models[name].score.value for name in ("honest", "corrupted"))
    assert honest == pytest.approx(scores_of(found).real.floor.value, rel=1e-6)
    assert corrupted > 1.2 * honest


def cut(rows: list[ClipRow], interval: int) -> Tensor:
    """The clips of rows at an interval, cut from the source without the reader: the centre 32 of 48 columns."""
    clips = []
    for row in rows:
        start = min(row.start, 56 - 15 * interval - 1)
        video_THWC = painted(int(row.video.split("_")[1][:3]), 56, 32, 48)[:, :, 8:40]
        clips.append(torch.from_numpy(video_THWC[start : start + 15 * interval + 1 : interval].copy()))
    return torch.stack(clips)


def test_a_stride_off_by_one_raises_the_score(index: VideoIndex, tmp_path: Path) -> None:
    """On either side: the reader's real clips are at the protocol's interval, and made ones at the next one show."""
    asked = evaluation(index, tmp_path, "ucf101-256-2048-s1")
    rows = asked.rows("floor")
    found = scored(asked, honest=Cheat(cut(rows, 1), 1), corrupted=Cheat(cut(rows, 2), 2))
    honest, corrupted = (scores_of(found).models[name] for name in ("honest", "corrupted"))
    assert honest.score.value == pytest.approx(scores_of(found).real.floor.value, rel=1e-6)
    assert corrupted.score.value > 1.2 * honest.score.value
    drift = [[mean for mean in model.drift_ratio.mean if mean is not None] for model in (honest, corrupted)]
    assert len(drift[0]) == 15 == len(drift[1]) and sum(drift[1]) > 1.3 * sum(drift[0])


class BlackClips(PaintedClips):
    """Real clips without light."""

    def _frames(self, record: VideoRecord, numbers: range) -> Iterator[NDArray[np.uint8]]:
        return iter([np.zeros((record.height, record.width, 3), np.uint8) for _ in numbers])


class ColourSeen(Projection):
    """The mean of each colour in what I3D is given."""

    dimension = 3

    def features(self, video_BTHWC: Tensor) -> Tensor:
        return i3d_input(video_BTHWC).mean((2, 3, 4))


def test_the_network_is_fed_minus_one_to_one(index: VideoIndex, tmp_path: Path) -> None:
    """White against black is 2 in each of 3 colours: squared 12, and 3 where [0, 1] is fed; black is not 0 but -1."""
    asked = evaluation(index, tmp_path, "ucf101-256-2048-s1", network=ColourSeen(), count=4)
    asked = replace(asked, clips=BlackClips(asked.protocol, index))
    found = scored(asked, white=Cheat(torch.full((4, 16, 32, 32, 3), 255, dtype=torch.uint8), 1))
    assert scores_of(found).models["white"].score.value == pytest.approx(12)
    assert scores_of(found).models["white"].drift_ratio.mean == (None,) * 15  # black clips do not change
    assert scores_of(found).real.floor.value == 0
    assert ColourSeen().features(next(asked.clips.batches(asked.rows("real"), 8))).unique().tolist() == [-1]


def test_frame_metrics_leave_the_context_out(index: VideoIndex, tmp_path: Path) -> None:
    asked = evaluation(index, tmp_path, "k600-64-f5-50k-given", count=8)
    real = torch.cat(list(asked.clips.batches(asked.rows("real"), 8)))
    later = real.clone()
    later[:, 7] = 255 - later[:, 7]
    frames = scores_of(scored(asked, cheat=Cheat(later, 1))).models["cheat"].frames
    assert frames["psnr"].first_frame == 6 and frames["psnr"].exact_frames == 80
    assert [value is None for value in frames["psnr"].per_frame] == [number != 2 for number in range(11)]
    third, fourth = frames["ssim"].per_frame[2:4]
    assert third is not None and third < 0.5 and fourth == 1


def test_predictions_are_compared_with_the_clips_that_they_continue(index: VideoIndex, tmp_path: Path) -> None:
    """The floor's, where the floor's clips are continued: pairs of other clips would have a finite PSNR."""
    for number, context_set in enumerate(("real", "floor")):
        asked = evaluation(index, tmp_path / context_set, "k600-64-f5-50k-given", count=8, context_set=context_set)
        clips = torch.cat(list(asked.clips.batches(asked.rows(context_set), 8)))
        psnr = scores_of(scored(asked, cheat=Cheat(clips, number))).models["cheat"].frames["psnr"]
        assert psnr.exact_frames == 8 * 11 and psnr.mean is None, context_set


def painted_by(asked: Evaluation) -> Evaluation:
    return replace(asked, models={"painter": Painter()})


class Stopping(Projection):
    """A network that is interrupted at a call."""

    def __init__(self, at_call: int) -> None:
        self.left = at_call

    def features(self, video_BTHWC: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().features(video_BTHWC)


def test_stopped_evaluation_goes_on_to_the_same_card_and_number(
    index: VideoIndex, result: tuple[EvaluationResult, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        scored(evaluation(index, tmp_path), painter=Painter(fail_at_call=2))
    assert generate_samples(painted_by(evaluation(index, tmp_path)))
    for call in (2, 5, 11):
        with pytest.raises(KeyboardInterrupt):
            score(painted_by(evaluation(index, tmp_path, network=Stopping(call))))
    found = score(painted_by(evaluation(index, tmp_path)))
    assert found == result[0] and found.card_sha256 == result[0].card_sha256
    assert (tmp_path / "result.json").read_bytes() == (result[1] / "result.json").read_bytes()


def test_second_scoring_measures_nothing(index: VideoIndex, result: tuple[EvaluationResult, Path]) -> None:
    never = Stopping(at_call=1)
    assert score(painted_by(evaluation(index, result[1], network=never))) == result[0]


def test_another_card_in_the_same_folder_is_measured_anew(index: VideoIndex, tmp_path: Path) -> None:
    first = scored(evaluation(index, tmp_path / "both", count=8))
    second = scored(evaluation(index, tmp_path / "both", count=8, interval=2))
    assert second == scored(evaluation(index, tmp_path / "fresh", count=8, interval=2))
    assert second.card_sha256 != first.card_sha256


def test_scores_wait_for_all_workers(index: VideoIndex, tmp_path: Path) -> None:
    asked = painted_by(evaluation(index, tmp_path, count=COUNT, folds=2, clip_sampling="random_window"))
    assert not generate_samples(asked, (0, 2))
    with pytest.raises(DataError, match="shard missing or damaged"):
        score(asked)
    assert generate_samples(asked, (1, 2))
    assert scores_of(score(asked)).models["painter"].score.std > 0


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"frames": 8}, Painter(), "clips of 8 frames, projection needs at least 9"),
        ({"count": 6}, Painter(), "6 clips are no more than the 6 dimensions of projection"),
        ({"read_size": 64, "score_size": 64}, Painter(), "painter makes 32 x 32 pixels, k600-64-f5-50k scores at 64"),
    ],
)
def test_what_cannot_be_scored_is_one_line_before_anything_is_made(
    changes: dict[str, Any], model: Painter, message: str, index: VideoIndex, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(evaluation(index, tmp_path, **changes), models={"painter": model})  # type: ignore[dict-item]
    assert "\n" not in str(caught.value) and model.asked == [] and not any(tmp_path.iterdir())


def test_only_published_i3d_by_an_unchanged_protocol_is_called_fvd() -> None:
    def told(name: str, network: str, **overrides: Any) -> str:
        return score_name(protocol(name), NetworkDescription(network, "0" * 64, 6), overrides)

    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits") == "fvd"
    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits", count=9) == "fvd[count=9]"
    assert told("ucf101-128-class-10k", "i3d-kinetics400-logits[magvit_train]") == "fvd"
    assert told("ucf101-128-class-10k", "i3d-kinetics400-logits") == "fvd[i3d-kinetics400-logits]"
    assert told("ucf101-128-class-2048", "i3d-kinetics400-logits[eps1e-05]") == "fvd"
    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits[eps1e-05]") == "fvd[i3d-kinetics400-logits[eps1e-05]]"
    assert told("digits3d", "digits3d", count=64) == "fvd[digits3d; count=64]"
    assert told("digits", "digit-classifier") == "ground truth"
    assert told("digits", "digit-classifier", count=16) == "ground truth[count=16]"


def test_names_that_the_report_uses_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    for name in ("real", "vae", "vae other"):
        with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
            replace(evaluation(index, tmp_path), models={name: Painter()})  # type: ignore[dict-item]


def test_what_stands_beside_a_score_is_of_the_same_two_sets(index: VideoIndex, tmp_path: Path) -> None:
    """Of samples that are the floor's clips: the limit at infinity and the distance at every frame are the floor's."""
    beside = Metrics(Projection(), FramesCounted())
    asked = evaluation(index, tmp_path, "ucf101-256-2048-s1", beside=beside)
    floor = torch.cat(list(asked.clips.batches(asked.rows("floor"), 8)))
    scores = scores_of(scored(asked, cheat=Cheat(floor, 1)))
    model, real_ND = scores.models["cheat"], features_of(asked, "real")
    assert model.score_at_infinity == pytest.approx(extrapolated_distance(real_ND, features_of(asked, "floor")))
    assert model.frame_fid == scores.real.frame_fid_floor
    real = torch.cat(list(asked.clips.batches(asked.rows("real"), 8)))
    for t in (0, 15):
        expected = distance_of(real[:, t].float().mean((1, 2)), floor[:, t].float().mean((1, 2)), allow_singular=True)
        assert model.frame_fid[t] == pytest.approx(expected, abs=1e-4) and expected > 0.1


def test_a_frame_metric_is_a_mean_over_frames_of_means_over_clips() -> None:
    """Of the pairs that are not exact, whose PSNR is infinite."""
    inf = float("inf")
    found = _frame_metric(torch.tensor([[1.0, inf, inf], [3.0, 4.0, inf]]), 6)
    assert found == FrameMetric(3.0, 6, (2.0, 4.0, None), exact_frames=3)


def test_the_card_says_what_real_clips_there_were(index: VideoIndex, tmp_path: Path) -> None:
    """Of 44 videos one is too short and three were skipped; of another table or other videos it is another card."""
    videos = [replace(index.videos[0], frames=9), *index.videos[1:]]
    changed = replace(index, videos=tuple(videos), skipped=3)
    asked = evaluation(changed, tmp_path, count=20)
    assert asked.card.values["data"] == {
        "videos": 2 * COUNT, "skipped": 3, "too_short": 1, "videos_sha256": data_hash(changed),
        "table_sha256": asked.table.hash, "real_videos": 20, "floor_videos": 20, "floor_clips_of_real_videos": 0,
    }  # fmt: skip
    other = replace(asked, table=build_table(asked.protocol.model_copy(update={"table_seed": 1}), changed))
    longer = replace(asked, clips=PaintedClips(asked.protocol, index))
    assert len({one.card.hash for one in (asked, other, longer, replace(asked, seed=1))}) == 4
