"""Training on raw videos and on their encoded latents is the same training, posterior noise included."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi.config import Config, DataConfig, LatentShape
from magi.data.clips import ClipDataset
from magi.data.index.index import VideoIndex
from magi.errors import DataError
from magi.latents.dataset import LatentDataset
from magi.latents.encode import EncodeSettings, write_latents
from magi.model.magi import Magi
from magi.training.trainer import Trainer
from magi.vae.contract import Posterior
from magi.vae.pixel import PixelVae
from tests.fakes.encoded_videos import make_index
from tests.fakes.training_runs import ONE_PROCESS, tiny_config

LATENT = LatentShape(frames=3, channels=192, height=4, width=4)


class SpreadVae(PixelVae):
    """A pixel adapter that is unsure of every latent."""

    def encode_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        mean_BTCHW = super().encode_raw(video_BTHWC).mean_BTCHW
        return Posterior(mean_BTCHW, 0.25 + 0.1 * mean_BTCHW.abs())


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


def config(sample_posterior: bool) -> Config:
    data = DataConfig(frames=3, height=32, width=32, interval_max=4, workers=0, sample_posterior=sample_posterior)
    return tiny_config().model_copy(update={"data": data})


def losses(config: Config, clips: ClipDataset | LatentDataset) -> list[float]:
    model = Magi(config.model, LATENT, torch.Generator().manual_seed(1))
    trainer = Trainer(config, clips, SpreadVae(8), model, ONE_PROCESS)
    trainer.start()
    return [trainer.take_step().loss for _ in range(5)]


def test_raw_videos_and_latents_are_trained_on_alike(index: VideoIndex, tmp_path: Path) -> None:
    vae, found = SpreadVae(8), {}
    write_latents(index, tmp_path, config(True).data, vae, EncodeSettings(dtype="float32"))
    for sampled in (True, False):
        settings = config(sampled)
        raw = ClipDataset(index, settings.data, settings.training.seed)
        encoded = LatentDataset(tmp_path, settings.data, settings.training.seed, vae.id, vae.normalization)
        found[sampled] = losses(settings, raw)
        assert found[sampled] == pytest.approx(losses(settings, encoded), rel=1e-6)
    assert found[True][-1] != pytest.approx(found[False][-1], rel=1e-4)  # the noise is seen, and well beyond rounding


def test_a_video_that_is_damaged_while_training_is_one_line(index: VideoIndex) -> None:
    """Never opened: what has changed since it was indexed could kill the process that decodes it."""
    settings = config(False)
    videos = tuple(replace(record, bytes=record.bytes + 1) for record in index.videos)
    with pytest.raises(DataError, match=r"has changed since it was indexed; run 'magi data index'") as error:
        losses(settings, ClipDataset(replace(index, videos=videos), settings.data, 0))
    assert "\n" not in str(error.value) and "mp4" in str(error.value)
