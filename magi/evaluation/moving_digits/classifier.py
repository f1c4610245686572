"""The digit classifier behind ``class_accuracy``: a small CNN, trained by this project on clean built-in digits.

What it sees of a frame is a crop by one written rule (``centred_crops``): a window of 5/8 of the frame, centred at the
centroid of the foreground, sampled at 32 x 32 points, divided by its brightest point; so it knows nothing of place and
grey level. The shipped weights and a JSON of their settings and held-out accuracy lie in this folder;
runs/train_digit_classifier.py trains them.

It answers one of ten classes whatever it is shown: a shape that is no digit is right by chance in one of ten frames.
Knows no generated videos, paths and protocols.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from magi.data.moving_digits import CLASSES, digit_video
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity
from magi.weights import load_weights, read_tensors

SHIPPED = Path(__file__).with_name("digit_classifier.safetensors")
POINTS = 32
WINDOW = 5 / 8
HELD_OUT_SEED = 71_002


class DigitClassifier(nn.Module):
    """crops_B1HW (32 x 32, 0..1) -> logits_BC of the ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (POINTS // 8) ** 2, len(CLASSES)),
        )

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Self:
        """Read weights; by default those shipped with the package. ``CheckpointError`` for others."""
        model = cls()
        load_weights(model, read_tensors(path), path)
        return model.eval()

    def forward(self, crops_B1HW: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.layers(crops_B1HW)
        return logits_BC

    @torch.no_grad()
    def classify(self, frames_FHWC: NDArray[np.uint8], batch: int = 512) -> NDArray[np.int64]:
        """The class of the glyph in each of ``frames_FHWC``; -1 where all is black."""
        classes_F = np.full(len(frames_FHWC), -1, dtype=np.int64)
        for start in range(0, len(frames_FHWC), batch):
            intensity_FHW = foreground_intensity(frames_FHWC[start : start + batch])
            lit_F = intensity_FHW.any((1, 2))
            if lit_F.any():
                found_F = self(centred_crops(intensity_FHW[lit_F], centroids(intensity_FHW[lit_F]))).argmax(1)
                classes_F[start : start + batch][lit_F] = found_F.numpy()
        return classes_F


def centred_crops(intensity_FHW: NDArray[np.float32], centres_F2: NDArray[np.float64]) -> torch.Tensor:
    """Windows of 5/8 of the frame height around ``centres_F2`` (x, y in pixels) at 32 x 32 points, brightest point 1.

    Bilinear between pixel centres; what lies outside the frame is black. No frame may be black.
    """
    height, width = intensity_FHW.shape[1:]
    offsets_P = (torch.arange(POINTS, dtype=torch.float32) - (POINTS - 1) / 2) * (WINDOW * height / POINTS)
    centres = torch.from_numpy(centres_F2.astype(np.float32))
    # grid_sample measures a frame from -1 to 1 between its outer edges; pixel 0 has its centre half a pixel inside.
    x_FP = (2 * (centres[:, :1] + offsets_P) + 1) / width - 1
    y_FP = (2 * (centres[:, 1:] + offsets_P) + 1) / height - 1
    grid_FPP2 = torch.stack([x_FP[:, None, :].expand(-1, POINTS, -1), y_FP[:, :, None].expand(-1, -1, POINTS)], dim=-1)
    frames_F1HW = torch.from_numpy(intensity_FHW)[:, None]
    crops_F1HW = functional.grid_sample(frames_F1HW, grid_FPP2, align_corners=False)
    return crops_F1HW / crops_F1HW.amax((2, 3), keepdim=True).clamp_min(1.0)


def held_out_accuracy(model: DigitClassifier, clips: int = 1000, size: int = 64) -> float:
    """Share of clean digits of ``HELD_OUT_SEED`` that ``model`` classifies correctly."""
    frames_FHWC, labels_F = clean_frames(HELD_OUT_SEED, clips, size)
    return float((model.classify(frames_FHWC) == labels_F).mean())


def clean_frames(seed: int, clips: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first frame of each clip: places, looks and sub-pixel phases are drawn per clip."""
    videos = [digit_video(seed, number, size, frames=1) for number in range(clips)]
    return np.concatenate([video.video_THWC for video in videos]), np.array([video.label for video in videos])
