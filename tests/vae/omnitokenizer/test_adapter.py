"""Claims: normalised posterior means of whole clips, the order of tokens that leaks later frames, exact files."""

import json
import random
from pathlib import Path

import pytest
import torch

from magi.config import DataConfig
from magi.errors import CheckpointError
from magi.vae.contract import latent_shape
from magi.vae.normalization import Normalization
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.attention import grid_angles, rotate, window_offsets
from magi.vae.omnitokenizer.network import OmniNetwork, from_patches, to_patches
from magi.vae.omnitokenizer.shape import OmniShape
from magi.vae.omnitokenizer.transformer import PositionConvolution, tangle, untangle
from tests.fakes.omni_vectors import SMALL, network

MEAN, STD = (0.5, -1.0, 0.0, 0.25), (2.0, 1.0, 0.5, 0.75)
SHAPE = SMALL


@pytest.fixture(scope="module")
def vae() -> OmniVae:
    vae = OmniVae(SHAPE, network("small"))
    vae.normalize(Normalization(weights=vae.id, source="this test", mean=MEAN, std=STD))
    return vae


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randint(256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_latents_are_the_posterior_normalised_by_the_statistics(vae: OmniVae, video: torch.Tensor) -> None:
    posterior = vae.posterior(video)
    with torch.no_grad():
        moments = vae.network.moments(video.permute(0, 4, 1, 2, 3) / 255.0 - 0.5)
    for channel in range(4):
        mean = (moments.mean_BTCHW[:, :, channel] - MEAN[channel]) / STD[channel]
        std = (moments.log_variance_BTCHW[:, :, channel] / 2).exp() / STD[channel]
        torch.testing.assert_close(posterior.mean_BTCHW[:, :, channel], mean)
        torch.testing.assert_close(posterior.std_BTCHW[:, :, channel], std)
    assert torch.equal(vae.encode(video), posterior.mean_BTCHW)
    assert posterior.mean_BTCHW.shape == (2, 3, 4, 4, 4) and posterior.mean_BTCHW.dtype == torch.float32
    assert not posterior.mean_BTCHW.requires_grad


def test_log_variances_are_clamped_so_that_deviations_stay_finite(video: torch.Tensor) -> None:
    wide = OmniVae(SMALL)
    wide.network.to_moments.bias.copy_(torch.tensor([0.0] * 4 + [1e3, -1e3, 1e3, -1e3]))
    std_BTCHW = wide.posterior(video).std_BTCHW
    expected_C = torch.tensor([10.0, -15.0, 10.0, -15.0]).exp()
    torch.testing.assert_close(std_BTCHW, expected_C[:, None, None].expand_as(std_BTCHW))


def test_decode_undoes_the_normalisation_and_clamps_pixels_from_half_below_to_half_above(
    vae: OmniVae, video: torch.Tensor
) -> None:
    with torch.no_grad():
        raw_BTCHW = vae.network.moments(video.permute(0, 4, 1, 2, 3) / 255.0 - 0.5).mean_BTCHW
        pixels_BTHWC = vae.network.pixels(raw_BTCHW).permute(0, 2, 3, 4, 1)
    expected = (255 * (pixels_BTHWC + 0.5)).clamp(0, 255).round()
    decoded_BTHWC = vae.decode(vae.encode(video))
    assert decoded_BTHWC.shape == video.shape and decoded_BTHWC.dtype == torch.uint8
    assert (decoded_BTHWC.float() - expected).abs().max() <= 1
    assert (pixels_BTHWC < -0.5).any() and (pixels_BTHWC > 0.5).any()


@pytest.mark.parametrize("frames_per_batch", [1, 5, 9, 10])
def test_clips_do_not_know_each_other_or_the_size_of_a_batch(
    vae: OmniVae, video: torch.Tensor, frames_per_batch: int
) -> None:
    sizes: list[int] = []
    chunked = OmniVae(SHAPE, vae.network, vae.normalization, frames_per_batch)
    handle = vae.network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    latents_BTCHW = chunked.encode(video)
    handle.remove()
    assert max(sizes) == max(1, frames_per_batch // 5)
    torch.testing.assert_close(latents_BTCHW, vae.encode(video), rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.encode(video[1:]), latents_BTCHW[1:], rtol=0, atol=1e-5)
    assert (chunked.decode(latents_BTCHW).int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1


def test_later_frames_leak_into_the_first_latents_of_a_whole_clip(vae: OmniVae, video: torch.Tensor) -> None:
    other = video.clone()
    other[:, 3:] = 255 - other[:, 3:]
    change_BT = (vae.encode(other) - vae.encode(video)).square().mean((2, 3, 4)).sqrt()
    assert (change_BT[:, 0] > 0.01).all() and (change_BT[:, 1] > 0.01).all()


def test_the_tangled_order_is_the_only_leak(video: torch.Tensor) -> None:
    straight = OmniVae(SHAPE, OmniNetwork(SHAPE))
    straight.network.load_state_dict(network("small").state_dict())
    for module in straight.network.modules():
        if isinstance(module, PositionConvolution):
            module.tangled = False
    other = video.clone()
    other[:, 3:] = 255 - other[:, 3:]
    latents_BTCHW, others_BTCHW = straight.encode(video), straight.encode(other)
    assert torch.equal(latents_BTCHW[:, :2], others_BTCHW[:, :2])
    assert not torch.equal(latents_BTCHW[:, 2], others_BTCHW[:, 2])
    decoded_BTHWC = straight.decode(latents_BTCHW)
    assert (straight.decode(latents_BTCHW[:, :2]).int() - decoded_BTHWC[:, :3].int()).abs().max() <= 1


def test_latents_of_context_alone_do_not_depend_on_later_frames(vae: OmniVae, video: torch.Tensor) -> None:
    other = video.clone()
    other[:, 3:] = 255 - other[:, 3:]
    context_BTCHW = vae.encode(video[:, :3])
    assert torch.equal(context_BTCHW, vae.encode(other[:, :3]))
    whole_BTCHW = vae.encode(video)[:, :2]
    assert (context_BTCHW - whole_BTCHW).square().mean().sqrt() > 0.1  # not a part of the clip's latents


def test_a_clip_is_decoded_whole_since_later_latents_change_earlier_frames(vae: OmniVae, video: torch.Tensor) -> None:
    latents_BTCHW = vae.encode(video)
    whole_BTHWC = vae.decode(latents_BTCHW)
    assert not vae.streams
    asked: list[int] = []
    parts = vae.decode_stream(asked.append(t) or latents_BTCHW[:, t : t + 1] for t in range(3))  # type: ignore[func-returns-value]
    first = next(iter(parts))
    assert asked == [0, 1, 2] and torch.equal(first, whole_BTHWC)
    changed = latents_BTCHW.clone()
    changed[:, 2] += 1
    assert (vae.decode(changed)[:, 0].int() - whole_BTHWC[:, 0].int()).abs().max() > 1


def test_frame_counts_are_one_and_whole_groups(vae: OmniVae, video: torch.Tensor) -> None:
    real = OmniVae.latent_frames
    four = OmniVae(SMALL.model_copy(update={"temporal_patch": 4}))
    assert [real(four, frames) for frames in (1, 5, 9, 13, 17)] == [1, 2, 3, 4, 5]
    assert (four.temporal_stride, four.spatial_stride, four.channels) == (4, 4, 4)
    with pytest.raises(ValueError, match=r"16 frames: this autoencoder takes 1 \+ 4 k frames; use 13 or 17"):
        four.latent_frames(16)
    for frames in (0, -3):
        with pytest.raises(ValueError, match="use 1 or 5"):
            four.latent_frames(frames)
    with pytest.raises(ValueError, match="4 frames"):
        vae.encode(video[:, :4])


@pytest.mark.parametrize("frames", [1, 3, 7])
@pytest.mark.parametrize("side", [8, 24])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_of_every_clip_it_takes(vae: OmniVae, frames: int, side: int, batch: int) -> None:
    video_BTHWC = torch.zeros((batch, frames, side, side, 3), dtype=torch.uint8)
    latents_BTCHW = vae.encode(video_BTHWC)
    assert latents_BTCHW.shape == (batch, vae.latent_frames(frames), 4, side // 4, side // 4)
    assert vae.decode(latents_BTCHW).shape == video_BTHWC.shape
    assert torch.isfinite(latents_BTCHW).all()


@pytest.mark.parametrize("seed", range(6))
def test_networks_of_any_sizes_are_finite_alone_or_in_a_batch_and_come_back_from_disk(
    seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    heads, patch, window = draw.randint(1, 3), draw.randint(1, 4), draw.randint(1, 3)
    shape = OmniShape(
        channels=draw.randint(1, 5),
        patch=patch,
        temporal_patch=draw.randint(1, 4),
        width=heads * draw.randint(2, 6),
        heads=heads,
        head_width=4 * draw.randint(1, 3),
        encoder_blocks="".join(draw.choices("tw", k=draw.randint(1, 3))),
        decoder_blocks="".join(draw.choices("tw", k=draw.randint(1, 3))),
        temporal_depth=draw.randint(1, 2),
        window=window,
    )
    vae = OmniVae(shape)
    size = (2, 1 + shape.temporal_patch * draw.randint(0, 3), *[shape.size_step * draw.randint(1, 3)] * 2, 3)
    video_BTHWC = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    latents_BTCHW = vae.encode(video_BTHWC)
    assert torch.isfinite(latents_BTCHW).all() and vae.decode(latents_BTCHW).shape == video_BTHWC.shape
    torch.testing.assert_close(vae.encode(video_BTHWC[1:]), latents_BTCHW[1:], rtol=0, atol=1e-4)
    vae.save(tmp_path)
    assert torch.equal(OmniVae.load(tmp_path).encode(video_BTHWC), latents_BTCHW)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 3, 16, 8, 3), "height 16 x width 8: this autoencoder takes squares with a side divisible by 8; try 8 x 8"),
        ((1, 3, 12, 12, 3), "divisible by 8"),
        ((1, 3, 10, 10, 3), "must be divisible by the autoencoder's stride 4"),
        ((1, 3, 0, 0, 3), "must be divisible"),
        ((0, 3, 16, 16, 3), "at least one clip"),
        ((1, 3, 16, 16, 4), "3 channels"),
    ],
)
def test_videos_it_cannot_take(vae: OmniVae, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        vae.encode(torch.zeros(size, dtype=torch.uint8))
    assert "\n" not in str(raised.value)


def test_a_size_it_cannot_take_is_refused_before_any_video(vae: OmniVae) -> None:
    assert latent_shape(vae, DataConfig(frames=3, height=16, width=16)).width == 4
    with pytest.raises(ValueError, match="height 16 x width 8: this autoencoder takes squares"):
        latent_shape(vae, DataConfig(frames=3, height=16, width=8))
    with pytest.raises(ValueError, match="divisible by 8; try 16 x 16"):
        latent_shape(vae, DataConfig(frames=3, height=12, width=12))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 2, 3, 4, 4), "4 channels"),
        ((1, 0, 4, 4, 4), "at least one clip of one latent frame"),
        ((1, 2, 4, 4, 2), "squares"),
        ((1, 2, 4, 3, 3), "divisible by 8"),
        ((0, 2, 4, 4, 4), "at least one clip"),
    ],
)
def test_latents_it_cannot_take(vae: OmniVae, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.decode(torch.zeros(size))


def test_patches_hold_channel_frame_row_column_and_come_back_exactly() -> None:
    pixels_BCTHW = torch.arange(2 * 3 * 4 * 4 * 8.0).reshape(2, 3, 4, 4, 8)
    patches_BTHWV = to_patches(pixels_BCTHW, 2, 4)
    assert patches_BTHWV.shape == (2, 2, 1, 2, 3 * 2 * 4 * 4)
    assert torch.equal(patches_BTHWV[1, 1, 0, 1].reshape(3, 2, 4, 4), pixels_BCTHW[1, :, 2:4, :, 4:])
    assert torch.equal(from_patches(patches_BTHWV, 2, 4), pixels_BCTHW)


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 2, 2), (5, 4, 6)])
def test_the_tangle_puts_every_token_where_its_formula_says(size: tuple[int, int, int]) -> None:
    time, height, width = size
    tokens_BTHWD = torch.arange(2 * time * height * width).reshape(2, *size, 1)
    tangled = tangle(tokens_BTHWD)
    for t in range(time):
        for h in range(height):
            for w in range(width):
                flat = (h * width + w) * time + t
                cell = (flat // (height * width), flat % (height * width) // width, flat % width)
                assert tangled[1, *cell, 0] == tokens_BTHWD[1, t, h, w, 0]
    assert torch.equal(untangle(tangled), tokens_BTHWD)
    assert torch.equal(tangled, tokens_BTHWD) == (time == 1)


def test_rotations_keep_lengths_and_make_products_depend_on_offsets_alone() -> None:
    angles_NJ = grid_angles(3, 4, 8, torch.device("cpu"))
    vectors = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2)).expand(2, 1, 1, 12, 8)
    queries, keys = (rotate(part, angles_NJ)[0, 0] for part in vectors)
    torch.testing.assert_close(queries.norm(dim=-1), vectors[0].norm(dim=-1)[0, 0])
    products = (queries @ keys.transpose(-1, -2)).reshape(3, 4, 3, 4)
    torch.testing.assert_close(products[0, 1, 1, 3], products[1, 0, 2, 2])
    assert (products[0, 0, 0, 1] - products[0, 0, 1, 0]).abs() > 1e-3  # rows and columns are told apart


