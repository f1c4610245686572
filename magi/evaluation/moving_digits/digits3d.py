"""digits3d: features of moving digits, so that a Frechet video distance can be computed without downloaded weights.

A small 3-D convolutional network, trained by this project on the exact truth of built-in videos: which digit it is,
which way it goes in the first and in the last step of the clip, and how fast. Its features come from what the answers
are read from, one linear layer before them: the 64 main directions of that layer over training clips, each divided by
the square root of its standard deviation, so that no single one (how large and bright a digit is) outweighs the rest.
A distance of these features is printed as ``fvd[digits3d]`` and is on no scale with the FVD of papers. The shipped
weights, and a JSON of their settings and held-out accuracy, lie in this folder; runs/train_digits3d.py trains them.

It was trained on clips of one digit, 16 frames of 64 x 64 at intervals 1 and 2; other sizes are resampled, other
lengths pooled over. Knows no generated videos, distances and protocols.
"""

from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from magi.data.moving_digits import CLASSES
from magi.weights import load_weights, read_tensors, sha256

SHIPPED = Path(__file__).with_name("digits3d.safetensors")
SIZE, FRAMES, WIDTH, DIMENSION = 64, 16, 96, 64
MINIMUM_FRAMES = 8


class Digits3d(nn.Module):
    """Planes_BCTHW -> hidden_BH -> class, direction at the first and the last step, speed; and features_BD of video."""

    name = "digits3d"
    dimension = DIMENSION
    minimum_frames = MINIMUM_FRAMES

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 16, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
            nn.ReLU(),
            nn.Conv3d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(48, 48, 3, stride=(1, 2, 2), padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d((4, 2, 2)),
            nn.Flatten(),
            nn.Linear(48 * 16, WIDTH),
        )
        self.answers = nn.Linear(WIDTH, len(CLASSES) + 5)
        self.register_buffer("centre_H", torch.zeros(WIDTH))
        self.register_buffer("directions_HD", torch.eye(WIDTH, DIMENSION))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights: of the file they were read from, where there is one."""
        return sha256(self.path) if self.path else "untrained"

    path: Path | None = None
    centre_H: Tensor
    directions_HD: Tensor

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Self:
        """Read weights; by default those shipped with the package. ``CheckpointError`` for others."""
        model = cls()
        load_weights(model, read_tensors(path), path)
        model.path = path
        return model.eval()

    def forward(self, planes_BCTHW: Tensor) -> Tensor:
        """What the answers are read from, hidden_BH, of planes on the scale 0..1."""
        # NOTE: in this order of memory convolutions in time take two thirds of the time on a CPU.
        hidden_BH: Tensor = self.layers((planes_BCTHW * 2).contiguous(memory_format=torch.channels_last_3d))
        return hidden_BH

    @torch.no_grad()
    def features(self, video_BTHWC: Tensor) -> Tensor:
        """Features_BD float32 of video_BTHWC uint8; frames of another size are resampled to 64 x 64."""
        return (self.hidden(video_BTHWC) - self.centre_H) @ self.directions_HD

    @torch.no_grad()
    def hidden(self, video_BTHWC: Tensor) -> Tensor:
        """Hidden_BH float32 of video_BTHWC uint8."""
        planes_BCTHW = video_BTHWC.to(self.answers.weight.device).movedim(-1, 1).float() / 255
        if tuple(planes_BCTHW.shape[-2:]) != (SIZE, SIZE):
            frames = planes_BCTHW.shape[2]
            planes_BCTHW = functional.interpolate(planes_BCTHW, (frames, SIZE, SIZE), mode="trilinear")
        hidden_BH: Tensor = self(planes_BCTHW)
        return hidden_BH
