"""Scores from end to end on look-alike data: every preset runs, planted faults show, a stopped run ends the same."""

import json
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
from magi.evaluation.metrics.frechet import distance_of
from magi.evaluation.networks.features import FeatureNetwork
from magi.evaluation.networks.i3d_preprocessing import i3d_input
from magi.evaluation.networks.load import artificial_i3d, artificial_inception, artificial_lpips
from magi.evaluation.protocol import score as score_module
from magi.evaluation.protocol.card import score_name
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.features import Instruments
from magi.evaluation.protocol.protocols import PROTOCOLS, protocol
from magi.evaluation.protocol.real_clips import quantised
from magi.evaluation.protocol.score import generate, score
from tests.fakes.look_alikes import PaintedClips, Painter, Projection, look_alike_index, painted
from tests.fakes.score_fakes import COUNT, Cheat, evaluation, features_of, scored, tell


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.protocol.score._RESAMPLES", 8)
        yield


@pytest.fixture(scope="module")
def index() -> VideoIndex:
    return look_alike_index(2 * COUNT)


@pytest.fixture(scope="module")
def result(index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("whole")
    return scored(evaluation(index, out)), out


@pytest.mark.parametrize("name", [name for name, one in PROTOCOLS.items() if one.network == "i3d"])
def test_every_preset_runs_end_to_end(name: str, index: VideoIndex, tmp_path: Path) -> None:
    """With a quick network; one preset runs with I3D, Inception and LPIPS themselves, below."""
    folds = min(2, PROTOCOLS[name].folds)
    found = scored(evaluation(index, tmp_path, name, count=8, folds=folds))
    model = found["models"]["painter"]
    assert found["score_name"].startswith("fvd[projection; count=8") and model["score"]["value"] > 0
    assert found["real"]["floor"]["value"] > 0 and model["score"]["spread"] > 0
    assert found["card"]["protocol"]["name"] == name and found["card"]["overrides"]["count"] == 8
    predicted = PROTOCOLS[name].frames - PROTOCOLS[name].context_frames
    if PROTOCOLS[name].context_frames:
        assert len(model["frames"]["psnr"]["per_frame"]) == predicted and model["frames"]["psnr"]["first_frame"] == 6
    else:
        assert model["frames"] == {}
    assert json.loads((tmp_path / "result.json").read_text()) == found


@pytest.mark.slow
def test_a_preset_with_the_networks_themselves(index: VideoIndex, tmp_path: Path) -> None:
    distances, images = (artificial_lpips("alex"),), artificial_inception()
    beside = Instruments(artificial_i3d(), images, distances, context_frames=5)
    asked = evaluation(index, tmp_path, count=2, frames=9, beside=beside)
    asked.overrides["singular"] = True  # type: ignore[index]
    found = scored(asked)
    model = found["models"]["painter"]
    assert found["score_name"].startswith("fvd[i3d-kinetics400-logits[artificial]; count=2")
    assert "floor_expected" not in found["real"]  # of fewer clips than dimensions theory expects nothing
    assert found["beside"].keys() == {d.name for d in (*distances, images)}
    assert len(model["frame_fid"]) == 9 == len(found["real"]["frame_fid_floor"])
    assert len(model["frames"]["lpips_alex[artificial]"]["per_frame"]) == 4


def test_floor_is_low_and_spoilt_clips_are_not(result: tuple[dict[str, Any], Path]) -> None:
    real = result[0]["real"]
    assert set(real["battery"]) == {"frames_shuffled", "first_frame_frozen", "interval_doubled"}
    for name in ("frames_shuffled", "first_frame_frozen"):
        assert real["battery"][name]["value"] > 2 * real["floor"]["value"], name
        assert not real["battery"][name]["blind"] and real["battery"][name]["floor"] == real["floor"], name
    assert set(real["drift"]) == {"1", "2"}  # no clip of 16 frames at interval 4 fits into 56 frames
    assert real["drift"]["2"]["mean"][0] > real["drift"]["1"]["mean"][0]


def test_real_set_is_raw_video_whatever_the_autoencoder(index: VideoIndex, tmp_path: Path) -> None:
    """Scoring against reconstructed real clips would hide what the autoencoder costs."""
    lossy = Painter()
    decode = lossy.vae.decode
    lossy.vae.decode = lambda latents: decode(latents) // 2  # type: ignore[method-assign]
    asked = evaluation(index, tmp_path)
    found = scored(asked, painter=lossy)
    raw_ND, floor_ND = features_of(asked, "real"), features_of(asked, "floor")
    assert found["real"]["floor"]["value"] == pytest.approx(distance_of(raw_ND, floor_ND), rel=1e-5)
    halved_ND = features_of(asked, "floor", lambda video: video // 2)
    reconstruction = found["models"]["painter"]["vae_reconstruction"]["value"]
    assert reconstruction == pytest.approx(distance_of(raw_ND, halved_ND), rel=1e-4)
    assert reconstruction > 2 * found["real"]["floor"]["value"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda video: video.flip(-1),  # BGR
        lambda video: quantised((video.float() / 255 + 1) * 127.5),  # [0, 1] taken for [-1, 1]
        lambda video: video[:1].expand_as(video),  # one sample many times
        lambda video: video[:, :1].expand_as(video),  # nothing moves
    ],
    ids=["bgr", "range", "duplicates", "frozen"],
)
def test_planted_faults_of_samples_raise_the_score(
    spoil: Callable[[Tensor], Tensor], index: VideoIndex, tmp_path: Path
) -> None:
    asked = evaluation(index, tmp_path, "ucf101-256-2048-s1")
    floor = torch.cat(list(asked.clips.batches(asked.rows("floor"), 8)))
    found = scored(asked, honest=Cheat(floor, 1), spoilt=Cheat(spoil(floor), 2))
    honest, spoilt = (found["models"][name]["score"]["value"] for name in ("honest", "spoilt"))
    assert honest == pytest.approx(found["real"]["floor"]["value"], rel=1e-6)
    assert spoilt > 1.2 * honest


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
    found = scored(asked, honest=Cheat(cut(rows, 1), 1), spoilt=Cheat(cut(rows, 2), 2))
    honest, spoilt = (found["models"][name] for name in ("honest", "spoilt"))
    assert honest["score"]["value"] == pytest.approx(found["real"]["floor"]["value"], rel=1e-6)
    assert spoilt["score"]["value"] > 1.2 * honest["score"]["value"]
    drift = [model["drift_ratio"]["mean"] for model in (honest, spoilt)]
    assert len(drift[0]) == 15 and sum(drift[1]) > 1.3 * sum(drift[0])


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
    assert found["models"]["white"]["score"]["value"] == pytest.approx(12)
    assert found["models"]["white"]["drift_ratio"]["mean"] == [None] * 15  # black clips do not change
    assert found["real"]["floor"]["value"] == 0
    assert ColourSeen().features(next(asked.clips.batches(asked.rows("real"), 8))).unique().tolist() == [-1]


def test_frame_metrics_leave_the_context_out(index: VideoIndex, tmp_path: Path) -> None:
    asked = evaluation(index, tmp_path, "k600-64-f5-50k-given", count=8)
    real = torch.cat(list(asked.clips.batches(asked.rows("real"), 8)))
    later = real.clone()
    later[:, 7] = 255 - later[:, 7]
    frames = scored(asked, cheat=Cheat(later, 1))["models"]["cheat"]["frames"]
    assert frames["psnr"]["first_frame"] == 6 and frames["psnr"]["exact_frames"] == 80
    assert [value is None for value in frames["psnr"]["per_frame"]] == [number != 2 for number in range(11)]
    assert frames["ssim"]["per_frame"][2] < 0.5 and frames["ssim"]["per_frame"][3] == 1


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
    index: VideoIndex, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        scored(evaluation(index, tmp_path), painter=Painter(fail_at_call=2))
    assert generate(evaluation(index, tmp_path), {"painter": Painter()}, (0, 1), tell)
    for call in (2, 5, 11):
        with pytest.raises(KeyboardInterrupt):
            score(evaluation(index, tmp_path, network=Stopping(call)), {"painter": Painter()}, tell)
    found = score(evaluation(index, tmp_path), {"painter": Painter()}, tell)
    assert found == result[0] and found["card_sha256"] == result[0]["card_sha256"]
    assert (tmp_path / "result.json").read_bytes() == (result[1] / "result.json").read_bytes()


def test_second_scoring_measures_nothing(index: VideoIndex, result: tuple[dict[str, Any], Path]) -> None:
    never = Stopping(at_call=1)
    assert score(evaluation(index, result[1], network=never), {"painter": Painter()}, tell) == result[0]


def test_another_card_in_the_same_folder_is_measured_anew(index: VideoIndex, tmp_path: Path) -> None:
    first = scored(evaluation(index, tmp_path / "both", count=8))
    second = scored(evaluation(index, tmp_path / "both", count=8, interval=2))
    assert second == scored(evaluation(index, tmp_path / "fresh", count=8, interval=2))
    assert second["card_sha256"] != first["card_sha256"]


def test_scores_wait_for_all_workers(index: VideoIndex, tmp_path: Path) -> None:
    asked, models = evaluation(index, tmp_path, count=COUNT, folds=2, choice="random_window"), {"painter": Painter()}
    assert not generate(asked, models, (0, 2), tell)
    with pytest.raises(DataError, match="shard missing or damaged"):
        score(asked, models, tell)
    assert generate(asked, models, (1, 2), tell)
    assert score(asked, models, tell)["models"]["painter"]["score"]["spread"] > 0


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
        generate(evaluation(index, tmp_path, **changes), {"painter": model}, (0, 1), tell)  # type: ignore[dict-item]
    assert "\n" not in str(caught.value) and model.asked == [] and not any(tmp_path.iterdir())


def test_only_published_i3d_by_an_unchanged_protocol_is_called_fvd() -> None:
    class Named(Projection):
        def __init__(self, name: str) -> None:
            self.name = name

    def told(name: str, network: str, **overrides: Any) -> str:
        one: FeatureNetwork = Named(network)
        return score_name(protocol(name), one, overrides)

    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits") == "fvd"
    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits", count=9) == "fvd[count=9]"
    assert told("ucf101-128-class-10k", "i3d-kinetics400-logits[magvit_train]") == "fvd"
    assert told("ucf101-128-class-10k", "i3d-kinetics400-logits") == "fvd[i3d-kinetics400-logits]"
    assert told("ucf101-128-class-2048", "i3d-kinetics400-logits[eps1e-05]") == "fvd"
    assert told("ucf101-256-2048-s3", "i3d-kinetics400-logits[eps1e-05]") == "fvd[i3d-kinetics400-logits[eps1e-05]]"
    assert told("digits3d", "digits3d", count=64) == "fvd[digits3d; count=64]"
    assert score_module.RESULT_FILE == "result.json"
