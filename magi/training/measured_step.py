"""Real optimizer steps on invented latents, timed, with the most memory they took: what a plan is held against.

It knows the trainer and one device; no files and no real data.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from magi.config import Config, LatentShape
from magi.latents.dataset import LatentClip
from magi.model.magi import Magi
from magi.training.parallelize import Distributed
from magi.training.plan import changed
from magi.training.trainer import Trainer

WARM_UP = 2


@dataclass(frozen=True)
class MeasuredStep:
    """Seconds of one optimizer step (the median), and bytes of the device at the peak (None on a CPU)."""

    clips: int
    seconds: float
    peak_bytes: int | None


class _InventedClips:
    """Latents of unit variance, a pure function of the sample number."""

    def __init__(self, latent: LatentShape, classes: int) -> None:
        self.size, self.classes = (latent.frames, latent.channels, latent.height, latent.width), classes

    def __getitem__(self, sample: int) -> LatentClip:
        latents_TCHW = np.random.default_rng(sample).standard_normal(self.size).astype(np.float32)
        return LatentClip(latents_TCHW, 1, sample % self.classes if self.classes else None, sample)


def measure_step(config: Config, latent: LatentShape, clips: int, device: torch.device, steps: int = 5) -> MeasuredStep:
    """Train ``steps`` steps of one micro-batch of ``clips`` clips in this process, after two that warm up."""
    total = WARM_UP + steps
    one = changed(config, batch=clips, micro_batch=0, steps=total, parallel="ddp")
    model = Magi(config.model, latent, torch.Generator().manual_seed(0))
    trainer = Trainer(one, _InventedClips(latent, config.model.classes), None, model, Distributed(0, 1, device))
    trainer.start()
    seconds = []
    try:
        for _ in range(total):
            _wait(device)
            began = time.perf_counter()
            trainer.take_step()
            _wait(device)
            seconds.append(time.perf_counter() - began)
    finally:
        trainer.close()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return MeasuredStep(clips, float(np.median(seconds[WARM_UP:])), peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
