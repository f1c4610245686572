"""Claims about every adapter: whitened posterior means, whatever the batch; an id of the weights alone; exact files.

Lengths and sizes are never padded in silence. Damaged or foreign folders of diffusers are refused in one line.
"""

import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.vae.adapters import ADAPTERS, load_vae
from magi.vae.diffusers.adapter import to_network, to_video
from magi.vae.diffusers.small import pixels_to_network
from magi.vae.normalization import write_normalization
from magi.vae.normalized import NormalizedVae
from tests.fakes.tiny_vaes import any_tiny_vae, some_normalization, some_video, tiny_network, tiny_vae

NAMES = list(ADAPTERS)
LEARNED = [name for name in NAMES if name != "pixel"]
SIZE = {
    "pixel": (3, 16, 24),
    "small": (3, 16, 24),
    "sd": (3, 16, 24),
    "cosmos": (5, 16, 24),
    "omni": (5, 32, 32),
    "ltx": (9, 32, 64),
}
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


@pytest.fixture(scope="module")
def vaes() -> dict[str, NormalizedVae]:
    """In the units of their networks."""
    return {name: any_tiny_vae(name) for name in NAMES}


@pytest.fixture(scope="module")
def whitened() -> dict[str, NormalizedVae]:
    """The same weights, with statistics."""
    made = {name: any_tiny_vae(name) for name in NAMES}
    for vae in made.values():
        vae.normalize(some_normalization(vae))
    return made


def config_of(name: str, folder: Path) -> VaeConfig:
    return VaeConfig.model_validate({"name": name, "weights": str(folder)})


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    video_BTHWC = some_video(2, 3, 4, 5)
    assert to_network(video_BTHWC).shape == (2, 3, 3, 4, 5) and to_network(video_BTHWC).abs().max() <= 1
    assert torch.equal(to_video(to_network(video_BTHWC)), video_BTHWC)


