"""Trains the digit classifier that is shipped with the package, on clean built-in digits.

python runs/train_digit_classifier.py      about a minute on one core; --help for the options
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from magi.evaluation.moving_digits.classifier import (
    HELD_OUT_SEED,
    SHIPPED,
    DigitClassifier,
    centred_crops,
    clean_frames,
    held_out_accuracy,
)
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity
from magi.files import atomic_write, write_json

TRAINING_SEED = 71_001
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

    ``progress`` is called with (epochs done, epochs). Raises ``ValueError`` for the seed that accuracy is measured on.
    """
    if seed == HELD_OUT_SEED:
        raise ValueError(f"seed {seed} is reserved for the held-out digits; train on another")
    frames_FHWC, labels_F = clean_frames(seed, clips, size)
    intensity_FHW = foreground_intensity(frames_FHWC)
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


def save_classifier(model: DigitClassifier, card: ClassifierCard, path: Path = SHIPPED) -> None:
    """Write the weights to ``path`` and the card as JSON beside them."""
    with atomic_write(path) as temporary:
        save_file(model.state_dict(), temporary)
    write_json(path.with_suffix(".json"), asdict(card))


def load_card(path: Path = SHIPPED) -> ClassifierCard:
    """The card of the weights in ``path``."""
    return ClassifierCard(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def _main() -> None:
    parser = argparse.ArgumentParser(description="train the digit classifier")
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
