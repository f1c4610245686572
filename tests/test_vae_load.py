"""Claim: the vae section of a config names an adapter, or the mistake in it is said in one line."""

from pathlib import Path

import pytest

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.vae.load import DEMO_FOLDER, load_vae
from magi.vae.pixel import PixelVae
from magi.vae.small import SmallVae, SmallVaeShape


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
