"""Claims: 8k+1 frames, the encoder looks back alone, the decoder gets the whole clip; noisy decoders are refused."""

import pytest
import torch

from magi.vae.diffusers.ltx import LtxVae
from tests.fakes.tiny_vaes import some_video, tiny_network, tiny_vae


def test_the_decoder_gets_the_whole_clip_once() -> None:
    vae = tiny_vae("ltx")
    latents_BTCHW = vae.encode(some_video(1, 17, 32, 32))
    assert latents_BTCHW.shape == (1, 3, 6, 1, 1) and not vae.streams
    (streamed_BTHWC,) = vae.decode_stream(latents_BTCHW.split(1, dim=1))
    assert torch.equal(streamed_BTHWC, vae.decode(latents_BTCHW)) and streamed_BTHWC.shape == (1, 17, 32, 32, 3)
    assert list(vae.decode_stream([])) == []


def test_the_posterior_has_the_spread_that_the_network_says() -> None:
    vae, video_BTHWC = tiny_vae("ltx"), some_video(1, 9, 32, 32)
    posterior = vae.posterior(video_BTHWC)
    assert (posterior.std_BTCHW > 0).all()
    first, second = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(0)))
    noise = torch.randn(posterior.mean_BTCHW.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, posterior.mean_BTCHW + posterior.std_BTCHW * noise)


@pytest.mark.parametrize("changed", [{"timestep_conditioning": True}, {"decoder_inject_noise": (True,) + (False,) * 4}])
def test_a_decoder_that_draws_noise_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"draws noise of its own.*LTX-Video 0\.9\.0"):
        LtxVae(tiny_network("ltx", **changed))


def test_published_statistics_are_no_part_of_the_identity() -> None:
    network = tiny_network("ltx")
    network.latents_mean += 1
    published = LtxVae(network).published()
    assert published is not None and published.mean == (1.0,) * 6
    assert LtxVae(network, published).id == LtxVae(network).id == tiny_vae("ltx").id


@pytest.mark.slow
def test_the_real_configuration_compresses_as_published() -> None:
    from diffusers import AutoencoderKLLTXVideo

    with torch.device("meta"):
        network = AutoencoderKLLTXVideo()
    vae = LtxVae.__new__(LtxVae)
    vae.network = network
    assert (vae.channels, vae.spatial_stride, vae.temporal_stride, vae.latent_frames(17)) == (128, 32, 8, 3)
    with torch.no_grad():
        latents_BCTHW = network.encode(torch.zeros(1, 3, 17, 64, 96, device="meta")).latent_dist.mean
        assert latents_BCTHW.shape == (1, 128, 3, 2, 3)
        assert network.decode(latents_BCTHW).sample.shape == (1, 3, 17, 64, 96)
    assert 410e6 < sum(parameter.numel() for parameter in network.parameters()) < 430e6