def network_posterior(vae: NormalizedVae, video_BTHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (B, T, C, H, W) as the network itself gives them, written down once more."""
    images_BCTHW = video_BTHWC.permute(0, 4, 1, 2, 3) / 127.5 - 1
    if vae.name == "pixel":
        mean_BTCHW = vae.encode(video_BTHWC)
        return mean_BTCHW, torch.zeros_like(mean_BTCHW)
    if vae.name == "omni":
        moments = vae.network.moments(images_BCTHW / 2)
        return moments.mean_BTCHW, (moments.log_variance_BTCHW / 2).exp()
    if vae.temporal_stride == 1:
        images_NCHW = images_BCTHW.transpose(1, 2).flatten(0, 1)
        if vae.name == "small":
            images_NCHW = pixels_to_network(video_BTHWC.flatten(0, 1), 2)
        posterior, lead = vae.network.encode(images_NCHW).latent_dist, video_BTHWC.shape[:2]
        return posterior.mean.unflatten(0, lead), posterior.var.sqrt().unflatten(0, lead)
    posterior = vae.network.encode(images_BCTHW).latent_dist
    mean_BCTHW = posterior.mode()
    std_BCTHW = posterior.var.sqrt() if vae.name == "ltx" else torch.zeros_like(mean_BCTHW)
    return mean_BCTHW.transpose(1, 2), std_BCTHW.transpose(1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_the_networks_whitened_channel_by_channel(
    name: str, vaes: dict[str, NormalizedVae], whitened: dict[str, NormalizedVae]
) -> None:
    raw, vae, video_BTHWC = vaes[name], whitened[name], some_video(2, *SIZE[name])
    posterior, plain = vae.posterior(video_BTHWC), vae.posterior_raw(video_BTHWC)
    with torch.no_grad():
        expected_mean, expected_std = network_posterior(raw, video_BTHWC)
    torch.testing.assert_close(plain.mean_BTCHW, expected_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.std_BTCHW, expected_std, rtol=1e-4, atol=1e-4)
    assert bool(plain.std_BTCHW.any()) == (name not in ("pixel", "cosmos"))
    assert torch.equal(raw.encode(video_BTHWC), plain.mean_BTCHW), "without statistics nothing changes"
    for channel, (mean, std) in enumerate(zip(vae.normalization.mean, vae.normalization.std, strict=True)):
        torch.testing.assert_close(
            posterior.mean_BTCHW[:, :, channel] * std + mean, plain.mean_BTCHW[:, :, channel], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(posterior.std_BTCHW[:, :, channel] * std, plain.std_BTCHW[:, :, channel])
    assert torch.equal(vae.encode(video_BTHWC), posterior.mean_BTCHW)
    expected = (2, vae.latent_frames(SIZE[name][0]), vae.channels, *(s // vae.spatial_stride for s in SIZE[name][1:]))
    assert posterior.mean_BTCHW.shape == posterior.std_BTCHW.shape == expected
    assert posterior.mean_BTCHW.dtype == torch.float32 and posterior.mean_BTCHW.is_contiguous()
    assert not posterior.mean_BTCHW.requires_grad
    again_BTHWC = vae.decode(vae.encode(video_BTHWC))
    assert again_BTHWC.shape == video_BTHWC.shape and again_BTHWC.dtype == torch.uint8
    difference = again_BTHWC.int() - raw.decode(raw.encode(video_BTHWC)).int()
    assert difference.abs().max() <= 1, "decode undoes the whitening"
    assert again_BTHWC.float().std() > 5, "the tiny network draws something"


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_in_the_batch_and_its_size_do_not_matter(name: str, vaes: dict[str, NormalizedVae]) -> None:
    vae, one, video_BTHWC = vaes[name], any_tiny_vae(name), some_video(3, *SIZE[name])
    one.frames_per_batch = 1
    latents_BTCHW = vae.encode(video_BTHWC)
    torch.testing.assert_close(one.encode(video_BTHWC[1:]), latents_BTCHW[1:], rtol=1e-4, atol=1e-4)
    assert (one.decode(latents_BTCHW).int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1
    for empty in (video_BTHWC[:0], video_BTHWC[:, :0]):
        with pytest.raises(ValueError, match=r"at least one clip|^0 frames"):
            vae.encode(empty)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_the_whole_clip(name: str, whitened: dict[str, NormalizedVae]) -> None:
    vae = whitened[name]
    latents_BTCHW = vae.encode(some_video(2, *SIZE[name]))
    streamed = list(vae.decode_stream(latents_BTCHW.split(1, dim=1)))
    assert (len(streamed) > 1) == vae.streams == (name not in ("omni", "ltx"))
    assert (torch.cat(streamed, dim=1).int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1


@pytest.mark.parametrize("name", LEARNED)
def test_the_identity_is_that_of_the_weights_alone(name: str, vaes: dict[str, NormalizedVae]) -> None:
    vae, again, other = vaes[name], any_tiny_vae(name), any_tiny_vae(name, seed=1)
    assert vae.id.startswith(f"{name}-") and again.id == vae.id != other.id
    again.normalize(some_normalization(vae))
    assert again.id == vae.id, "statistics are not part of it"
    with pytest.raises(CheckpointError, match=f"measured with {vae.id}, the weights are {other.id}"):
        other.normalize(some_normalization(vae))
    short = some_normalization(vae).model_copy(update={"mean": (0.0,), "std": (1.0,)})
    with pytest.raises(CheckpointError, match=f"1 channels, the autoencoder {vae.channels}"):
        vae.normalize(short)


@pytest.mark.parametrize("name", ["sd", "cosmos", "ltx"])
def test_the_same_weights_in_another_network_have_another_identity(name: str, vaes: dict[str, NormalizedVae]) -> None:
    changed = {"sd": {"act_fn": "relu"}, "cosmos": {"resolution": 128}, "ltx": {"encoder_causal": False}}[name]
    assert tiny_vae(name, **changed).id != vaes[name].id
    with pytest.raises(ValueError, match="frames_per_batch 0"):
        type(vaes[name])(vaes[name].network, frames_per_batch=0)


@pytest.mark.parametrize("name", LEARNED)
def test_what_was_saved_comes_back_to_the_bit(name: str, whitened: dict[str, NormalizedVae], tmp_path: Path) -> None:
    vae = whitened[name]
    before = torch.random.get_rng_state()
    vae.save(tmp_path / "vae")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_vae(config_of(name, tmp_path / "vae").model_copy(update={"frames_per_batch": 7}))
    assert torch.equal(torch.random.get_rng_state(), before) or name == "omni"
    assert isinstance(again, type(vae)) and again.id == vae.id and again.frames_per_batch == 7
    assert again.normalization == vae.normalization and again.measured
    weights = "model.safetensors" if name in ("small", "omni") else WEIGHTS
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == sorted([CONFIG, weights, "normalization.json"])
    video_BTHWC = some_video(1, *SIZE[name])
    assert torch.equal(again.encode(video_BTHWC), vae.encode(video_BTHWC))


@pytest.mark.parametrize("name", NAMES)
def test_measured_statistics_give_unit_variance_to_what_is_drawn(name: str) -> None:
    vae = any_tiny_vae(name)
    videos = [some_video(*SIZE[name], seed=seed).numpy() for seed in range(3)]
    vae.normalize(vae.measure(videos, "three clips"))
    posteriors = [vae.posterior(torch.from_numpy(video_THWC)[None]) for video_THWC in videos]
    mean_CN = torch.cat([part.mean_BTCHW.movedim(2, 0).flatten(1) for part in posteriors], 1).double()
    std_CN = torch.cat([part.std_BTCHW.movedim(2, 0).flatten(1) for part in posteriors], 1).double()
    torch.testing.assert_close(mean_CN.mean(1), torch.zeros(vae.channels).double(), rtol=0, atol=1e-4)
    variance_C = mean_CN.var(1, correction=0) + std_CN.square().mean(1)
    torch.testing.assert_close(variance_C, torch.ones(vae.channels).double(), rtol=0, atol=1e-3)
    assert vae.normalization.source == "three clips" and vae.measured


def test_half_precision_weights_are_read_as_they_are(vaes: dict[str, NormalizedVae], tmp_path: Path) -> None:
    vaes["ltx"].network.save_pretrained(tmp_path)
    state = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(state, tmp_path / WEIGHTS)
    vae = load_vae(VaeConfig(name="ltx", weights=str(tmp_path)))
    assert all(parameter.dtype == torch.float32 for parameter in vae.network.parameters())
    assert torch.equal(vae.network.encoder.conv_in.conv.weight, state["encoder.conv_in.conv.weight"].float())


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("sd", {1: 1, 16: 16}, (0,)),
        ("cosmos", {1: 1, 5: 2, 17: 5}, (0, 4, 16, 18)),
        ("omni", {1: 1, 5: 2, 9: 3, 13: 4, 17: 5}, (0, -3, 16)),
        ("ltx", {1: 1, 9: 2, 17: 3}, (0, 5)),
    ],
)
def test_frame_counts(name: str, good: dict[int, int], bad: tuple[int, ...], vaes: dict[str, NormalizedVae]) -> None:
    vae = vaes[name]
    for frames, latents in good.items():
        assert vae.latent_frames(frames) == latents
    for frames in bad:
        with pytest.raises(ValueError, match=rf"^{frames} frames: this autoencoder takes 1 \+ \d k frames; use \d"):
            vae.latent_frames(frames)
        with pytest.raises(ValueError):
            vae.encode(some_video(1, max(frames, 0), 32, 32))
    side = vae.spatial_stride + 4
    with pytest.raises(ValueError, match=f"height {side}.*stride {vae.spatial_stride}"):
        vae.encode(some_video(1, 1, side, 32))
    with pytest.raises(ValueError, match="channels"):
        vae.decode(torch.zeros(1, 1, vae.channels + 1, 2, 2))
    with pytest.raises(ValueError, match="one latent frame"):
        vae.decode(torch.zeros(1, 0, vae.channels, 2, 2))


def test_published_values_are_used_and_said_where_none_were_measured(
    vaes: dict[str, NormalizedVae], tmp_path: Path
) -> None:
    vaes["sd"].network.save_pretrained(tmp_path / "sd")
    with pytest.warns(
        UserWarning, match=r"vae sd: no measured normalisation, using the published scaling factor 0.18215"
    ):
        sd = load_vae(VaeConfig(name="sd", weights=str(tmp_path / "sd")))
    video_BTHWC = some_video(1, *SIZE["sd"])
    torch.testing.assert_close(sd.encode(video_BTHWC), vaes["sd"].encode(video_BTHWC) * 0.18215)
    ltx = tiny_network("ltx")
    ltx.latents_mean += torch.arange(6) / 4
    ltx.latents_std *= 2
    ltx.save_pretrained(tmp_path / "ltx")
    with pytest.warns(UserWarning, match="vae ltx: .* using the published mean and standard deviation in the"):
        published = load_vae(VaeConfig(name="ltx", weights=str(tmp_path / "ltx")))
    video_BTHWC, mean_C11 = some_video(1, *SIZE["ltx"]), (torch.arange(6) / 4)[:, None, None]
    torch.testing.assert_close(published.encode(video_BTHWC), (vaes["ltx"].encode(video_BTHWC) - mean_C11) / 2)


@pytest.mark.parametrize("name", ["cosmos", "ltx", "omni"])
def test_without_any_statistics_latents_are_the_networks_and_that_is_known(
    name: str, vaes: dict[str, NormalizedVae], tmp_path: Path
) -> None:
    any_tiny_vae(name).save(tmp_path)
    assert not (tmp_path / "normalization.json").exists()
    loaded = load_vae(config_of(name, tmp_path))
    assert not loaded.measured and loaded.normalization == loaded.raw_units() == vaes[name].normalization


def test_the_named_normalisation_goes_first_and_must_belong(vaes: dict[str, NormalizedVae], tmp_path: Path) -> None:
    vae = vaes["sd"]
    vae.save(tmp_path)
    saved = some_normalization(vae)
    write_normalization(tmp_path / "normalization.json", saved)
    named = saved.model_copy(update={"std": (9.0,) * vae.channels})
    write_normalization(tmp_path / "mine.json", named)
    config = VaeConfig(name="sd", weights=str(tmp_path), normalization=str(tmp_path / "mine.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_vae(config).normalization == named
        assert load_vae(config.model_copy(update={"normalization": ""})).normalization == saved
    write_normalization(tmp_path / "mine.json", named.model_copy(update={"weights": "sd-000000000000"}))
    with pytest.raises(CheckpointError, match=r"measured with sd-000000000000, the weights are"):
        load_vae(config)
    (tmp_path / "mine.json").unlink()
    with pytest.raises(CheckpointError, match=r"mine\.json: no such normalisation file"):
        load_vae(config)


@pytest.mark.parametrize("name", ["small", "omni"])
def test_folders_with_statistics_in_their_config_still_load(
    name: str, vaes: dict[str, NormalizedVae], tmp_path: Path
) -> None:
    """As earlier versions wrote them."""
    vae, found = any_tiny_vae(name), some_normalization(vaes[name])
    vae.save(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))

    def load(mean: Sequence[float], std: Sequence[float]) -> NormalizedVae:
        older = json.dumps(values | {"latents_mean": mean, "latents_std": std})
        (tmp_path / CONFIG).write_text(older, encoding="utf-8")
        return load_vae(config_of(name, tmp_path))

    loaded = load(found.mean, found.std)
    assert loaded.id == vae.id and (loaded.normalization.mean, loaded.normalization.std) == (found.mean, found.std)
    assert not load([], []).measured
    for mean, std, line in (
        (found.mean, found.std[1:], "mean has"),
        (found.mean, (*found.std[1:], 0), "std must be positive"),
        ((*found.mean[1:], float("nan")), found.std, "finite"),
    ):
        with pytest.raises(CheckpointError, match=line) as caught:
            load(mean, std)
        assert "\n" not in str(caught.value)


class Explosive:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def break_folder(folder: Path, how: str) -> None:
    weights, config = folder / WEIGHTS, folder / CONFIG
    values = json.loads(config.read_text(encoding="utf-8"))
    if how == "pickle":
        weights.write_bytes(pickle.dumps(Explosive(folder / "exploded")))
    elif how == "only a pickle":
        weights.unlink()
        (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Explosive(folder / "exploded")))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "not json":
        config.write_text("{", encoding="utf-8")
    elif how == "inner":
        (folder / "vae").mkdir()
        config.rename(folder / "vae" / CONFIG)
    elif how == "tensor gone":
        state = load_file(weights)
        state.pop(min(state))
        save_file(state, weights)
    elif how == "nan":
        state = load_file(weights)
        save_file(state | {min(state): torch.full_like(state[min(state)], float("nan"))}, weights)
    else:
        key, value = how.split("=")
        config.write_text(json.dumps(values | {key: json.loads(value)}), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle", f"{WEIGHTS}: a pickle"),
        ("only a pickle", f"no {WEIGHTS}; diffusion_pytorch_model.bin is a pickle, which is refused"),
        ("truncated", f"{WEIGHTS}: damaged"),
        ("no weights", f"no {WEIGHTS}$"),
        ("no config", "no config.json; expected the folder of a diffusers autoencoder$"),
        ("inner", "no config.json; .*use its folder vae"),
        ("not json", "config.json: damaged"),
        ("tensor gone", f"{WEIGHTS}: weights of another architecture: decoder.* missing"),
        ("nan", f"{WEIGHTS}: non-finite weights in decoder"),
        ('_class_name="AutoencoderKL"', "config of AutoencoderKL, not of AutoencoderKLCosmos; use --vae.name sd"),
        ('_class_name="AutoencoderKLWan"', "config of AutoencoderKLWan, not of .*; give other weights"),
        ("_class_name=null", "config of no diffusers class"),
        ("latent_channels=3", "another architecture"),
        ('latent_channels="x"', "config.json: describes no AutoencoderKLCosmos"),
        ("decode_block_out_channels=[]", "config.json: describes no AutoencoderKLCosmos"),
        ('patch_type="wave"', "config.json: describes no AutoencoderKLCosmos"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_line(
    vaes: dict[str, NormalizedVae], tmp_path: Path, how: str, said: str
) -> None:
    vaes["cosmos"].save(tmp_path)
    break_folder(tmp_path, how)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_vae(VaeConfig(name="cosmos", weights=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists(), "a pickle was run"
