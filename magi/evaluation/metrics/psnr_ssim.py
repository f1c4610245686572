"""PSNR and SSIM of every frame against the true one.

Frames are uint8 RGB on the scale 0..1. PSNR is that of one frame (infinite where it is exact: count those, do not cap
them). SSIM (Wang et al. 2004) is the mean over RGB and over the windows that lie wholly inside the frame, Gaussian
11 x 11 of sigma 1.5, k = (0.01, 0.03); padding the border, as some libraries do, is another number. Means over frames
and clips are the caller's. Knows no models and no files.
"""

import torch
from torch import Tensor
from torch.nn import functional

from magi.evaluation.metrics.checks import check_pair

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
_GREY = (0.2125, 0.7154, 0.0721)
_CHUNK = 64  # frames at a time


def psnr(real_BTHWC: Tensor, generated_BTHWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B, T) float64; ``ValueError`` where the videos are not two of one size."""
    check_pair(real_BTHWC, generated_BTHWC)
    error_BTHWC = (real_BTHWC.double() - generated_BTHWC.double()) / 255
    return -10 * error_BTHWC.square().mean((2, 3, 4)).log10()


def ssim(real_BTHWC: Tensor, generated_BTHWC: Tensor, *, grey: bool = False) -> Tensor:
    """Structural similarity, (B, T) float64: mean over RGB, or of the grey frames; valid windows only.

    ``ValueError`` where the videos are not two of one size, or smaller than the window.
    """
    check_pair(real_BTHWC, generated_BTHWC)
    batch, frames, height, width = real_BTHWC.shape[:4]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, got {height} x {width}")
    real_FHWC, generated_FHWC = real_BTHWC.flatten(0, 1), generated_BTHWC.flatten(0, 1)
    parts = zip(real_FHWC.split(_CHUNK), generated_FHWC.split(_CHUNK), strict=True)
    return torch.cat([_ssim(_planes(real, grey), _planes(generated, grey)) for real, generated in parts]).view(
        batch, frames
    )


def _planes(frames_FHWC: Tensor, grey: bool) -> Tensor:
    """Planes_FCHW float64 on the scale 0..1: three colours, or one of grey."""
    planes_FHWC = frames_FHWC.double() / 255
    if grey:
        planes_FHWC = (planes_FHWC * torch.tensor(_GREY, dtype=torch.float64)).sum(-1, keepdim=True)
    return planes_FHWC.movedim(-1, 1)


def _ssim(real_FCHW: Tensor, generated_FCHW: Tensor) -> Tensor:
    mean_real, mean_generated = _blurred(real_FCHW), _blurred(generated_FCHW)
    variance_real = _blurred(real_FCHW.square()) - mean_real.square()
    variance_generated = _blurred(generated_FCHW.square()) - mean_generated.square()
    covariance = _blurred(real_FCHW * generated_FCHW) - mean_real * mean_generated
    light = (2 * mean_real * mean_generated + K1**2) / (mean_real.square() + mean_generated.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance_real + variance_generated + K2**2)
    return (light * structure).mean((1, 2, 3))


def _blurred(planes_FCHW: Tensor) -> Tensor:
    """Gaussian window sums at every place where the window lies inside the frame."""
    offsets_K = torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2
    weights_K = torch.exp(-offsets_K.square() / (2 * SIGMA**2))
    weights_K = weights_K / weights_K.sum()
    channels = planes_FCHW.shape[1]
    down = weights_K.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    across = weights_K.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    return functional.conv2d(functional.conv2d(planes_FCHW, down, groups=channels), across, groups=channels)
