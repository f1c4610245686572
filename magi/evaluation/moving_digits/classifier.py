"""The digit classifier behind ``class_accuracy``: a small CNN, trained by this project on clean built-in digits.

What it sees of a frame is a crop by one written rule (``centred_crops``): a window of 5/8 of the frame, centred at the
centroid of the foreground, sampled at 32 x 32 points, divided by its brightest point; so it knows nothing of place and
grey level. The shipped weights and a JSON of their settings and held-out accuracy lie beside this file and are made by

    python -m magi.evaluation.moving_digits.classifier            (about a minute on one core; --help for the options)

It answers one of ten classes whatever it is shown: a shape that is no digit is right by chance in one of ten frames.
Knows nothing of generated videos, paths or protocols.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from magi.data.moving_digits import CLASSES, digit_video
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity

SHIPPED = Path(__file__).with_name("digit_classifier.safetensors")
POINTS = 32
WINDOW = 5 / 8
TRAINING_SEED, HELD_OUT_SEED = 71_001, 71_002
_JITTER = 1.5  # pixels of a 64 x 64 frame: a generated glyph need not have its centroid quite where a clean one has


@dataclass(frozen=True)
class ClassifierCard:
    """How the classifier was trained, and its accuracy on clean digits of a seed it was not trained on."""

    seed: int
    clips: int
    size: int
    epochs: int
    batch: int
    learning_rate: float
    held_out_seed: int
    held_out_clips: int
    held_out_accuracy: float


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


def train_classifier(
    seed: int = TRAINING_SEED,
    clips: int = 8000,
    size: int = 64,
    epochs: int = 8,
    batch: int = 64,
    learning_rate: float = 2e-3,
    held_out_clips: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DigitClassifier, ClassifierCard]:
    """Train from scratch on one frame of each of ``clips`` clean clips of ``seed``; deterministic on one machine.

    ``progress`` is told (epochs done, epochs). Raises ``ValueError`` for the seed that accuracy is measured on.
    """
    if seed == HELD_OUT_SEED:
        raise ValueError(f"seed {seed} is kept for the held-out digits; train on another")
    intensity_FHW, labels_F = _clean_digits(seed, clips, size)
    centres_F2 = centroids(intensity_FHW)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    steps = epochs * -(-clips // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for epoch in range(epochs):
        jittered_F2 = centres_F2 + rng.uniform(-1, 1, centres_F2.shape) * (_JITTER * size / 64)
        crops_F1HW = centred_crops(intensity_FHW, jittered_F2)
        for picked in torch.randperm(clips, generator=generator).split(batch):
            loss = functional.cross_entropy(model(crops_F1HW[picked]), torch.from_numpy(labels_F)[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    accuracy = held_out_accuracy(model, held_out_clips, size)
    card = ClassifierCard(
        seed, clips, size, epochs, batch, learning_rate, HELD_OUT_SEED, held_out_clips, round(accuracy, 4)
    )
    return model.eval(), card


def held_out_accuracy(model: DigitClassifier, clips: int = 1000, size: int = 64) -> float:
    """Share of clean digits of ``HELD_OUT_SEED`` that ``model`` classifies correctly."""
    frames_FHWC, labels_F = _clean_frames(HELD_OUT_SEED, clips, size)
    return float((model.classify(frames_FHWC) == labels_F).mean())


def save_classifier(model: DigitClassifier, card: ClassifierCard, path: Path = SHIPPED) -> None:
    """Write the weights to ``path`` and the card as JSON beside them."""
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def load_classifier(path: Path = SHIPPED) -> tuple[DigitClassifier, ClassifierCard]:
    """Read what ``save_classifier`` wrote; by default the classifier shipped with the package."""
    model = DigitClassifier()
    model.load_state_dict(load_file(path))
    card = ClassifierCard(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    return model.eval(), card


def _clean_frames(seed: int, clips: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first frame of each clip: places, looks and sub-pixel phases are drawn per clip."""
    videos = [digit_video(seed, number, size, frames=1) for number in range(clips)]
    return np.concatenate([video.video_THWC for video in videos]), np.array([video.label for video in videos])


def _clean_digits(seed: int, clips: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    frames_FHWC, labels_F = _clean_frames(seed, clips, size)
    return foreground_intensity(frames_FHWC), labels_F


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m magi.evaluation.moving_digits.classifier", description="train the classifier"
    )
    parser.add_argument("--seed", type=int, default=TRAINING_SEED)
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    model, card = train_classifier(
        options.seed,
        options.clips,
        epochs=options.epochs,
        progress=lambda done, epochs: print(f"epoch {done} of {epochs}", flush=True),
    )
    save_classifier(model, card, options.out)
    print(f"{options.out.name}: {card.held_out_accuracy:.4f} of {card.held_out_clips} clean held-out digits")


if __name__ == "__main__":
    _main()
