"""Claim: space to depth is exact both ways, and a latent holds the pixels of its own block alone."""

import json
from pathlib import Path

import pytest
import torch

from magi.vae.pixel import PixelVae


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_every_pixel_value_survives_the_round_trip(stride: int) -> None:
    vae = PixelVae(stride)
    video_BTHWC = torch.randint(256, (2, 3, 16, 24, 3), dtype=torch.uint8)
    video_BTHWC.view(-1)[:256] = torch.arange(256)
    latents_BTCHW = vae.encode(video_BTHWC)
    assert latents_BTCHW.shape == (2, 3, 3 * stride**2, 16 // stride, 24 // stride)
    assert latents_BTCHW.dtype == torch.float32
    assert latents_BTCHW.min() == -1 and latents_BTCHW.max() == 1
    assert torch.equal(vae.decode(latents_BTCHW), video_BTHWC)


def test_a_pixel_moves_only_the_latent_of_its_block() -> None:
    vae = PixelVae(4)
    video_BTHWC = torch.zeros(1, 2, 8, 12, 3, dtype=torch.uint8)
    video_BTHWC[0, 1, 5, 10, 2] = 255
    changed_BTHW = (vae.encode(video_BTHWC) != -1).any(2)
    assert changed_BTHW.nonzero().tolist() == [[0, 1, 1, 2]]


def test_latents_out_of_range_are_clamped() -> None:
    decoded = PixelVae(1).decode(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 1, 3, 1, 1))
    assert decoded.flatten().tolist() == [0, 255, 128]


def test_the_identity_names_the_stride_and_the_folder_says_it_too(tmp_path: Path) -> None:
    vae = PixelVae(8)
    vae.save(tmp_path / "vae")
    assert vae.id == "pixel-8" and vae.to("cpu") is vae and vae.latent_frames(7) == 7
    assert json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8")) == {"name": "pixel", "stride": 8}
    assert vae.fixed and vae.measured, "its latents need no statistics"


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_stride 0"):
        PixelVae(0)
