"""Claims: latents are normalised posterior means, independent of batching; files come back exactly or are refused."""

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi.errors import CheckpointError
from magi.vae.diffusers.small import (
    SmallVae,
    SmallVaeShape,
    build_network,
    measured_shape,
    network_to_pixels,
    pixels_to_network,
    weights_hash,
)

SHAPE = SmallVaeShape(channels=3, patch=2, widths=(8, 16), latents_mean=(0.5, -1.0, 0.0), latents_std=(2.0, 1.0, 0.5))


@pytest.fixture(scope="module")
def vae() -> SmallVae:
    return SmallVae(SHAPE)


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randint(256, (2, 3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_patches_fold_into_channels_and_back_exactly() -> None:
    video_NHWC = torch.randint(256, (2, 8, 12, 3), dtype=torch.uint8)
    images_NCHW = pixels_to_network(video_NHWC, 2)
    assert images_NCHW.shape == (2, 12, 4, 6) and images_NCHW.abs().max() <= 1
    assert torch.equal(network_to_pixels(images_NCHW, 2), video_NHWC)


def test_latents_are_the_posterior_mean_normalised_by_the_statistics(vae: SmallVae, video: torch.Tensor) -> None:
    latents_BTCHW = vae.encode(video)
    with torch.no_grad():
        mean_NCHW = vae.network.encode(pixels_to_network(video.flatten(0, 1), 2)).latent_dist.mode()
    for channel, (mean, std) in enumerate(zip(SHAPE.latents_mean, SHAPE.latents_std, strict=True)):
        expected = (mean_NCHW[:, channel] - mean) / std
        torch.testing.assert_close(latents_BTCHW[:, :, channel].flatten(0, 1), expected)
    assert latents_BTCHW.shape == (2, 3, 3, 4, 6) and latents_BTCHW.dtype == torch.float32
    assert not latents_BTCHW.requires_grad


def test_decode_undoes_the_normalisation(vae: SmallVae, video: torch.Tensor) -> None:
    with torch.no_grad():
        raw_NCHW = vae.network.encode(pixels_to_network(video.flatten(0, 1), 2)).latent_dist.mean
        expected = network_to_pixels(vae.network.decode(raw_NCHW).sample, 2)
    decoded_BTHWC = vae.decode(vae.encode(video))
    assert decoded_BTHWC.dtype == torch.uint8 and decoded_BTHWC.shape == video.shape
    assert (decoded_BTHWC.flatten(0, 1).int() - expected.int()).abs().max() <= 1


def test_chunks_and_neighbours_in_the_batch_do_not_matter(vae: SmallVae, video: torch.Tensor) -> None:
    chunked = SmallVae(SHAPE, vae.network, frames_per_batch=4)
    latents_BTCHW = vae.encode(video)
    torch.testing.assert_close(chunked.encode(video), latents_BTCHW, rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.encode(video[1:, 2:]), latents_BTCHW[1:, 2:], rtol=0, atol=1e-5)
    assert (chunked.decode(latents_BTCHW).int() - vae.decode(latents_BTCHW).int()).abs().max() <= 1
    with pytest.raises(ValueError, match="frames_per_batch 0"):
        SmallVae(SHAPE, vae.network, frames_per_batch=0)
    with pytest.raises(ValueError, match="at least one frame"):
        vae.encode(video[:, :0])


def test_measured_statistics_make_unit_variance(vae: SmallVae, video: torch.Tensor) -> None:
    raw = SmallVae(SHAPE.model_copy(update={"latents_mean": (), "latents_std": ()}), vae.network)
    shape = measured_shape(raw.shape, (raw.encode(clip[None])[0] for clip in video))
    latents_CN = SmallVae(shape, vae.network).encode(video).permute(2, 0, 1, 3, 4).flatten(1)
    torch.testing.assert_close(latents_CN.mean(1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents_CN.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-4)


def test_a_saved_autoencoder_comes_back_equal_to_the_bit(vae: SmallVae, video: torch.Tensor, tmp_path: Path) -> None:
    vae.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = SmallVae.load(tmp_path)
    assert again.shape == SHAPE and again.id == vae.id
    assert torch.equal(again.encode(video), vae.encode(video))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_identity_follows_weights_and_statistics(vae: SmallVae) -> None:
    other = SHAPE.model_copy(update={"latents_std": (2.0, 1.0, 0.6)})
    assert SmallVae(other, vae.network).id != vae.id
    assert SmallVae(SHAPE, build_network(SHAPE, seed=1)).id != vae.id == SmallVae(SHAPE).id
    state = vae.network.state_dict()
    assert weights_hash(state) == weights_hash(dict(reversed(list(state.items()))))


def test_building_and_encoding_leave_the_global_generator_alone(vae: SmallVae, video: torch.Tensor) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    SmallVae(SHAPE)
    assert torch.equal(vae.encode(video), vae.encode(video))
    assert torch.equal(before, torch.get_rng_state())


class Bomb:
    """A pickle of this would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_explode, (str(self.path),))


def _explode(path: str) -> None:
    Path(path).write_text("code ran", encoding="utf-8")


def break_file(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    if how == "pickle":
        weights.write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    elif how == "zip":
        torch.save({"a": torch.zeros(1)}, weights)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "bit":
        data = bytearray(weights.read_bytes())
        data[-1000] ^= 1
        weights.write_bytes(bytes(data))
    elif how == "not json":
        config.write_text("{", encoding="utf-8")
    elif how == "list":
        config.write_text("[]", encoding="utf-8")
    elif how == "foreign":
        config.write_text('{"_class_name": "AutoencoderKL"}', encoding="utf-8")
    else:
        key, value = how.split("=")
        config.write_text(json.dumps(values | {key: json.loads(value)}), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle", "model.safetensors: a pickle"),
        ("zip", "model.safetensors: a pickle or zip"),
        ("truncated", "model.safetensors: damaged"),
        ("empty", "model.safetensors: not a safetensors file"),
        ("no weights", "model.safetensors: no such"),
        ("no config", "config.json: no such file"),
        ("bit", "model.safetensors: .*hash"),
        ("not json", "config.json: damaged"),
        ("list", "config.json: damaged"),
        ("foreign", "config.json: not the config of a small autoencoder"),
        ("widths=[8, 24]", "another architecture"),
        ("widths=[8, 20]", "config.json: .*norm_groups"),
        ("widths=[8, 16, 16]", "another architecture"),
        ("latents_std=[1, 1]", "latents_std must be 3"),
        ("latents_std=[1, 1, 0]", "latents_std must be positive"),
        ("latents_mean=[1, 1, NaN]", "latents_mean must be 3 finite"),
        ("width=[8, 16]", "did you mean 'widths'"),
        ('name="pixel"', "not the config of a small autoencoder"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_line(vae: SmallVae, tmp_path: Path, how: str, said: str) -> None:
    vae.save(tmp_path)
    break_file(tmp_path, how)
    with pytest.raises(CheckpointError, match=said) as caught:
        SmallVae.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists(), "a pickle was run"


def test_wrong_names_and_non_finite_weights_are_refused(vae: SmallVae, tmp_path: Path) -> None:
    vae.save(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    first = min(state)
    save_file({name if name != first else "other": tensor for name, tensor in state.items()}, path)
    with pytest.raises(CheckpointError, match=f"another architecture.*{first} missing"):
        SmallVae.load(tmp_path)
    save_file(state | {first: torch.full_like(state[first], float("nan"))}, path)
    with pytest.raises(CheckpointError, match=f"non-finite.*{first}"):
        SmallVae.load(tmp_path)


def test_saving_again_replaces_both_files(vae: SmallVae, tmp_path: Path) -> None:
    vae.save(tmp_path)
    other = SmallVae(SHAPE, build_network(SHAPE, seed=3))
    other.save(tmp_path)
    assert SmallVae.load(tmp_path).id == other.id
