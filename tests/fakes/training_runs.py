"""A run so small that a step takes milliseconds: 16 channels wide, one block, 3 frames of 4 x 4 latents.

As a program, ``torchrun -m tests.fakes.training_runs FOLDER``, it trains the runs that ``test_parallelize`` compares;
one launch for all of them, because starting processes takes longer than training these models.
"""

import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from magi.__main__ import exit_process
from magi.config import Config, DataConfig, LatentShape, ModelConfig, TrainingConfig
from magi.data.clips import epoch_order
from magi.errors import StoppedCleanly
from magi.latents.dataset import LatentClip
from magi.model.magi import Magi
from magi.training.log import read_metrics
from magi.training.loop import train
from magi.training.parallelize import Distributed, init_distributed
from magi.training.run_folder import STOP_FILE
from magi.training.trainer import Trainer

LATENT = LatentShape(frames=3, channels=2, height=4, width=4)
CLIPS = 7  # an epoch, so that batches straddle epochs
ONE_PROCESS = Distributed(0, 1, torch.device("cpu"))


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
    run: Path,
    config: Config,
    clips: Clips | None = None,
    on_sample: Callable[[int, Magi], None] | None = None,
    picture: bool = False,
) -> None:
    """Without loss.png unless it is asked for: drawing it takes longer than the steps."""
    with nullcontext() if picture else patch("magi.training.log.draw_losses"):
        train(config, clips or Clips(), None, tiny_model(config), run, on_sample, classes=list("abcdefg"), device="cpu")


def tiny_trainer(config: Config, clips: Clips | None = None) -> Trainer:
    trainer = Trainer(config, clips or Clips(), None, tiny_model(config), ONE_PROCESS)
    trainer.start()
    return trainer


def told(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without those about time."""
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("seconds", "clips_per_second", "frames_per_second")
        }
        for line in read_metrics(run)
    ]


@dataclass
class Kept:
    """Bytes of the storages that autograd keeps for backward, each once; weights are none of them."""

    total: int = 0


@contextmanager
def kept_bytes(model: Magi | None = None) -> Iterator[Kept]:
    """Count what a forward pass keeps; storages of the parameters of ``model`` are left out."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()} if model is not None else set()
    seen: dict[int, Tensor] = {}
    kept = Kept()

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own and address not in seen:
            seen[address] = tensor  # held, so that its address is not used again
            kept.total += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


# Two processes take 3 and 2 clips of a batch of 5, in forward passes of 2 and 1, and the clip 8 that is broken is
# in the share of one of them.
TOGETHER = tiny_config(steps=6, batch=5, micro_batch=2)
# FSDP needs equal shares: 3 and 3 clips, in forward passes of 2 and 1. Two blocks, so that one is whole at a time.
EVEN = tiny_config(steps=6, batch=6, micro_batch=2, sample_every=3, model={"blocks": 2})
BROKEN = (8,)


def changed(config: Config, **training: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def in_two_parts(run: Path, config: Config, on_sample: Callable[[int, Magi], None] | None = None) -> None:
    """The first three steps and then the rest: a resume."""
    train_tiny(run, changed(config, steps=3), Clips(BROKEN), on_sample)
    train_tiny(run, config, Clips(BROKEN), on_sample)


def stopped_by_one(folder: Path, config: Config, process: Distributed, how: Callable[[], None]) -> None:
    """Only the last process is asked to stop, and both do, after the same step."""
    last = process.rank == process.world - 1
    clips = Clips(on_clip=lambda sample: how() if last and sample > 12 else None)
    try:
        train_tiny(folder, config, clips)
    except StoppedCleanly as stopped:
        folder.with_name(f"{folder.name}-{process.rank}.txt").write_text(str(stopped))


def all_runs(folder: Path, process: Distributed) -> None:
    """What ``test_parallelize`` compares, in one launch of two processes."""
    in_two_parts(folder / "unequal", TOGETHER)
    in_two_parts(folder / "ddp", EVEN)
    fsdp = changed(EVEN, parallel="fsdp")

    def sampled(step: int, model: Magi) -> None:
        save_file(model.state_dict(), folder / f"sampled-{step}-{process.rank}.safetensors")

    in_two_parts(folder / "fsdp", fsdp, sampled)
    train_tiny(folder / "begun-alone", fsdp, Clips(BROKEN))
    train_tiny(folder / "recomputed", changed(fsdp, activation_checkpointing=True), Clips(BROKEN))
    for parallel in ("ddp", "fsdp"):
        train_tiny(folder / f"{parallel}-bf16", changed(EVEN, parallel=parallel, precision="bf16"), Clips(BROKEN))
    stopped_by_one(folder / "stopped-ddp", TOGETHER, process, lambda: signal.raise_signal(signal.SIGTERM))
    stopped_by_one(folder / "stopped-fsdp", fsdp, process, (folder / "stopped-fsdp" / STOP_FILE).touch)
    try:
        train_tiny(folder / "refused", changed(TOGETHER, parallel="fsdp"))
    except ValueError as refused:
        (folder / f"refused-{process.rank}.txt").write_text(str(refused))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with init_distributed("cpu") as together:
        all_runs(Path(sys.argv[1]), together)
    exit_process(0)
