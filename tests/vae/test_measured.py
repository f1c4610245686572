"""Claims: a measured normalisation lands where its adapter looks for it, with the id that was told."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from magi.config import VaeConfig
from magi.vae.adapters import load_vae
from magi.vae.measured import NormalizationPlace, normalization_place, put_normalization
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.shape import OmniShape
from tests.fakes.tiny_vaes import CLASSES, tiny_vae


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("named", [False, True])
def test_the_adapter_finds_what_was_put(name: str, named: bool, tmp_path: Path) -> None:
    tiny_vae(name).network.save_pretrained(tmp_path / "vae")
    config = VaeConfig.model_validate({"name": name, "weights": str(tmp_path / "vae")})
    chosen = tmp_path / "chosen.json" if named else None
    place = normalization_place(config, chosen)
    assert place == NormalizationPlace(chosen or tmp_path / "vae" / "normalization.json", there=False)
    vae = load_vae(config, unmeasured=True)
    mean, std = (0.5,) * vae.channels, (2.0,) * vae.channels
    identity = put_normalization(place, vae, mean, std, "a test")
    if named:
        config = config.model_copy(update={"normalization": str(chosen)})
    loaded = load_vae(config)
    assert loaded.id == identity != vae.id
    assert normalization_place(config, chosen) == NormalizationPlace(place.path, there=True)


def test_an_omni_keeps_it_in_its_own_folder(tmp_path: Path) -> None:
    OmniVae(OmniShape(channels=2, width=8, heads=2, head_width=4, window=2, temporal_depth=1)).save(tmp_path)
    config = VaeConfig(name="omni", weights=str(tmp_path))
    place = normalization_place(config)
    assert place == NormalizationPlace(tmp_path / "config.json", there=False)
    identity = put_normalization(place, load_vae(config, unmeasured=True), (0.5, 1.0), (2.0, 3.0), "a test")
    assert load_vae(config).id == identity
    assert normalization_place(config) == NormalizationPlace(tmp_path / "config.json", there=True)
    with pytest.raises(ValueError, match="omni keeps its normalisation itself"):
        normalization_place(config, tmp_path / "x.json")


def test_a_single_file_has_it_beside_itself(tmp_path: Path) -> None:
    save_file(tiny_vae("sd").network.state_dict(), tmp_path / "v1-4.safetensors")
    place = normalization_place(VaeConfig(name="sd", weights=str(tmp_path / "v1-4.safetensors")))
    assert place == NormalizationPlace(tmp_path / "v1-4.normalization.json", there=False)


def test_adapters_without_a_place_and_hub_ids_without_a_file() -> None:
    assert normalization_place(VaeConfig(name="pixel")) is None
    assert normalization_place(VaeConfig(name="small", weights="demo")) is None
    hub = VaeConfig(name="cosmos", weights="owner/name")
    with pytest.raises(ValueError, match=r"cosmos:owner/name: no such folder here; .* name a file"):
        normalization_place(hub)
    assert normalization_place(hub, Path("mine.json")) == NormalizationPlace(Path("mine.json"), there=False)
