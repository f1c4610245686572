"""Bilinear resizes as named kernels: the same words mean different functions in different libraries.

``half_pixel`` samples at (i + 1/2) in/out - 1/2, clamped at 0 (torch's ``interpolate`` without aligned corners);
``tf1`` samples at i in/out (TensorFlow 1's ``resize_bilinear``: the origin is the corner of the first pixel). Both use
two taps an axis, also when they shrink: neither antialiases. ``antialiased`` is half_pixel with taps that widen as it
shrinks (Pillow's, and torchvision's ``Resize`` by default). Scores by different kernels do not compare, so every
protocol names its own. Knows no network and no protocol.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

ResizeKernel = Literal["half_pixel", "tf1", "antialiased"]
RESIZE_KERNELS: tuple[ResizeKernel, ...] = get_args(ResizeKernel)


def resize_bilinear(images_NCHW: Tensor, height: int, width: int, kernel: ResizeKernel) -> Tensor:
    """Return float32 images of ``height`` x ``width`` by the named kernel; equal sizes come back as they are.

    ``ValueError`` for another kernel, for sizes below 1, and for images that are not floating point (a uint8 image
    would be rounded on the way).
    """
    if images_NCHW.ndim != 4 or not images_NCHW.is_floating_point():
        raise ValueError(f"images must be floating point NCHW, got {images_NCHW.dtype} {tuple(images_NCHW.shape)}")
    if min(height, width, *images_NCHW.shape[2:]) < 1:
        raise ValueError(f"cannot resize {tuple(images_NCHW.shape[2:])} to {height}x{width}")
    if kernel in ("half_pixel", "antialiased"):
        return functional.interpolate(
            images_NCHW, size=(height, width), mode="bilinear", align_corners=False, antialias=kernel == "antialiased"
        )
    if kernel == "tf1":
        return _along(_along(images_NCHW, 3, width), 2, height)
    raise ValueError(f"resize kernel {kernel!r}; known: {', '.join(RESIZE_KERNELS)}")


def _along(images_NCHW: Tensor, axis: int, wanted: int) -> Tensor:
    low, high, fraction = _corner_taps(images_NCHW.shape[axis], wanted, images_NCHW)
    first = images_NCHW.index_select(axis, low)
    return first + (images_NCHW.index_select(axis, high) - first) * fraction.view(-1, *[1] * (3 - axis))


def _corner_taps(size: int, wanted: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower tap, upper tap and weight of the upper one for each of ``wanted`` samples along an axis of ``size``."""
    # NOTE: the product is in float32, as in TensorFlow; float64 differs by up to 1e-3 grey levels.
    source = torch.arange(wanted, device=like.device, dtype=torch.float32) * (
        torch.tensor(size, dtype=torch.float32, device=like.device) / wanted
    )
    low = source.floor().long().clamp_max(size - 1)
    return low, (low + 1).clamp_max(size - 1), (source - low).to(like.dtype)
