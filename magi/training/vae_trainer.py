"""Trains the small 2-D autoencoder on the user's own videos: `magi train-vae DATA OUT`.

Not in the paper, which takes ready-made autoencoders (section 4). Frames of a step are a pure function of (seed, step),
so the same call again continues exactly, or says that all is done. The result is the averaged weights with the measured
mean and standard deviation of the latents. It knows no command line and no MAGI.
"""

import dataclasses
import json
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import AdamW

from magi.config import VaeTrainingConfig, explain
from magi.data.clips import evenly_spaced
from magi.data.index.index import VideoIndex
from magi.data.sample_grid import contact_sheet
from magi.data.video_writer import write_png
from magi.errors import CheckpointError, NumericsError, StoppedCleanly
from magi.files import METRICS_FILE
from magi.training.checkpoint import (
    Checkpoint,
    check_checkpoint,
    clear_unfinished,
    newest_checkpoint,
    quarantine_damaged,
    save_checkpoint,
)
from magi.training.ema import Ema
from magi.training.log import drop_metrics_after, readable_time
from magi.training.optimizer import every_optimizer_tensor, load_optimizer, optimizer_tensors, set_learning_rate
from magi.training.parallelize import resolve_device
from magi.training.run_folder import StopRequest, locked
from magi.training.vae_frames import Log, open_frames, some_frames, split_index, spread_frames
from magi.vae.contract import check_size
from magi.vae.diffusers.small import SmallVae, SmallVaeShape, build_network, pixels_to_network
from magi.vae.native_folder import CONFIG_FILE

SKIPS_ALLOWED = 10
KEEP_CHECKPOINTS = 2
FLOOR_RATE = 0.02  # where the cosine ends, over the learning rate
SHEET_ROWS, SHEET_COLUMNS = 6, 12


@dataclass(frozen=True)
class VaeStep:
    """What one step came to; ``finite`` is false for a step that changed nothing."""

    loss: float
    psnr_db: float
    kl: float
    gradient_norm: float
    finite: bool


class VaeTrainer:
    """The state of a training, and one step of it."""

    def __init__(self, config: VaeTrainingConfig, device: torch.device) -> None:
        self.config, self.device, self.step, self.skips_in_a_row = config, device, 0, 0
        self.shape = network_shape(config)
        self.network = build_network(self.shape, config.seed).to(device)
        self.optimizer = AdamW(
            self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )
        self.ema = Ema(self.network, config.ema_decay)

    def checkpoint(self, data: str) -> Checkpoint:
        """All that the training continues from."""
        state = {
            "step": self.step,
            "skips_in_a_row": self.skips_in_a_row,
            "config": self.config.model_dump(mode="json"),
            "data": data,
        }
        tensors = optimizer_tensors(self.optimizer, self.network)
        return Checkpoint(self.network.state_dict(), self.ema.state(self.network), tensors, state)

    def check(self, found: Checkpoint, data: str, folder: Path) -> None:
        """``CheckpointError`` for a checkpoint in ``folder`` that is not whole, of another config or other videos."""
        own = dataclasses.replace(self.checkpoint(data), optimizer=every_optimizer_tensor(self.network))
        check_checkpoint(found, own, self.config, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that was checked."""
        self.network.load_state_dict(dict(checkpoint.model))
        load_optimizer(self.optimizer, self.network, checkpoint.optimizer)
        self.ema.load(checkpoint.ema)
        self.step, self.skips_in_a_row = checkpoint.step, checkpoint.state["skips_in_a_row"]

    def take_step(self, frames_NHWC: np.ndarray) -> VaeStep:
        """One optimizer step; a non-finite one changes nothing."""
        config = self.config
        images = pixels_to_network(torch.from_numpy(frames_NHWC).to(self.device), config.patch)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        self.network.train()
        error, kl = vae_errors(self.network, images, generator)
        loss = reconstruction_loss(error) + config.kl_weight * kl
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip, foreach=True)
        mse = error.detach().square().mean()
        told = torch.stack([loss.detach(), mse, kl.detach(), norm]).tolist()
        finite = all(math.isfinite(value) for value in told)
        self.step += 1
        if finite:
            set_learning_rate(self.optimizer, cosine_rate(config, self.step))
            self.optimizer.step()
            self.ema.update(self.network, self.step)
        self.skips_in_a_row = 0 if finite else self.skips_in_a_row + 1
        return VaeStep(told[0], psnr(told[1], 2.0), told[2], told[3], finite)

    def result(self) -> SmallVae:
        """The autoencoder of the averaged weights; the statistics of its latents are not measured yet."""
        network = build_network(self.shape)
        network.load_state_dict(self.ema.state(self.network))
        return SmallVae(self.shape, network).to(self.device)


def network_shape(config: VaeTrainingConfig) -> SmallVaeShape:
    """The architecture that ``config`` asks for; ``ValueError`` for widths that it cannot have."""
    try:
        return SmallVaeShape(channels=config.channels, patch=config.patch, widths=config.widths)
    except ValidationError as error:
        raise ValueError(explain(error, "train-vae", SmallVaeShape)) from None


def vae_errors(network: Any, images_NCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (reconstruction - images, KL to the unit Gaussian in nats a latent) with latents drawn from the posterior.

    The noise of the draw is what makes neighbouring latents decode to neighbouring frames: a model that predicts
    latents is never exact.
    """
    posterior = network.encode(images_NCHW).latent_dist
    noise_NCHW = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean.device)
    reconstruction_NCHW = network.decode(posterior.mean + posterior.std * noise_NCHW).sample
    return reconstruction_NCHW - images_NCHW, posterior.kl().sum() / posterior.mean.numel()


