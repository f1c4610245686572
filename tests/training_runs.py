"""A run so small that a step takes milliseconds: 16 channels wide, one block, 3 frames of 4 x 4 latents.

As a program, ``torchrun -m tests.training_runs FOLDER``, it trains the runs that ``test_training_parallel`` compares.
"""

import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magi.__main__ import leave
from magi.config import Config, DataConfig, LatentShape, ModelConfig, TrainingConfig
from magi.data.clips import epoch_order
from magi.data.latents import LatentClip
from magi.errors import StoppedCleanly
from magi.model.magi import Magi
from magi.training.log import read_metrics
from magi.training.parallel import Process, joined
from magi.training.step import Trainer
from magi.training.trainer import train

LATENT = LatentShape(frames=3, channels=2, height=4, width=4)
CLIPS = 7  # an epoch, so that batches straddle epochs
ONE_PROCESS = Process(0, 1, torch.device("cpu"))


def tiny_config(*, workers: int = 0, model: dict[str, Any] | None = None, **training: Any) -> Config:
    shape: dict[str, Any] = {"width": 16, "blocks": 1, "heads": 2, "head_width": 16, "head_blocks": 1, "frames": 3}
    shape |= {"classes": CLIPS, "class_tokens": 1, "dropout": 0.0, "diffusion_steps": 100}
    settings: dict[str, Any] = {"steps": 6, "batch": 4, "learning_rate": 3e-3, "warmup_steps": 4, "precision": "fp32"}
    settings |= {"log_every": 1, "checkpoint_every": 100, "ema_decay": 0.9}
    return Config(
        data=DataConfig(frames=3, interval_max=3, workers=workers),
        model=ModelConfig(**(shape | (model or {}))),
        training=TrainingConfig(**(settings | training)),
    )


class Clips:
    """Latent clips as a pure function of the sample number; those in ``broken`` are not finite."""

    def __init__(self, broken: Collection[int] = (), on_clip: Callable[[int], None] | None = None) -> None:
        self.broken, self.on_clip = broken, on_clip

    def __getitem__(self, sample: int) -> LatentClip:
        if self.on_clip is not None:
            self.on_clip(sample)
        clip = int(epoch_order(0, sample // CLIPS, CLIPS)[sample % CLIPS])
        latents_TCHW = np.random.default_rng(clip).standard_normal((3, 2, 4, 4)).astype(np.float32)
        if sample in self.broken:
            latents_TCHW[0, 0, 0, 0] = np.nan
        return LatentClip(latents_TCHW, 1 + clip % 3, clip, sample)


def tiny_model(config: Config) -> Magi:
    return Magi(config.model, LATENT, torch.Generator().manual_seed(1))


def train_tiny(
    run: Path, config: Config, clips: Clips | None = None, on_sample: Callable[[int, Magi], None] | None = None
) -> None:
    train(config, clips or Clips(), None, tiny_model(config), run, on_sample, classes=list("abcdefg"), device="cpu")


def tiny_trainer(config: Config, clips: Clips | None = None) -> Trainer:
    trainer = Trainer(config, clips or Clips(), None, tiny_model(config), ONE_PROCESS)
    trainer.start()
    return trainer


def told(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without those about time."""
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "clips_per_second")}
        for line in read_metrics(run)
    ]


# Two processes take 3 and 2 clips of a batch of 5, in forward passes of 2 and 1, and the clip 8 that is broken is
# in the share of one of them.
TOGETHER = tiny_config(steps=6, batch=5, micro_batch=2)
BROKEN = (8,)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with joined("cpu") as process:
        # The first steps and then the rest: a resume.
        first_steps = TOGETHER.model_copy(update={"training": TOGETHER.training.model_copy(update={"steps": 3})})
        train_tiny(folder / "run", first_steps, Clips(BROKEN))
        train_tiny(folder / "run", TOGETHER, Clips(BROKEN))
        # Only the last process is asked to stop, and both do, after the same step.
        last = process.rank == process.world - 1
        clips = Clips(on_clip=lambda sample: signal.raise_signal(signal.SIGTERM) if last and sample > 12 else None)
        try:
            train_tiny(folder / "stopped", TOGETHER, clips)
        except StoppedCleanly as stopped:
            (folder / f"stopped-{process.rank}.txt").write_text(str(stopped))
    leave(0)
