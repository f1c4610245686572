"""PSNR and SSIM of every frame against the true one.

Frames are uint8 RGB on the scale 0..1. PSNR is that of one frame (infinite where it is exact: count those, do not cap
them). SSIM (Wang et al. 2004) is the mean over RGB and over the windows that lie wholly inside the frame, Gaussian
11 x 11 of sigma 1.5, k = (0.01, 0.03); padding the border, as some libraries do, is another number. Means over frames
and clips are the caller's. Knows no models and no files.
"""

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
_GREY = (0.2125, 0.7154, 0.0721)
_CHUNK = 64  # frames at a time


def psnr(real_BTHWC: Tensor, made_BTHWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B, T) float64; ``ValueError`` where the videos are not two of one size."""
    check_pair(real_BTHWC, made_BTHWC)
    error_BTHWC = (real_BTHWC.double() - made_BTHWC.double()) / 255
    return -10 * error_BTHWC.square().mean((2, 3, 4)).log10()


def ssim(real_BTHWC: Tensor, made_BTHWC: Tensor, *, grey: bool = False) -> Tensor:
    """Structural similarity, (B, T) float64: mean over RGB, or of the grey frames; valid windows only.

    ``ValueError`` where the videos are not two of one size, or smaller than the window.
    """
    check_pair(real_BTHWC, made_BTHWC)
    batch, frames, height, width = real_BTHWC.shape[:4]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, got {height} x {width}")
    real_FHWC, made_FHWC = real_BTHWC.flatten(0, 1), made_BTHWC.flatten(0, 1)
    parts = zip(real_FHWC.split(_CHUNK), made_FHWC.split(_CHUNK), strict=True)
    return torch.cat([_ssim(_planes(real, grey), _planes(made, grey)) for real, made in parts]).view(batch, frames)


def check_pair(real_BTHWC: Tensor, made_BTHWC: Tensor) -> None:
    """Refuse, with a ``ValueError``, anything but two uint8 RGB videos of one size."""
    for name, video in (("real", real_BTHWC), ("made", made_BTHWC)):
        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(f"{name}: expected video_BTHWC of uint8 RGB, got {tuple(video.shape)} of {video.dtype}")
    if real_BTHWC.shape != made_BTHWC.shape:
        raise ValueError(
            f"frames are compared one with one, got videos {tuple(real_BTHWC.shape)} and {tuple(made_BTHWC.shape)}"
        )


def _planes(frames_FHWC: Tensor, grey: bool) -> Tensor:
    """Planes_FCHW float64 on the scale 0..1: three colours, or one of grey."""
    planes_FHWC = frames_FHWC.double() / 255
    if grey:
        planes_FHWC = (planes_FHWC * torch.tensor(_GREY, dtype=torch.float64)).sum(-1, keepdim=True)
    return planes_FHWC.movedim(-1, 1)


def _ssim(real_FCHW: Tensor, made_FCHW: Tensor) -> Tensor:
    mean_real, mean_made = _blurred(real_FCHW), _blurred(made_FCHW)
    variance_real = _blurred(real_FCHW.square()) - mean_real.square()
    variance_made = _blurred(made_FCHW.square()) - mean_made.square()
    covariance = _blurred(real_FCHW * made_FCHW) - mean_real * mean_made
    light = (2 * mean_real * mean_made + K1**2) / (mean_real.square() + mean_made.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance_real + variance_made + K2**2)
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
