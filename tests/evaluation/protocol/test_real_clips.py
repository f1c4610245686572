"""Real clips as they are scored: colours, frames, interval and crop are those of the table; rounding is to even."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magi.config import DataConfig
from magi.data.index.index import VideoIndex, open_index
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.protocols import EvaluationProtocol, overridden, protocol
from magi.evaluation.protocol.real_clips import RealClips, frozen, quantised, shuffled, to_score_size
from tests.fakes.look_alikes import painted, write_look_alikes

PROTOCOL = overridden(protocol("ucf101-256-2048-s3"), read_size=32, score_size=32)[0]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return open_index(DataConfig(root=str(write_look_alikes(tmp_path_factory.mktemp("videos"), 4))))


def row(index: VideoIndex, video: int, start: int, interval: int, frames: int, **crop: float) -> ClipRow:
    return ClipRow(
        "real", 0, index.videos[video].path, start, interval, frames, **({"crop_x": 0.5, "crop_y": 0.5} | crop), label=0
    )


def source(index: VideoIndex, video: int) -> np.ndarray:
    return painted(int(index.videos[video].path.split("_")[1][:3]), 60, 32, 48)


def test_frames_are_those_of_start_and_interval(index: VideoIndex) -> None:
    clip = RealClips(PROTOCOL, index).read(row(index, 2, 5, 3, 16)).numpy().astype(float)
    video = source(index, 2)[:, :, 8:40].astype(float)  # the centre square of 32 x 48
    errors_TT = np.abs(clip[:, None] - video[None]).mean((2, 3, 4))
    assert errors_TT.argmin(1).tolist() == list(range(5, 5 + 46, 3))


def test_colours_are_in_the_order_red_green_blue(index: VideoIndex) -> None:
    clip = RealClips(PROTOCOL, index).read(row(index, 1, 0, 1, 2)).double()
    truth = torch.from_numpy(source(index, 1)[:2, :, 8:40]).double()
    assert (clip - truth).abs().mean() < 3 < (clip.flip(-1) - truth).abs().mean()


def test_crop_is_where_the_table_says(index: VideoIndex) -> None:
    clips, video = RealClips(PROTOCOL, index), torch.from_numpy(source(index, 0)[7]).double()
    for crop_x, left in ((0.0, 0), (0.5, 8), (1.0, 16)):
        clip = clips.read(row(index, 0, 7, 1, 1, crop_x=crop_x))[0].double()
        assert (clip - video[:, left : left + 32]).abs().mean() < 3


def test_squash_keeps_the_whole_frame(index: VideoIndex) -> None:
    squashed = RealClips(PROTOCOL.model_copy(update={"crop": "squash"}), index).read(row(index, 3, 0, 1, 1))
    video = torch.from_numpy(source(index, 3)[0]).double()
    assert abs(float(squashed.double().mean() - video.mean())) < 2
    assert (squashed[0, :, 0].double() - video[:, 0]).abs().mean() < 8


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear"])
def test_frames_are_resized_once_by_the_filter_of_the_protocol(name: str, index: VideoIndex) -> None:
    """The square of 32 of a frame of 48 to 20, as Pillow does it; other filters are other pixels."""
    wanted = row(index, 1, 3, 1, 1)
    whole = RealClips(PROTOCOL.model_copy(update={"crop": "squash"}), index).read(wanted, (32, 48))[0].numpy()
    small = RealClips(PROTOCOL.model_copy(update={"read_filter": name, "read_size": 20}), index).read(wanted)[0]
    cut = Image.fromarray(whole)
    filters = {one: np.asarray(cut.resize((20, 20), one, box=(8, 0, 40, 32))) for one in Image.Resampling}
    same = [one.name.lower() for one, pixels in filters.items() if np.array_equal(pixels, small.numpy())]
    assert same == [name]


@pytest.mark.parametrize("quality", [30, 75])
def test_frames_pass_through_jpeg_of_the_quality_of_the_protocol(quality: int, index: VideoIndex) -> None:
    wanted = row(index, 0, 0, 1, 1)
    plain = RealClips(PROTOCOL, index).read(wanted)[0].numpy()
    file = io.BytesIO()
    Image.fromarray(plain).save(file, "JPEG", quality=quality)
    found = RealClips(PROTOCOL.model_copy(update={"jpeg_quality": quality}), index).read(wanted)[0]
    assert np.array_equal(found.numpy(), np.asarray(Image.open(file).convert("RGB")))


def test_jpeg_is_a_protocol_of_its_own(index: VideoIndex) -> None:
    wanted = row(index, 0, 0, 1, 2)
    plain = RealClips(PROTOCOL, index).read(wanted)
    jpeg = RealClips(PROTOCOL.model_copy(update={"jpeg_quality": 75}), index).read(wanted)
    assert 0 < (plain.double() - jpeg.double()).abs().mean() < 6


def scored(**changes: object) -> EvaluationProtocol:
    return PROTOCOL.model_copy(update=changes)


def test_tf1_to_half_size_is_decimation_and_half_pixel_a_mean() -> None:
    video = torch.randint(0, 256, (1, 2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(to_score_size(video, scored(score_size=16, score_kernel="tf1")), video[:, :, ::2, ::2])
    four = video.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    assert torch.equal(to_score_size(video, scored(score_size=16)), four.round().to(torch.uint8))
    assert torch.equal(to_score_size(video, PROTOCOL), video)


def test_enlarging_is_refused() -> None:
    with pytest.raises(ValueError, match="16 x 16 pixels, ucf101-256-2048-s3 scores at 32 x 32"):
        to_score_size(torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8), PROTOCOL)


def test_rounding_is_half_to_even_and_clamped() -> None:
    assert quantised(torch.tensor([0.5, 1.5, 2.5, -3.0, 254.6, 300.0])).tolist() == [0, 2, 2, 0, 255, 255]


def test_corrupted_clips_keep_their_frames() -> None:
    video = torch.arange(2 * 16).view(2, 16, 1, 1, 1).expand(2, 16, 2, 2, 3).to(torch.uint8)
    mixed = shuffled(video, 0)
    assert not torch.equal(mixed, video)
    assert torch.equal(mixed[:, :, 0, 0, 0].sort(1).values, video[:, :, 0, 0, 0])
    assert torch.equal(mixed[1:], shuffled(video[1:], 1))
    assert torch.equal(frozen(video), video[:, :1].expand_as(video))


def test_a_clip_that_the_video_does_not_hold_is_refused(index: VideoIndex) -> None:
    clips, wanted = RealClips(PROTOCOL, index), row(index, 0, 10, 3, 16)
    assert clips.read(wanted, interval=3).shape[0] == 16
    with pytest.raises(ValueError, match="no 16 frames at interval 8"):
        clips.read(wanted, interval=8)
    assert Path(replace(wanted).video).suffix == ".mp4"
