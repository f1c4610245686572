"""Claims, for every pretrained adapter: latents are normalised by what was measured, the id follows everything that
matters, files come back to the bit or are refused in one line, lengths and sizes are never padded in silence."""

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.vae.adapters import load_vae
from magi.vae.normalization import Normalization, write_normalization
from magi.vae.normalized import PretrainedVae, to_network, to_video
from tests.fakes.tiny_vaes import CLASSES, some_video, tiny_network, tiny_vae

NAMES = list(CLASSES)
SIZE = {"sd": (3, 16, 24), "cosmos": (5, 16, 24), "ltx": (9, 32, 64)}
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


@pytest.fixture(scope="module")
def vaes() -> dict[str, PretrainedVae]:
    return {name: tiny_vae(name) for name in NAMES}


def measured(vae: PretrainedVae) -> Normalization:
    return Normalization(
        weights=vae.weights_id,
        source="a test",
        mean=tuple(0.1 * channel for channel in range(vae.channels)),
        std=tuple(0.5 + channel for channel in range(vae.channels)),
    )


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    video_BTHWC = some_video(2, 3, 4, 5)
    assert to_network(video_BTHWC).shape == (2, 3, 3, 4, 5) and to_network(video_BTHWC).abs().max() <= 1
    assert torch.equal(to_video(to_network(video_BTHWC)), video_BTHWC)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_the_networks_normalised_channel_by_channel(name: str, vaes: dict[str, PretrainedVae]) -> None:
    raw, video_BTHWC = vaes[name], some_video(2, *SIZE[name])
    vae = type(raw)(raw.network, measured(raw))
    posterior, plain = vae.posterior(video_BTHWC), raw.posterior(video_BTHWC)
    for channel, (mean, std) in enumerate(zip(vae.normalization.mean, vae.normalization.std, strict=True)):
        torch.testing.assert_close(
            posterior.mean_BTCHW[:, :, channel] * std + mean, plain.mean_BTCHW[:, :, channel], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(posterior.std_BTCHW[:, :, channel] * std, plain.std_BTCHW[:, :, channel])
    assert torch.equal(vae.encode(video_BTHWC), posterior.mean_BTCHW)
    expected = (
        2,
        vae.latent_frames(SIZE[name][0]),
        vae.channels,
        *(side // vae.spatial_stride for side in SIZE[name][1:]),
    )
    assert posterior.mean_BTCHW.shape == posterior.std_BTCHW.shape == expected
    assert posterior.mean_BTCHW.dtype == torch.float32 and posterior.mean_BTCHW.is_contiguous()
    again_BTHWC = vae.decode(vae.encode(video_BTHWC))
    assert again_BTHWC.shape == video_BTHWC.shape and again_BTHWC.dtype == torch.uint8
    difference = again_BTHWC.int() - raw.decode(raw.encode(video_BTHWC)).int()
    assert difference.abs().max() <= 1, "decode undoes the normalisation"
    assert again_BTHWC.float().std() > 5, "the tiny network draws something"


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_in_the_batch_and_its_size_do_not_matter(name: str, vaes: dict[str, PretrainedVae]) -> None:
    vae, video_BTHWC = vaes[name], some_video(3, *SIZE[name])
    one = type(vae)(vae.network, frames_per_batch=1)
    latents_BTCHW = vae.encode(video_BTHWC)
    torch.testing.assert_close(one.encode(video_BTHWC[1:]), latents_BTCHW[1:], rtol=1e-4, atol=1e-4)
    assert (one.decode(latents_BTCHW).int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1
    with pytest.raises(ValueError, match="frames_per_batch 0"):
        type(vae)(vae.network, frames_per_batch=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_follows_weights_architecture_and_normalisation(name: str, vaes: dict[str, PretrainedVae]) -> None:
    vae = vaes[name]
    assert vae.id.startswith(f"{name}-") and tiny_vae(name).id == vae.id
    assert tiny_vae(name, seed=1).id != vae.id
    other = type(vae)(vae.network, measured(vae))
    assert other.id != vae.id and other.weights_id == vae.weights_id
    changed = {"sd": {"act_fn": "relu"}, "cosmos": {"resolution": 128}, "ltx": {"encoder_causal": False}}[name]
    assert tiny_vae(name, **changed).weights_id != vae.weights_id, "the same weights in another network"
    with pytest.raises(CheckpointError, match=f"measured with {vae.weights_id}, the weights are"):
        type(vae)(tiny_network(name, seed=1), measured(vae))
    short = measured(vae).model_copy(update={"mean": (0.0,), "std": (1.0,)})
    with pytest.raises(CheckpointError, match=f"1 channels, the autoencoder {vae.channels}"):
        type(vae)(vae.network, short)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_comes_back_to_the_bit(name: str, vaes: dict[str, PretrainedVae], tmp_path: Path) -> None:
    raw = vaes[name]
    vae = type(raw)(raw.network, measured(raw))
    before = torch.random.get_rng_state()
    vae.save(tmp_path / "vae")
    again = load_vae(VaeConfig(name=name, weights=str(tmp_path / "vae"), frames_per_batch=7))  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(again, type(vae)) and again.id == vae.id and again.frames_per_batch == 7
    assert again.normalization == vae.normalization
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == [CONFIG, WEIGHTS, "normalization.json"]
    video_BTHWC = some_video(1, *SIZE[name])
    assert torch.equal(again.encode(video_BTHWC), vae.encode(video_BTHWC))
    unmeasured = load_vae(VaeConfig(name=name, weights=str(tmp_path / "vae")), unmeasured=True)  # type: ignore[arg-type]
    assert unmeasured.id == raw.id


def test_half_precision_weights_are_read_as_they_are(vaes: dict[str, PretrainedVae], tmp_path: Path) -> None:
    vaes["ltx"].network.save_pretrained(tmp_path)
    state = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(state, tmp_path / WEIGHTS)
    vae = type(vaes["ltx"]).load(str(tmp_path), unmeasured=True)
    assert all(parameter.dtype == torch.float32 for parameter in vae.network.parameters())
    assert torch.equal(vae.network.encoder.conv_in.conv.weight, state["encoder.conv_in.conv.weight"].float())


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("sd", {1: 1, 16: 16}, (0,)),
        ("cosmos", {1: 1, 5: 2, 17: 5}, (0, 4, 16, 18)),
        ("ltx", {1: 1, 9: 2, 17: 3}, (0, 5)),
    ],
)
def test_frame_counts(name: str, good: dict[int, int], bad: tuple[int, ...], vaes: dict[str, PretrainedVae]) -> None:
    vae = vaes[name]
    for frames, latents in good.items():
        assert vae.latent_frames(frames) == latents
    for frames in bad:
        with pytest.raises(ValueError, match=rf"^{frames} frames: {name} takes 1 \+ a multiple of .*; take \d"):
            vae.latent_frames(frames)
        with pytest.raises(ValueError):
            vae.encode(some_video(1, frames, 32, 32))
    side = vae.spatial_stride + 4
    with pytest.raises(ValueError, match=f"height {side}.*stride {vae.spatial_stride}"):
        vae.encode(some_video(1, 1, side, 32))
    with pytest.raises(ValueError, match="channels"):
        vae.decode(torch.zeros(1, 1, vae.channels + 1, 2, 2))
    with pytest.raises(ValueError, match="at least one latent frame"):
        vae.decode(torch.zeros(1, 0, vae.channels, 2, 2))


def test_published_values_are_used_and_said_where_none_were_measured(
    vaes: dict[str, PretrainedVae], tmp_path: Path
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
    with pytest.warns(UserWarning, match="vae ltx: .* using the published mean and deviation in the weight file"):
        published = load_vae(VaeConfig(name="ltx", weights=str(tmp_path / "ltx")))
    video_BTHWC, mean_C11 = some_video(1, *SIZE["ltx"]), (torch.arange(6) / 4)[:, None, None]
    torch.testing.assert_close(published.encode(video_BTHWC), (vaes["ltx"].encode(video_BTHWC) - mean_C11) / 2)


@pytest.mark.parametrize("name", ["cosmos", "ltx"])
def test_without_any_normalisation_a_pretrained_one_is_refused(
    name: str, vaes: dict[str, PretrainedVae], tmp_path: Path
) -> None:
    vaes[name].network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no normalization.json.*magi vae check {name}:") as caught:
        load_vae(VaeConfig(name=name, weights=str(tmp_path)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_named_normalisation_goes_first_and_must_belong(vaes: dict[str, PretrainedVae], tmp_path: Path) -> None:
    vae = vaes["sd"]
    vae.network.save_pretrained(tmp_path)
    write_normalization(tmp_path / "normalization.json", measured(vae))
    named = measured(vae).model_copy(update={"std": (9.0,) * vae.channels})
    write_normalization(tmp_path / "mine.json", named)
    config = VaeConfig(name="sd", weights=str(tmp_path), normalization=str(tmp_path / "mine.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_vae(config)
        beside = load_vae(config.model_copy(update={"normalization": ""}))
    assert isinstance(loaded, PretrainedVae) and loaded.normalization == named
    assert isinstance(beside, PretrainedVae) and beside.normalization == measured(vae) and beside.id != loaded.id
    write_normalization(tmp_path / "mine.json", named.model_copy(update={"weights": "sd-000000000000"}))
    with pytest.raises(CheckpointError, match=r"mine\.json: measured with sd-000000000000, these weights are"):
        load_vae(config)
    (tmp_path / "mine.json").unlink()
    with pytest.raises(CheckpointError, match=r"mine\.json: no such normalisation file"):
        load_vae(config)


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
    vaes: dict[str, PretrainedVae], tmp_path: Path, how: str, said: str
) -> None:
    vaes["cosmos"].save(tmp_path)
    break_folder(tmp_path, how)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_vae(VaeConfig(name="cosmos", weights=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists(), "a pickle was run"