def test_window_offsets_number_every_offset_once() -> None:
    offsets_NN = window_offsets(3)
    assert offsets_NN.shape == (9, 9) and sorted(offsets_NN.unique().tolist()) == list(range(25))
    assert offsets_NN[0, 8] == 0 and offsets_NN[8, 0] == 24 and (offsets_NN.diagonal() == 12).all()


def test_files_come_back_exactly_with_the_same_id(vae: OmniVae, video: torch.Tensor, tmp_path: Path) -> None:
    vae.save(tmp_path / "omni")
    again = OmniVae.load(tmp_path / "omni", frames_per_batch=5)
    assert again.id == vae.id and again.shape == vae.shape and again.frames_per_batch == 5
    assert torch.equal(again.encode(video[:1]), vae.encode(video[:1]))
    assert sorted(path.name for path in (tmp_path / "omni").iterdir()) == [
        "config.json",
        "model.safetensors",
        "normalization.json",
    ]


def test_the_id_follows_weights_but_not_statistics_or_the_file_they_came_in(vae: OmniVae) -> None:
    other = OmniNetwork(SHAPE)
    assert vae.id.startswith("omni-") and OmniVae(SHAPE, other).id != vae.id
    assert OmniVae(SHAPE, vae.network).id == vae.id, "no statistics"
    assert OmniVae(SHAPE.model_copy(update={"source_sha256": "0" * 64}), vae.network).id == vae.id


