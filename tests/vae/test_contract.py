"""Claims: the contract refuses what an autoencoder cannot encode, and says the shape of what it can."""

import pytest
import torch

from magi.config import DataConfig, LatentShape
from magi.vae.contract import (
    Posterior,
    VideoAutoencoder,
    check_latents,
    check_size,
    check_video,
    decode_at_the_end,
    latent_shape,
)
from magi.vae.diffusers.small import SmallVae, SmallVaeShape
from magi.vae.pixel import PixelVae


@pytest.mark.parametrize("vae", [PixelVae(4), SmallVae(SmallVaeShape(channels=3, patch=2, widths=(8, 8)))])
def test_latent_shape_is_what_encode_returns(vae: VideoAutoencoder) -> None:
    config = DataConfig(frames=3, height=16, width=24)
    shape = latent_shape(vae, config)
    latents_BTCHW = vae.encode(torch.zeros(2, 3, 16, 24, 3, dtype=torch.uint8))
    assert latents_BTCHW.shape == (2, shape.frames, shape.channels, shape.height, shape.width)
    assert shape == LatentShape(frames=3, channels=vae.channels, height=4, width=6)


def test_a_draw_is_the_generators_and_lies_where_the_posterior_says() -> None:
    posterior = Posterior(torch.full((1, 1, 2, 50, 50), 3.0), torch.full((1, 1, 2, 50, 50), 0.5))
    first, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert abs(first.mean().item() - 3) < 0.05 and abs(first.std().item() - 0.5) < 0.03
    assert posterior.sample(torch.Generator()).dtype == torch.float32


def test_a_decoder_that_is_not_causal_waits_for_the_last_latent() -> None:
    vae, asked = PixelVae(2), []
    latents_BTCHW = vae.encode(torch.arange(192, dtype=torch.uint8).reshape(1, 4, 4, 4, 3))
    frames = (asked.append(t) or latents_BTCHW[:, t : t + 1] for t in range(4))  # type: ignore[func-returns-value]
    (video_BTHWC,) = decode_at_the_end(vae, frames)
    assert asked == [0, 1, 2, 3] and torch.equal(video_BTHWC, vae.decode(latents_BTCHW))


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
