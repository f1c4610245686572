"""Encoded latents carry the actions of their videos, and clips of them have those that led to their frames."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magi.config import DataConfig, ModelConfig, TrainingConfig
from magi.data.clips import Clip, ClipDataset
from magi.data.index.index import VideoIndex, build_index
from magi.data.video_writer import write_mp4
from magi.errors import DataError
from magi.latents.dataset import LatentClip, LatentDataset
from magi.latents.encode import EncodeSettings, write_latents
from magi.training.batch import make_batch
from magi.training.corruption import TokenShape, draw_corruption
from magi.vae.contract import VideoAutoencoder
from magi.vae.pixel import PixelVae
from tests.fakes.tiny_vaes import any_tiny_vae

SIZE, FRAMES, ACTIONS, TIME_STRIDE = 16, 24, 3, 4
CONFIG = DataConfig(frames=5, height=SIZE, width=SIZE, interval_min=1, interval_max=4, sample_posterior=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_mp4(folder / f"v{number}.mp4", np.full((FRAMES, SIZE, SIZE, 3), 60 * number, np.uint8), 10)
        rows_FA = np.arange(FRAMES * ACTIONS).reshape(FRAMES, ACTIONS) + 1000.0 * number
        rows_FA[7] = np.nan
        np.save(folder / f"v{number}.actions.npy", rows_FA)
    return build_index(DataConfig(root=str(folder), workers=0))


def encoded(index: VideoIndex, out: Path, vae: VideoAutoencoder, config: DataConfig = CONFIG) -> LatentDataset:
    write_latents(index, out, config, vae, EncodeSettings(actions=ACTIONS, videos_per_shard=2))
    return LatentDataset(out, config, 0, vae.id)


def test_clips_of_latents_have_the_actions_of_clips_of_videos(index: VideoIndex, tmp_path: Path) -> None:
    latents = encoded(index, tmp_path, PixelVae(8))
    videos = ClipDataset(index, CONFIG, 0, ACTIONS)
    for sample in range(12):
        one, other = latents[sample], videos[sample]
        assert one.interval == other.interval and one.actions_TA is not None
        np.testing.assert_array_equal(one.actions_TA, other.actions_TA)


def test_latent_frames_of_clips_have_the_mean_of_theirs(index: VideoIndex, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"frames": 1 + 2 * TIME_STRIDE, "interval_max": 1})
    latents = encoded(index, tmp_path, any_tiny_vae("cosmos"), config)
    for sample in range(6):
        clip, draw = latents[sample], latents.draws.draw(sample)
        start = latents._table.clips_VK2[draw.video, draw.start // 3, 0]
        track_FA = np.load(index.root / f"v{draw.video}.actions.npy")
        assert clip.actions_TA is not None and clip.actions_TA.shape == (3, ACTIONS)
        assert np.isnan(clip.actions_TA[0]).all()
        for t in (1, 2):
            first = start + 1 + (t - 1) * TIME_STRIDE
            np.testing.assert_allclose(clip.actions_TA[t], np.nanmean(track_FA[first : first + TIME_STRIDE], axis=0))


def test_latents_without_their_actions_are_damaged(index: VideoIndex, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    encoded(index, tmp_path, PixelVae(8))
    path = tmp_path / "shard-00000.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # As many bytes as before, so that only the shape is wrong.
    tensors["actions"] = tensors["actions"].view(ACTIONS, -1)
    save_file(tensors, path, metadata)
    with pytest.raises(DataError, match="damaged"):
        dataset = LatentDataset(tmp_path, CONFIG, 0, PixelVae(8).id)
        [dataset[sample] for sample in range(3)]


def clip_of(actions_TA: np.ndarray | None) -> LatentClip:
    return LatentClip(np.zeros((5, 2, 4, 4), np.float32), 1, None, 0, actions_TA)


def test_a_batch_has_rows_of_actions_and_leaves_them_out_by_clip() -> None:
    model = ModelConfig(width=8, heads=2, frames=5, actions=ACTIONS)
    actions_TA = np.arange(15, dtype=np.float32).reshape(5, 3)
    actions_TA[0] = np.nan
    dropped = []
    for sample in range(200):
        corruption = draw_corruption(TrainingConfig(), model, TokenShape(5, 4, 8), sample)
        rows_TA = make_batch([clip_of(actions_TA)], [corruption], model).conditions.action_BA[0]
        dropped.append(corruption.drop_actions)
        assert rows_TA[0].tolist() == [0, 0, 0, 1]
        expected = [0, 0, 0, 1] if corruption.drop_actions else [3, 4, 5, 0]
        assert rows_TA[1].tolist() == expected
    assert 8 <= sum(dropped) <= 35


@pytest.mark.parametrize("actions_TA", [None, np.zeros((5, 2), np.float32)])
def test_a_clip_without_the_models_actions_is_one_line(actions_TA: np.ndarray | None) -> None:
    model = ModelConfig(width=8, heads=2, frames=5, actions=ACTIONS)
    corruption = draw_corruption(TrainingConfig(), model, TokenShape(5, 4, 8), 0)
    with pytest.raises(ValueError, match=r"model.actions is 3, but a clip has (no actions|actions of 2 numbers)"):
        make_batch([clip_of(actions_TA)], [corruption], model)


def test_a_clip_of_more_frames_than_latent_frames_has_bags() -> None:
    model = ModelConfig(width=8, heads=2, frames=2, actions=1)
    video = Clip(np.zeros((5, 8, 8, 3), np.uint8), 1, None, 0, np.array([[np.nan], [1], [2], [3], [6]], np.float32))
    corruption = draw_corruption(TrainingConfig(action_dropout=0), model, TokenShape(2, 4, 8), 0)
    rows_TA = make_batch([video], [corruption], model).conditions.action_BA[0]
    assert rows_TA.tolist() == [[0, 1], [3, 0]] and rows_TA.dtype == torch.float32
