"""Claims: latent by latent is the whole clip, streams do not meet, later latents change no earlier frame."""

import pytest
import torch

from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.cosmos_stream import CosmosStream
from tests.fakes.tiny_vaes import some_video, tiny_network, tiny_vae

CHUNKS = [[1] * 5, [2, 3], [1, 4], [5]]


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("compression", [4, 8])
def test_any_chunks_joined_are_the_whole_clip(sizes: list[int], compression: int) -> None:
    network = tiny_network("cosmos", temporal_compression_ratio=compression).eval()
    latents_BCTHW = torch.randn(2, 4, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole_BCTHW = network.decode(latents_BCTHW).sample
    stream = CosmosStream(network)
    chunks = [stream.decode(chunk) for chunk in latents_BCTHW.split(sizes, dim=2)]
    assert [chunk.shape[2] for chunk in chunks] == [
        size * compression - (compression - 1 if number == 0 else 0) for number, size in enumerate(sizes)
    ]
    assert whole_BCTHW.std() > 0.1
    torch.testing.assert_close(
        torch.cat(chunks, dim=2), whole_BCTHW, rtol=0, atol=1e-3 * whole_BCTHW.abs().max().item()
    )


def test_every_layer_that_looks_along_time_matters_to_the_stream() -> None:
    """Without its memory each one gives another video, so the test above would see it missing."""
    network = tiny_network("cosmos")
    latents_BCTHW = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole_BCTHW = network.decode(latents_BCTHW).sample
        alone_BCTHW = torch.cat([network.decode(chunk).sample for chunk in latents_BCTHW.split(1, 2)], 2)
    assert (alone_BCTHW[:, :, :1] - whole_BCTHW[:, :, :1]).abs().max() < 1e-4
    assert (alone_BCTHW[:, :, 1] - whole_BCTHW[:, :, 1]).abs().max() > 0.05


def test_streams_of_one_network_do_not_meet_and_leave_it_as_it_was() -> None:
    vae = tiny_vae("cosmos")
    assert isinstance(vae, CosmosVae) and vae.streams
    latents_BTCHW = vae.encode(some_video(2, 9, 16, 16))
    one, two = (vae.decode_stream(latents_BTCHW[row : row + 1].split(1, dim=1)) for row in (0, 1))
    pairs = list(zip(one, two, strict=True))
    whole_BTHWC = vae.decode(latents_BTCHW)
    for row in (0, 1):
        streamed_BTHWC = torch.cat([pair[row] for pair in pairs], dim=1)
        assert (streamed_BTHWC.int() - whole_BTHWC[row : row + 1].int()).abs().max() <= 1
    assert [pair[0].shape[1] for pair in pairs] == [1, 4, 4]
    parameters = {id(parameter) for parameter in vae.network.parameters()}
    copied = CosmosStream(vae.network)._decoder.parameters()
    assert {id(parameter) for parameter in copied} <= parameters, "weights are shared"


def test_a_frame_is_there_before_the_next_latent_is_asked_for() -> None:
    vae, asked = tiny_vae("cosmos"), []
    latents_BTCHW = torch.randn(1, 3, 4, 2, 2)
    stream = vae.decode_stream(asked.append(t) or latents_BTCHW[:, t : t + 1] for t in range(3))  # type: ignore[func-returns-value]
    assert next(stream).shape[1] == 1 and asked == [0]
    assert next(stream).shape[1] == 4 and asked == [0, 1]


def test_the_posterior_is_a_point_and_the_classs_default_statistics_are_not_used() -> None:
    vae = tiny_vae("cosmos")
    assert len(vae.network.config.latents_mean) == 256, "numbers of another checkpoint, as the class has them"
    posterior = vae.posterior(some_video(1, 5, 16, 16))
    assert not posterior.std_BTCHW.any()
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(0)), posterior.mean_BTCHW)
    assert vae.published() is None
    other = tiny_vae("cosmos", latents_mean=None, latents_std=None)
    assert other.id == vae.id


@pytest.mark.slow
def test_the_real_tokenizer_takes_five_frames_and_streams_them() -> None:
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(0)
    vae = CosmosVae(AutoencoderKLCosmos(temporal_compression_ratio=4))
    assert (vae.channels, vae.spatial_stride, vae.temporal_stride, vae.latent_frames(17)) == (16, 8, 4, 5)
    parameters = sum(parameter.numel() for parameter in vae.network.parameters())
    assert 95e6 < parameters < 115e6, parameters
    latents_BTCHW = vae.encode(some_video(1, 5, 32, 32))
    assert latents_BTCHW.shape == (1, 2, 16, 4, 4)
    streamed_BTHWC = torch.cat(list(vae.decode_stream(latents_BTCHW.split(1, dim=1))), dim=1)
    assert (streamed_BTHWC.int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1
