"""Claims: the contract refuses what an autoencoder cannot encode, and says the shape of what it can."""

import pytest
import torch

from magi.config import DataConfig, LatentShape
from magi.vae.contract import VideoAutoencoder, check_latents, check_size, check_video, latent_shape
from magi.vae.pixel import PixelVae
from magi.vae.small import SmallVae, SmallVaeShape


@pytest.mark.parametrize("vae", [PixelVae(4), SmallVae(SmallVaeShape(channels=3, patch=2, widths=(8, 8)))])
def test_latent_shape_is_what_encode_returns(vae: VideoAutoencoder) -> None:
    config = DataConfig(frames=3, height=16, width=24)
    shape = latent_shape(vae, config)
    latents_BTCHW = vae.encode(torch.zeros(2, 3, 16, 24, 3, dtype=torch.uint8))
    assert latents_BTCHW.shape == (2, shape.frames, shape.channels, shape.height, shape.width)
    assert shape == LatentShape(frames=3, channels=vae.channels, height=4, width=6)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (0, 8)])
def test_sizes_that_the_stride_does_not_divide_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x width {width}.*stride 8.*try"):
        check_size(height, width, 8)


@pytest.mark.parametrize(
    "video",
    [
        torch.zeros(1, 1, 8, 8, 3),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 12, 3, dtype=torch.uint8),
    ],
)
def test_other_tensors_than_video_are_refused(video: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        check_video(video, 8)


@pytest.mark.parametrize(
    "latents",
    [torch.zeros(1, 1, 5, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 4, 2, 2, dtype=torch.uint8)],
)
def test_other_tensors_than_latents_are_refused(latents: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="4 channels"):
        check_latents(latents, 4)
