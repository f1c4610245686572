"""What every metric and network takes: uint8 RGB videos; anything else is refused before a number comes of it."""

import torch
from torch import Tensor


def check_video(video_BTHWC: Tensor, name: str = "video") -> None:
    """Refuse, with a ``ValueError``, anything but video_BTHWC of uint8 RGB; ``name`` says whose it is."""
    if video_BTHWC.dtype != torch.uint8 or video_BTHWC.ndim != 5 or video_BTHWC.shape[-1] != 3:
        found = f"got {tuple(video_BTHWC.shape)} of {video_BTHWC.dtype}"
        raise ValueError(f"{name}: expected video_BTHWC of uint8 RGB, {found}")


def check_pair(real_BTHWC: Tensor, generated_BTHWC: Tensor) -> None:
    """Refuse, with a ``ValueError``, anything but two videos of uint8 RGB and one size."""
    check_video(real_BTHWC, "real")
    check_video(generated_BTHWC, "generated")
    if real_BTHWC.shape != generated_BTHWC.shape:
        sizes = f"{tuple(real_BTHWC.shape)} and {tuple(generated_BTHWC.shape)}"
        raise ValueError(f"frames are compared one with one, got videos that differ in shape: {sizes}")
