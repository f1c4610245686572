"""Claim: the vae section of a config names an adapter, or the mistake in it is said in one line."""

from pathlib import Path
from typing import get_args

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.files import DEMO_FOLDER
from magi.vae.adapters import ADAPTERS, load_vae, named_vae
from magi.vae.diffusers.small import SmallVae, SmallVaeShape
from magi.vae.omnitokenizer.shape import OmniShape
from magi.vae.pixel import PixelVae
from tests.fakes.tiny_vaes import CLASSES, any_tiny_vae, some_normalization, tiny_vae


def test_the_pixel_adapter_takes_its_stride() -> None:
    vae = load_vae(VaeConfig(name="pixel", pixel_stride=4))
    assert isinstance(vae, PixelVae) and vae.spatial_stride == 4


def test_the_small_adapter_takes_its_folder_and_batch(tmp_path: Path) -> None:
    saved = SmallVae(SmallVaeShape(widths=(8,)))
    saved.save(tmp_path)
    vae = load_vae(VaeConfig(name="small", weights=str(tmp_path), frames_per_batch=3))
    assert isinstance(vae, SmallVae) and vae.id == saved.id and vae.frames_per_batch == 3


def test_weights_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pixel adapter has no weights"):
        load_vae(VaeConfig(name="pixel", weights="demo"))
    with pytest.raises(ValueError, match="needs a folder"):
        load_vae(VaeConfig(name="small"))
    with pytest.raises(CheckpointError, match="no such file"):
        load_vae(VaeConfig(name="small", weights=str(tmp_path / "missing")))


@pytest.mark.skipif(not DEMO_FOLDER.is_dir(), reason="the shipped model is not there")
def test_demo_names_the_shipped_autoencoder() -> None:
    vae = load_vae(VaeConfig(name="small", weights="demo"))
    assert vae.spatial_stride == 8 and vae.id.startswith("small-")


@pytest.mark.parametrize("name", ["sd", "cosmos", "ltx", "omni"])
def test_pretrained_weights_must_be_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^vae.weights.*{name} adapter needs a folder"):
        load_vae(VaeConfig.model_validate({"name": name}))


@pytest.mark.parametrize("weights", ["nowhere", "no/such/folder/../../x", "/no/such/folder", "a b/c"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused_without_the_network(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(ValueError, match=r"no such folder or file; expected one, or a hub id owner/name"):
        load_vae(VaeConfig(name="cosmos", weights=weights))


def test_a_hub_id_may_name_a_folder_in_it_and_only_safe_files_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, asked = tiny_vae("sd"), []
    vae.normalize(some_normalization(vae))
    vae.save(tmp_path / "vae")

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_vae(VaeConfig(name="sd", weights="owner/name-1.4/vae")).id == vae.id
    names = ["config.json", "diffusion_pytorch_model.safetensors", "normalization.json"]
    assert asked == [("owner/name-1.4", [f"vae/{name}" for name in names])]

    def missing(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not here\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ValueError, match=r"^owner/other: no such folder, and the hub did not provide it \(not here\)$"):
        load_vae(VaeConfig(name="sd", weights="owner/other"))


def test_one_word_names_an_adapter_and_its_weights(tmp_path: Path) -> None:
    assert named_vae("pixel") == VaeConfig(name="pixel")
    assert named_vae("pixel:4") == VaeConfig(name="pixel", pixel_stride=4)
    assert named_vae("demo") == VaeConfig(name="small", weights="demo")
    assert named_vae("sd:owner/name/vae") == VaeConfig(name="sd", weights="owner/name/vae")
    for name in CLASSES:
        tiny_vae(name).save(tmp_path / name)
        assert named_vae(str(tmp_path / name)) == VaeConfig.model_validate(
            {"name": name, "weights": str(tmp_path / name)}
        )
    SmallVae(SmallVaeShape(widths=(8,))).save(tmp_path / "small")
    assert named_vae(str(tmp_path / "small")).name == "small"


def test_the_table_and_the_config_name_the_same_adapters() -> None:
    assert set(ADAPTERS) == set(get_args(VaeConfig.model_fields["name"].annotation))
    for name, adapter in ADAPTERS.items():
        assert adapter.load_class().name == name


@pytest.mark.parametrize("name", ["sd", "cosmos", "omni", "ltx"])
def test_published_sizes_are_those_of_the_classes(name: str) -> None:
    """As far as a small network says: strides follow from the structure, and channels for omni."""
    size, vae = ADAPTERS[name].size, any_tiny_vae(name)
    assert size is not None and (size.spatial_stride, size.temporal_stride) == (
        vae.spatial_stride,
        vae.temporal_stride,
    )
    shape = OmniShape()
    if name == "omni":
        assert (size.channels, size.square_step) == (shape.channels, shape.size_step)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nowhere", "nowhere: no such folder; expected one of an autoencoder.*small, sd, cosmos, omni, ltx"),
        ("sd", "sd: name the weights too"),
        ("cosmos:", "cosmos:: name the weights too"),
        ("pixel:two", "expected pixel:STRIDE"),
        ("pixel:0", "expected pixel:STRIDE"),
        ("{empty}", "no config.json; expected the folder of an autoencoder"),
        ("{other}", r"no autoencoder that is known \(AutoencoderKLWan\)"),
    ],
)
def test_words_that_name_none_are_refused(word: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}', encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        named_vae(word.format(empty=tmp_path / "empty", other=tmp_path / "other"))
    assert "\n" not in str(caught.value)
