"""Trains the small 2-D autoencoder on the user's own videos: `magi train-vae DATA OUT`.

Not in the paper, which takes ready-made autoencoders (section 4). Frames of a step are a pure function of (seed, step),
so the same call again continues exactly, or says that all is done. The result is the averaged weights with the measured
mean and standard deviation of the latents. It knows no command line and no MAGI.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from magi.config import VaeTrainingConfig, validated
from magi.data.clips import evenly_spaced
from magi.data.index.index import VideoIndex
from magi.data.sample_grid import contact_sheet
from magi.data.video_writer import write_png
from magi.devices import resolve_device
from magi.training.log import TrainingLog
from magi.training.loop import continue_run, run_steps
from magi.training.parallelize import Distributed
from magi.training.run_folder import locked
from magi.training.run_state import RunState, StepResult
from magi.training.small_vae.frames import FrameSource, Log, open_frames, some_frames, split_index, spread_frames
from magi.vae.contract import check_size
from magi.vae.diffusers.small import SmallVae, SmallVaeShape, build_network, pixels_to_network
from magi.vae.native_folder import CONFIG_FILE

KEEP_CHECKPOINTS = 2
FLOOR_RATE = 0.02  # where the cosine ends, over the learning rate
SHEET_ROWS, SHEET_COLUMNS = 6, 12


@dataclass(frozen=True, kw_only=True)
class VaeStep(StepResult):
    """A step whose loss is ``reconstruction_loss`` plus the weighted ``kl``; ``mse`` is of values in -1..1."""

    psnr_db: float
    kl: float


class VaeTrainer(RunState):
    """A run that trains the small autoencoder on the frames of ``index``."""

    config: VaeTrainingConfig

    def __init__(self, config: VaeTrainingConfig, index: VideoIndex, device: torch.device, on_log: Log = print) -> None:
        self.shape, self.index, self.on_log = network_shape(config), index, on_log
        network = build_network(self.shape, config.seed).to(device)
        optimizer = AdamW(
            network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )
        super().__init__(config, config, network, optimizer, Distributed(0, 1, device))
        self._frames: FrameSource | None = None

    def identity(self) -> dict[str, str | None]:
        """What the videos are; the folder itself may move."""
        frames = sum(record.frames for record in self.index.videos)
        return {"data": f"{len(self.index.videos)} videos with {frames} frames"}

    def learning_rate(self, step: int) -> float:
        """Warm-up and a cosine."""
        return cosine_rate(self.config, step)

    def start(self) -> None:
        """Open the frames of the videos that are not held out."""
        self._frames = open_frames(split_index(self.index)[0], self.config, self.on_log)

    def close(self) -> None:
        """End the threads that read."""
        if self._frames is not None:
            self._frames.close()

    def take_step(self, stop_asked: Callable[[], bool] = lambda: False) -> VaeStep:
        """One optimizer step; a non-finite one changes nothing."""
        assert self._frames is not None, "start() comes first"
        return self.step_on(self._frames.of_step(self.step), stop_asked)

    def step_on(self, frames_NHWC: np.ndarray, stop_asked: Callable[[], bool] = lambda: False) -> VaeStep:
        """``take_step`` on given frames, uint8."""
        config = self.config
        images = pixels_to_network(torch.from_numpy(frames_NHWC).to(self.process.device), config.patch)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        self.network.train()
        error, kl = vae_errors(self.network, images, generator)
        loss = reconstruction_loss(error) + config.kl_weight * kl
        loss.backward()
        shares = torch.stack([loss.detach(), error.detach().square().mean(), kl.detach()])
        (total, mse, kl_nats), norm, skipped, stop = self.update(shares, stop_asked)
        return VaeStep(
            loss=total, mse=mse, gradient_norm=norm, skipped=skipped, stop=stop, psnr_db=psnr(mse, 2.0), kl=kl_nats
        )

    def result(self) -> SmallVae:
        """The autoencoder of the averaged weights; the statistics of its latents are not measured yet."""
        network = build_network(self.shape)
        network.load_state_dict(self.ema.state(self.network))
        return SmallVae(self.shape, network).to(self.process.device)


def network_shape(config: VaeTrainingConfig) -> SmallVaeShape:
    """The architecture that ``config`` asks for; ``ValueError`` for widths that it cannot have."""
    return validated(SmallVaeShape, config.model_dump(include={"channels", "patch", "widths"}), "train-vae")


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


def train_vae(config: VaeTrainingConfig, index: VideoIndex, out: Path, device: str = "auto") -> SmallVae:
    """Train a ``SmallVae`` on the frames of ``index`` and write it to ``out``; the same call again continues.

    Writes ``config.json``, ``model.safetensors``, ``reconstructions.png``, and what a run has: ``metrics.jsonl``,
    ``loss.png`` and ``checkpoints/``. Raises ``StoppedCleanly``, ``NumericsError`` and ``CheckpointError`` as
    ``magi.training.loop.train`` does, ``ValueError`` for a size that the stride does not divide.
    """
    check_size(config.height, config.width, network_shape(config).spatial_stride)
    with locked(out):
        log = TrainingLog(out, config.steps, is_main=True, unit="frames")
        trainer = VaeTrainer(config, index, resolve_device(device), log.say)
        continue_run(trainer, out)
        finished = (out / CONFIG_FILE).is_file()
        if finished and not trainer.step:
            raise ValueError(f"{out}: holds an autoencoder already, and no training to continue; give another folder")
        if finished and trainer.step >= config.steps:
            log.say(f"{out}: all {config.steps} steps are done; delete the folder to train again")
            return SmallVae.load(out)
        if trainer.step < config.steps:
            run_steps(trainer, out, log, KEEP_CHECKPOINTS)
        return _finish(trainer, out, log)


def _finish(trainer: VaeTrainer, out: Path, log: TrainingLog) -> SmallVae:
    """Measure the latents, write the autoencoder, and show and measure reconstructions of held-out videos."""
    config, vae = trainer.config, trainer.result()
    training, held_out = split_index(trainer.index)
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
    log.write({"step": trainer.step, **result, "latents_std": list(vae.normalization.std)})
    vae.save(out)
    log.say(
        f"{out}: {vae.id}, held-out frames {result['held_out_psnr_db']:.1f} dB, "
        f"worst {result['worst_frame_psnr_db']:.1f} dB; see {out / 'reconstructions.png'}"
    )
    return vae
