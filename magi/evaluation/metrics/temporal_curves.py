"""How a video changes along its frames: the drift curve of the paper's Figure 8, and brightness, sharpness, motion.

The paper plots the mean L2 distance between adjacent frames against the frame number, for generated videos and for real
ones at several frame intervals: a model that drifts leaves the real curves, one that freezes falls below them. All
values are a number a clip and frame, so that bands can be drawn by resampling clips. Knows no models and no files.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

INTERVALS = (1, 2, 4, 8)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Band:
    """A mean over clips at every frame, and its 95% bootstrap interval over clips."""

    mean_T: Tensor
    low_T: Tensor
    high_T: Tensor


def adjacent_l2(video_BTHWC: Tensor) -> Tensor:
    """Root mean square over pixels and colours of the change from each frame to the next, 0..1; (B, T-1) float64.

    The plain Euclidean norm is this times sqrt(3 H W); grey levels are this times 255.
    """
    _check(video_BTHWC, 2)
    changes = [
        (after.double() - before.double()).square().mean((1, 2, 3)).sqrt() / 255
        for before, after in zip(video_BTHWC[:, :-1].unbind(1), video_BTHWC[:, 1:].unbind(1), strict=True)
    ]
    return torch.stack(changes, dim=1)


def brightness(video_BTHWC: Tensor) -> Tensor:
    """Mean grey level of every frame, 0..1; (B, T) float64."""
    _check(video_BTHWC, 1)
    return torch.stack([frame.double().mean((1, 2, 3)) / 255 for frame in video_BTHWC.unbind(1)], dim=1)


def sharpness(video_BTHWC: Tensor) -> Tensor:
    """Root mean square of the Laplacian of every grey frame on the scale 0..1; (B, T) float64. Blur lowers it."""
    _check(video_BTHWC, 1)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    found = []
    for frame_BHWC in video_BTHWC.unbind(1):
        laplacian = functional.conv2d(_grey(frame_BHWC)[:, None], kernel)
        found.append(laplacian.square().mean((1, 2, 3)).sqrt())
    return torch.stack(found, dim=1)


def motion(video_BTHWC: Tensor) -> Tensor:
    """Speed across edges in pixels a frame: summed change over summed gradient of the grey frames; (B, T-1) float64.

    Contrast and the size of what moves cancel, unlike in ``adjacent_l2``; a frame without edges has motion 0.
    """
    _check(video_BTHWC, 2)
    found = []
    grey = [_grey(frame_BHWC) for frame_BHWC in video_BTHWC.unbind(1)]
    for before_BHW, after_BHW in pairwise(grey):
        middle_BHW = (before_BHW + after_BHW) / 2
        across = (middle_BHW[:, 1:-1, 2:] - middle_BHW[:, 1:-1, :-2]) / 2
        down = (middle_BHW[:, 2:, 1:-1] - middle_BHW[:, :-2, 1:-1]) / 2
        gradient_B = torch.hypot(across, down).sum((1, 2))
        change_B = (after_BHW - before_BHW)[:, 1:-1, 1:-1].abs().sum((1, 2))
        found.append(torch.where(gradient_B > 0, change_B / gradient_B.clamp_min(1e-12), 0.0))
    return torch.stack(found, dim=1)


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "adjacent_l2": adjacent_l2,
    "brightness": brightness,
    "sharpness": sharpness,
    "motion": motion,
}
"""Name -> values_BT of video_BTHWC."""


def band(values_BT: Tensor, seed: int = 0) -> Band:
    """Mean over clips at every frame, with the 2.5% and 97.5% quantiles of the means of resampled clips."""
    if values_BT.ndim != 2 or not values_BT.numel():
        raise ValueError(f"expected values_BT of at least one clip and frame, got {tuple(values_BT.shape)}")
    values_BT = values_BT.double()
    clips = len(values_BT)
    picked_RB = torch.randint(clips, (_RESAMPLES, clips), generator=torch.Generator().manual_seed(seed))
    # How often each clip is drawn, as a matrix: the means of all resamples are then one product.
    counts_RB = torch.zeros(_RESAMPLES, clips, dtype=torch.float64).scatter_add_(
        1, picked_RB, torch.ones(_RESAMPLES, clips, dtype=torch.float64)
    )
    means_RT = counts_RB @ values_BT / clips
    low_T, high_T = torch.quantile(means_RT, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Band(values_BT.mean(0), low_T, high_T)


def drift_ratio(made_BT: Tensor, real_BT: Tensor, seed: int = 0) -> Band:
    """Mean of the made values over mean of the real ones at every frame, with a bootstrap band over clips of both."""
    generator = torch.Generator().manual_seed(seed)
    frames = min(made_BT.shape[1], real_BT.shape[1])
    made_BT, real_BT = made_BT[:, :frames].double(), real_BT[:, :frames].double()

    def drawn(values_BT: Tensor) -> Tensor:
        picked_RB = torch.randint(len(values_BT), (_RESAMPLES, len(values_BT)), generator=generator)
        return torch.stack([values_BT[picked_B].mean(0) for picked_B in picked_RB])

    ratios_RT = drawn(made_BT) / drawn(real_BT)
    low_T, high_T = torch.quantile(ratios_RT, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Band(made_BT.mean(0) / real_BT.mean(0), low_T, high_T)


def curves_to_json(bands: Mapping[str, Band]) -> dict[str, dict[str, list[float | None]]]:
    """Bands as lists of numbers, for a results file; what is not finite (a ratio to no change at all) is None."""
    return {
        name: {
            key: [round(value, 6) if math.isfinite(value) else None for value in values_T.tolist()]
            for key, values_T in (("mean", one.mean_T), ("low", one.low_T), ("high", one.high_T))
        }
        for name, one in bands.items()
    }


def _grey(frame_BHWC: Tensor) -> Tensor:
    return frame_BHWC.double().mean(-1) / 255


def _check(video_BTHWC: Tensor, frames: int) -> None:
    if video_BTHWC.dtype != torch.uint8 or video_BTHWC.ndim != 5 or video_BTHWC.shape[-1] != 3:
        raise ValueError(f"expected video_BTHWC of uint8 RGB, got {tuple(video_BTHWC.shape)} of {video_BTHWC.dtype}")
    if video_BTHWC.shape[1] < frames:
        raise ValueError(f"expected videos of at least {frames} frames, got {video_BTHWC.shape[1]}")
