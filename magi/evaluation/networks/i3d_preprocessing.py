"""Pixels to the input of I3D, in the named variants under which published Frechet video distances were computed.

They differ in the resize kernel, in what happens to a frame that is not square, and in whether pixels are scaled
before or after the resize. All end in RGB, [-1, 1], 224 x 224. Knows no network.
"""

import math
from typing import Literal, get_args

from torch import Tensor

from magi.evaluation.metrics.checks import check_video
from magi.evaluation.metrics.resize import resize_bilinear

I3dPreprocessing = Literal["tats", "videogpt", "google", "magvit_train"]
I3D_PREPROCESSINGS: tuple[I3dPreprocessing, ...] = get_args(I3dPreprocessing)
SIDE = 224
_WHITE = 255.0


def i3d_input(video_BTHWC: Tensor, variant: I3dPreprocessing = "tats") -> Tensor:
    """Return video_BCTHW float32 of 224 x 224 in [-1, 1] from uint8 RGB frames, by the named variant.

    ``ValueError`` for an unknown variant and for a video that is not uint8 with three channels last.
    """
    check_video(video_BTHWC, "i3d")
    batch = video_BTHWC.shape[0]
    frames_NCHW = video_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float()
    scaled_NCHW = _scaled(frames_NCHW, variant)
    return scaled_NCHW.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def _scaled(frames_NCHW: Tensor, variant: I3dPreprocessing) -> Tensor:
    """Frames of 0..255 -> 224 x 224 in [-1, 1]; the order of scaling and resizing is the variant's own."""
    if variant == "tats":
        return 2 * resize_bilinear(frames_NCHW, SIDE, SIDE, "half_pixel") / _WHITE - 1
    if variant == "videogpt":
        return (_short_side_crop(frames_NCHW / _WHITE) - 0.5) * 2
    if variant == "google":
        return 2 * resize_bilinear(frames_NCHW, SIDE, SIDE, "tf1") / _WHITE - 1
    if variant == "magvit_train":
        return 2 * resize_bilinear(frames_NCHW / _WHITE, SIDE, SIDE, "tf1") - 1
    raise ValueError(f"i3d preprocessing {variant!r}; known: {', '.join(I3D_PREPROCESSINGS)}")


def _short_side_crop(frames_NCHW: Tensor) -> Tensor:
    """Short side to 224, long side rounded up, centre crop."""
    height, width = frames_NCHW.shape[2:]
    scale = SIDE / min(height, width)
    # NOTE: rounding up 100 * (224 / 100) in float64 gives 225, not 224; a square is treated as tall. Kept, because
    # the published numbers of this variant have it.
    rows, columns = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    top, left = (rows - SIDE) // 2, (columns - SIDE) // 2
    resized_NCHW = resize_bilinear(frames_NCHW, rows, columns, "half_pixel")
    return resized_NCHW[:, :, top : top + SIDE, left : left + SIDE]