def reconstruction_loss(error: Tensor) -> Tensor:
    """Mean |e| + mean e^2: the first keeps edges sharp and flat areas exact, the second weighs the largest errors."""
    return error.abs().mean() + error.square().mean()


def cosine_rate(config: VaeTrainingConfig, step: int) -> float:
    """Learning rate of step 1, 2, ...: linear warm-up times a cosine from 1 to ``FLOOR_RATE``."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
    return (
        config.learning_rate * min(1.0, step / max(1, config.warmup_steps)) * (FLOOR_RATE + (1 - FLOOR_RATE) * cosine)
    )


def psnr(mean_squared_error: float, full_range: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB; 100 for (almost) no error, so that it is always a number."""
    if math.isnan(mean_squared_error):
        return math.nan
    return min(100.0, 10 * math.log10(full_range**2 / max(mean_squared_error, 1e-12)))


def train_vae(
    config: VaeTrainingConfig, index: VideoIndex, out: Path, on_log: Log = print, device: str = "auto"
) -> SmallVae:
    """Train a ``SmallVae`` on the frames of ``index`` and write it to ``out``; the same call again continues.

    Writes ``config.json``, ``model.safetensors``, ``reconstructions.png``, ``metrics.jsonl`` and ``checkpoints/``.
    Raises ``StoppedCleanly`` after SIGINT or SIGTERM (state saved), ``NumericsError`` after 10 non-finite steps in a
    row, ``CheckpointError`` if ``out`` holds another training, ``ValueError`` for a size that the stride does not
    divide.
    """
    check_size(config.height, config.width, network_shape(config).spatial_stride)
    with locked(out), StopRequest() as stop:
        trainer = VaeTrainer(config, resolve_device(device))
        _continue(trainer, index, out, on_log)
        if trainer.step >= config.steps and (out / CONFIG_FILE).is_file():
            on_log(f"{out}: all {config.steps} steps are done; delete the folder to train again")
            return SmallVae.load(out)
        training, held_out = split_index(index)
        _loop(trainer, training, _name_of(index), out, on_log, stop)
        return _finish(trainer, training, held_out, out, on_log)


def _name_of(index: VideoIndex) -> str:
    """What the videos are, for the comparison with an earlier call; the folder itself may move."""
    return f"{len(index.videos)} videos with {sum(record.frames for record in index.videos)} frames"


def _continue(trainer: VaeTrainer, index: VideoIndex, out: Path, on_log: Log) -> None:
    clear_unfinished(out)
    found = newest_checkpoint(out, lambda found, folder: trainer.check(found, _name_of(index), folder))
    if found is None and (out / CONFIG_FILE).exists():
        raise ValueError(f"{out}: holds an autoencoder already, and no training to continue; give another folder")
    if found is not None:
        trainer.restore(found)
        if trainer.step < trainer.config.steps:
            on_log(f"continuing {out} after step {trainer.step}")
    quarantine_damaged(out, trainer.step)
    drop_metrics_after(out, trainer.step)


