"""How a video changes along its frames: the drift curve of the paper's Figure 8, and brightness, sharpness, motion.

The paper plots the mean L2 distance between adjacent frames against the frame number, for generated videos and for real
ones at several frame intervals: a model that drifts leaves the real curves, one that freezes falls below them. All
values are one number for each clip and frame, so that intervals can be drawn by resampling clips
(magi.evaluation.metrics.bootstrap). Knows no models and no files.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from magi.evaluation.metrics.checks import check_video

INTERVALS = (1, 2, 4, 8)


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


def _grey(frame_BHWC: Tensor) -> Tensor:
    return frame_BHWC.double().mean(-1) / 255


def _check(video_BTHWC: Tensor, frames: int) -> None:
    check_video(video_BTHWC)
    if video_BTHWC.shape[1] < frames:
        raise ValueError(f"expected videos of at least {frames} frames, got {video_BTHWC.shape[1]}")
