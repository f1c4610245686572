"""Claims: patches fold into channels exactly, building draws nothing from outside; files are refused in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi.errors import CheckpointError
from magi.vae.diffusers.small import (
    SmallVae,
    SmallVaeShape,
    build_network,
    network_to_pixels,
    pixels_to_network,
)
from magi.weights import weights_hash

SHAPE = SmallVaeShape(channels=3, patch=2, widths=(8, 16))


@pytest.fixture(scope="module")
def vae() -> SmallVae:
    return SmallVae(SHAPE)


def test_weights_have_one_hash_in_any_order(vae: SmallVae) -> None:
    state = vae.network.state_dict()
    assert weights_hash(state) == weights_hash(dict(reversed(list(state.items()))))


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randint(256, (2, 3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_patches_fold_into_channels_and_back_exactly() -> None:
    video_NHWC = torch.randint(256, (2, 8, 12, 3), dtype=torch.uint8)
    images_NCHW = pixels_to_network(video_NHWC, 2)
    assert images_NCHW.shape == (2, 12, 4, 6) and images_NCHW.abs().max() <= 1
    assert torch.equal(network_to_pixels(images_NCHW, 2), video_NHWC)


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
        ("foreign", "config.json: not a config that `magi train-vae` writes"),
        ("widths=[8, 24]", "another architecture"),
        ("widths=[8, 20]", "config.json: .*norm_groups"),
        ("widths=[8, 16, 16]", "another architecture"),
        ("width=[8, 16]", "did you mean 'widths'"),
        ('name="pixel"', "not a config that `magi train-vae` writes"),
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