def _loop(trainer: VaeTrainer, index: VideoIndex, data: str, out: Path, on_log: Log, stop: StopRequest) -> None:
    config = trainer.config
    if trainer.step >= config.steps:
        return
    first = trainer.step
    with closing(open_frames(index, config, on_log)) as frames:
        began = time.monotonic()
        while trainer.step < config.steps:
            result = trainer.take_step(frames.of_step(trainer.step))
            last = trainer.step >= config.steps
            if not result.finite:
                _report_skip(trainer, on_log)
            elif trainer.step % config.log_every == 0 or last:
                _tell(trainer, result, (trainer.step - first) / (time.monotonic() - began), out, on_log)
            if last or stop.asked or trainer.step % config.checkpoint_every == 0:
                _save(trainer, data, out)
            if stop.asked and not last:
                raise StoppedCleanly(
                    f"{out}: stopped after step {trainer.step}, state saved; the same command continues"
                )


def _save(trainer: VaeTrainer, data: str, out: Path) -> None:
    try:
        save_checkpoint(out, trainer.checkpoint(data), KEEP_CHECKPOINTS)
    except OSError as error:
        raise CheckpointError(f"{error}; free some space and give the same command again") from error


def _report_skip(trainer: VaeTrainer, on_log: Log) -> None:
    on_log(f"step {trainer.step}: non-finite loss or gradient; skipped, nothing changed")
    if trainer.skips_in_a_row >= SKIPS_ALLOWED:
        raise NumericsError(
            f"{SKIPS_ALLOWED} steps in a row had a non-finite loss or gradient, the last was step {trainer.step}; "
            "lower learning_rate"
        )


def _tell(trainer: VaeTrainer, result: VaeStep, rate: float, out: Path, on_log: Log) -> None:
    """One log line and one line of metrics."""
    config, step = trainer.config, trainer.step
    left = readable_time((config.steps - step) / max(rate, 1e-9))
    on_log(
        f"step {step}/{config.steps}  loss {result.loss:.4f}  psnr {result.psnr_db:.1f} dB  "
        f"{rate * config.batch:.0f} frames/s  {left} left"
    )
    values = {key: value for key, value in dataclasses.asdict(result).items() if key != "finite"}
    _write_metrics(out, {"step": step, **values, "learning_rate": cosine_rate(config, step)})


def _write_metrics(out: Path, values: dict[str, Any]) -> None:
    with (out / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def _finish(trainer: VaeTrainer, training: VideoIndex, held_out: VideoIndex, out: Path, on_log: Log) -> SmallVae:
    """Measure the latents, write the autoencoder, and show and measure reconstructions of held-out videos."""
    config, vae = trainer.config, trainer.result()
    vae.normalize(vae.measure(some_frames(training, config), "measured after training, on training frames"))
    rows: list[np.ndarray] = []
    errors: list[float] = []
    for number in evenly_spaced(len(held_out.videos), 20):
        real_THWC = spread_frames(held_out, number, config, SHEET_COLUMNS)
        again_THWC = vae.decode(vae.encode(torch.from_numpy(real_THWC)[None]))[0].cpu().numpy()
        errors += np.square(real_THWC.astype(np.float64) - again_THWC).mean((1, 2, 3)).tolist()
        rows += [real_THWC, again_THWC]
    labels = ["real", "again"] * (len(rows) // 2)
    shown = 2 * SHEET_ROWS
    write_png(out / "reconstructions.png", contact_sheet(rows[:shown], columns=SHEET_COLUMNS, labels=labels[:shown]))
    result = {"held_out_psnr_db": psnr(float(np.mean(errors))), "worst_frame_psnr_db": psnr(max(errors)), "id": vae.id}
    _write_metrics(out, {"step": trainer.step, **result, "latents_std": list(vae.normalization.std)})
    vae.save(out)
    on_log(
        f"{out}: {vae.id}, held-out frames {result['held_out_psnr_db']:.1f} dB, "
        f"worst {result['worst_frame_psnr_db']:.1f} dB; see {out / 'reconstructions.png'}"
    )
    return vae