def test_measured_statistics_make_unit_variance(vae: OmniVae, video: torch.Tensor) -> None:
    """Of latents as they are drawn: the variance of the means, and the mean of the variances around them."""
    measured = OmniVae(SHAPE, vae.network)
    assert not measured.measured
    measured.normalize(measured.measure(list(video.numpy()), "this test"))
    assert measured.measured
    posterior = measured.posterior(video)
    mean_CN, std_CN = (values.movedim(2, 0).flatten(1) for values in (posterior.mean_BTCHW, posterior.std_BTCHW))
    torch.testing.assert_close(mean_CN.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    variance_C = mean_CN.var(1, correction=0) + std_CN.square().mean(1)
    torch.testing.assert_close(variance_C, torch.ones(4), rtol=0, atol=1e-4)


def test_statistics_of_other_weights_or_channels_are_refused(vae: OmniVae) -> None:
    other = OmniVae(SHAPE)
    with pytest.raises(CheckpointError, match=r"measured with omni-.*the weights are omni-"):
        other.normalize(vae.normalization)
    with pytest.raises(CheckpointError, match="3 channels, the autoencoder 4"):
        other.normalize(Normalization(weights=other.id, source="this test", mean=(0.0,) * 3, std=(1.0,) * 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "small"}, "not a config that `magi vae import` writes"),
        ({"weights_sha256": None}, "not a config"),
        ({"weights_sha256": "0" * 64}, "do not have the hash"),
        ({"width": 48}, "another architecture"),
        ({"head_width": 6}, "multiple of 4"),
        ({"heads": 3}, "multiple of heads"),
        ({"encoder_blocks": "tx"}, "encoder_blocks"),
        ({"width": 10**9}, "width"),
        ({"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1, -1]}, "positive"),
        ({"colour": 1}, "colour: unknown key"),
    ],
)
def test_configs_that_do_not_fit_are_one_line(
    vae: OmniVae, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    vae.save(tmp_path)
    (tmp_path / "normalization.json").unlink()  # as in folders of earlier versions
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as raised:
        OmniVae.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_truncated_and_broken_files_are_refused(vae: OmniVae, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="magi vae import"):
        OmniVae.load(tmp_path)
    vae.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        OmniVae.load(tmp_path)
    broken = OmniVae(SHAPE)
    broken.network.to_moments.bias[0] = float("nan")
    broken.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"non-finite weights in to_moments\.bias"):
        OmniVae.load(tmp_path)
    with pytest.raises(ValueError, match="frames_per_batch 0"):
        OmniVae(SHAPE, vae.network, frames_per_batch=0)


@pytest.mark.slow
def test_the_real_configuration_encodes_and_decodes_a_clip(tmp_path: Path) -> None:
    real = OmniVae(OmniShape())
    real.save(tmp_path)
    vae = OmniVae.load(tmp_path)
    video_BTHWC = torch.randint(256, (1, 17, 128, 128, 3), dtype=torch.uint8)
    latents_BTCHW = vae.encode(video_BTHWC)
    assert latents_BTCHW.shape == (1, 5, 8, 16, 16) and torch.isfinite(latents_BTCHW).all()
    assert vae.decode(latents_BTCHW).shape == video_BTHWC.shape
    assert (vae.id, vae.spatial_stride, vae.temporal_stride, vae.channels) == (real.id, 8, 4, 8)
    with pytest.raises(ValueError, match="divisible by 64"):
        vae.encode(torch.zeros((1, 1, 96, 96, 3), dtype=torch.uint8))
