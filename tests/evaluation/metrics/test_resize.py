"""Claims: the kernels are the functions that their names mean in other libraries, and only one antialiases."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magi.evaluation.metrics.resize import RESIZE_KERNELS, ResizeKernel, resize_bilinear
from tests.fakes.network_cases import CASES, assert_like, synthetic_video


def images(name: str, height: int, width: int) -> torch.Tensor:
    return synthetic_video(name, 1, height, width).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("case", CASES["resize"], ids=lambda case: f"{case['in_hw']}-{case['out_hw']}-{case['kernel']}")
def test_kernels_give_the_published_functions_values(case: dict[str, Any]) -> None:
    resized = resize_bilinear(images(case["input"], *case["in_hw"]), *case["out_hw"], case["kernel"])
    assert_like(resized, case["out"], tolerance=2e-3)


def test_tf1_halving_is_every_second_pixel_and_half_pixel_halving_the_mean_of_four() -> None:
    picture = images("resize", 128, 128)
    assert torch.equal(resize_bilinear(picture, 64, 64, "tf1"), picture[:, :, ::2, ::2])
    means = torch.nn.functional.avg_pool2d(picture, 2)
    torch.testing.assert_close(resize_bilinear(picture, 64, 64, "half_pixel"), means)


@pytest.mark.parametrize("kernel", RESIZE_KERNELS)
def test_constants_and_equal_sizes_come_back_as_they_are(kernel: ResizeKernel) -> None:
    picture = images("resize", 20, 31)
    assert torch.equal(resize_bilinear(picture, 20, 31, kernel), picture)
    grey = torch.full((1, 3, 20, 31), 93.0)
    for size in ((7, 9), (64, 80)):
        torch.testing.assert_close(resize_bilinear(grey, *size, kernel), torch.full((1, 3, *size), 93.0))


def test_only_antialiased_sees_every_pixel_when_it_shrinks() -> None:
    """To a quarter, two taps an axis miss lines that a widened kernel takes in; a Pillow resize is the oracle."""
    stripes = torch.zeros(1, 1, 32, 32)
    stripes[..., ::4] = 240.0
    pillow = Image.fromarray(stripes[0, 0].to(torch.uint8).numpy()).resize((8, 8), Image.Resampling.BILINEAR)
    small = resize_bilinear(stripes, 8, 8, "antialiased")
    torch.testing.assert_close(small[0, 0], torch.from_numpy(np.array(pillow)).float(), rtol=0, atol=1.01)
    assert small.mean() > 55 and not resize_bilinear(stripes, 8, 8, "half_pixel").any()


def test_tf1_starts_at_the_corner_and_half_pixel_at_the_centre() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_bilinear(ramp, 4, 8, "tf1")[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resize_bilinear(ramp, 4, 8, "half_pixel")[0, 0, 0].tolist() == expected


def test_rows_and_columns_are_not_exchanged() -> None:
    picture = images("resize", 12, 17)
    for kernel in RESIZE_KERNELS:
        turned = resize_bilinear(picture.transpose(2, 3).contiguous(), 40, 30, kernel)
        torch.testing.assert_close(resize_bilinear(picture, 30, 40, kernel), turned.transpose(2, 3), rtol=0, atol=1e-4)


def test_what_it_cannot_resize_is_one_line() -> None:
    picture = images("resize", 8, 8)
    for bad, size, kernel, words in (
        (picture.to(torch.uint8), (4, 4), "tf1", "floating point"),
        (picture[0], (4, 4), "tf1", "NCHW"),
        (picture, (0, 4), "tf1", "cannot resize"),
        (picture, (4, 4), "bicubic", "half_pixel, tf1"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            resize_bilinear(bad, *size, kernel)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
