"""PSNR and SSIM of frames, against torchmetrics and against what they must be."""

import pytest
import torch
from torch import Tensor

from magi.evaluation.metrics.psnr_ssim import WINDOW, psnr, ssim


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (2, 3, 24, 20, 3), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-40, 41, real.shape, generator=generator)
    return real, (real.int() + noise).clamp(0, 255).to(torch.uint8)


def planes(video_BTHWC: Tensor) -> Tensor:
    return video_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).double() / 255


def test_psnr_is_that_of_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    real, made = pair
    expected = peak_signal_noise_ratio(
        planes(made), planes(real), data_range=1.0, reduction="none", dim=(1, 2, 3)
    ).view(2, 3)
    torch.testing.assert_close(psnr(real, made), expected.double())


def test_ssim_is_torchmetrics_on_windows_inside_the_frame(pair: tuple[Tensor, Tensor]) -> None:
    """torchmetrics pads the border by reflection; away from it both must agree, and the padded mean must not."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    real, made = pair
    border = WINDOW // 2
    padded_B, full = structural_similarity_index_measure(
        planes(made), planes(real), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = full[..., border:-border, border:-border].mean((1, 2, 3)).view(2, 3)
    torch.testing.assert_close(ssim(real, made), inside.double(), rtol=1e-6, atol=1e-6)
    assert full.shape[-2:] == real.shape[2:4] and not torch.allclose(full.mean((1, 2, 3)).view(2, 3), inside, atol=1e-4)
    assert len(padded_B) == 6


def test_exact_frames_are_infinite_and_one(pair: tuple[Tensor, Tensor]) -> None:
    real, made = pair
    half = made.clone()
    half[:, 1] = real[:, 1]
    assert psnr(real, half).isinf().tolist() == [[False, True, False]] * 2
    torch.testing.assert_close(ssim(real, half)[:, 1], torch.ones(2).double())


def test_known_error_has_its_decibels() -> None:
    real = torch.full((1, 2, 16, 16, 3), 100, dtype=torch.uint8)
    made = real.clone()
    made[0, 1] = 110
    assert float(psnr(real, made)[0, 1]) == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), abs=1e-4)


def test_a_frame_is_judged_alone(pair: tuple[Tensor, Tensor]) -> None:
    real, made = pair
    for metric in (psnr, ssim):
        whole = metric(real, made)
        torch.testing.assert_close(metric(real[1:, 2:], made[1:, 2:])[0, 0], whole[1, 2])


def test_grey_ssim_does_not_see_colour_swaps_of_equal_grey(pair: tuple[Tensor, Tensor]) -> None:
    real, made = pair
    grey = real.double().mul(torch.tensor([0.2125, 0.7154, 0.0721]).double()).sum(-1, keepdim=True)
    grey = grey.round().to(torch.uint8).expand_as(real).contiguous()
    assert float(ssim(real, grey, grey=True).min()) > 0.99 > float(ssim(real, grey).max())
    assert not torch.allclose(ssim(real, made), ssim(real, made, grey=True))


def test_what_does_not_fit_is_refused(pair: tuple[Tensor, Tensor]) -> None:
    real, made = pair
    with pytest.raises(ValueError, match="one with one"):
        psnr(real, made[:, :2])
    with pytest.raises(ValueError, match="generated: expected"):
        ssim(real, made.float())
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(real[:, :, :10], made[:, :, :10])
