"""The state of a run in one process, and one optimizer step of it (paper section 4).

Everything put together: batch, loss, gradients, the guard against non-finite numbers, AdamW, EMA. It knows no files,
no loop and no log.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from magi.config import Config
from magi.model.magi import Magi
from magi.seeding import posterior_noise, seed_of
from magi.training.batch import Batch, Clips, MicroBatches, data_identity, load_batches
from magi.training.batch_sampler import StepBatchSampler
from magi.training.checkpoint import Checkpoint, check_checkpoint
from magi.training.corruption import TokenShape
from magi.training.ema import Ema
from magi.training.loss import MagiLoss
from magi.training.optimizer import (
    every_optimizer_tensor,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from magi.training.parallelize import Distributed, full_tensor, gather, gradients_stay_local, parallelize, shard
from magi.vae.contract import VideoAutoencoder


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to, over all processes; ``skipped`` if it was non-finite and changed nothing."""

    mse: float
    vlb: float
    gradient_norm: float
    skipped: bool
    stop: bool

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.mse + self.vlb


class Trainer:
    """The state of a run in one process, and one step of it."""

    def __init__(
        self, config: Config, clips: Clips, vae: VideoAutoencoder | None, model: Magi, process: Distributed
    ) -> None:
        self.config, self.clips, self.process = config, clips, process
        self.model = model.to(process.device)
        self.vae = vae.to(process.device) if vae is not None else None
        self.shape = TokenShape(model.latent.frames, model.tokens_per_frame, model.token_channels)
        # Sharding replaces the parameters, so what holds on to them comes after.
        self.wrapped = parallelize(self.model, config.training, process)
        self.ema = Ema(self.model, config.training.ema_decay)
        self.optimizer = make_optimizer(self.model, config.training)
        self.loss = MagiLoss(config.model, process.device)
        self.step = 0
        self.skips_in_a_row = 0
        self._batches: Generator[Batch, None, None] | None = None

    # Continuing

    def checkpoint(self) -> Checkpoint:
        """All that the run continues from, in the first process; every process must call it."""
        ema, optimizer = self.ema.state(self.model), optimizer_tensors(self.optimizer, self.model)
        model, ema, optimizer = (gather(part, self.process) for part in (self.model.state_dict(), ema, optimizer))
        return Checkpoint(model, ema, optimizer, self.checkpoint_state())

    def checkpoint_state(self) -> dict[str, object]:
        """The part of a checkpoint that is no tensor."""
        return {
            "step": self.step,
            "skips_in_a_row": self.skips_in_a_row,
            "config": self.config.model_dump(mode="json"),
            "vae": self.vae.id if self.vae is not None else None,
            "data": data_identity(self.clips),
            "torch": str(torch.__version__),
        }

    def check(self, found: Checkpoint, folder: Path) -> None:
        """``CheckpointError`` for a checkpoint in ``folder`` that is not one of this run, or not whole."""
        tensors = self.model.state_dict(), self.ema.state(self.model), every_optimizer_tensor(self.model)
        check_checkpoint(found, Checkpoint(*tensors, self.checkpoint_state()), self.config, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that was checked."""
        self.model.load_state_dict(dict(checkpoint.model))
        load_optimizer(self.optimizer, self.model, shard(checkpoint.optimizer, self.model))
        self.ema.load(shard(checkpoint.ema, self.model))
        self.step, self.skips_in_a_row = checkpoint.step, checkpoint.state["skips_in_a_row"]

    def start(self) -> None:
        """Open the data at the current step."""
        training, process = self.config.training, self.process
        self.order = StepBatchSampler(
            self.step, training.steps, training.batch, training.micro_batch, process.rank, process.world
        )
        batches = MicroBatches(self.clips, training, self.config.model, self.shape)
        workers, pin = self.config.data.workers, process.device.type == "cuda"
        self._batches = load_batches(batches, self.order, workers, pin)

    def close(self) -> None:
        """End the loader's workers, which ignore the signals that ask a run to stop."""
        if self._batches is not None:
            self._batches.close()

    def ema_model(self) -> Magi | None:
        """A model of its own with the averaged weights, in evaluation mode, in the first process (None elsewhere).

        Every process must call it.
        """
        averages = gather(self.ema.state(self.model), self.process)
        if not self.process.is_main:
            return None
        # The weights are overwritten; a generator of its own leaves the global state alone.
        averaged = Magi(self.model.config, self.model.latent, torch.Generator()).to(self.process.device)
        averaged.load_state_dict(averages)
        return averaged.eval().requires_grad_(False)

    # One step

    def take_step(self, stop_asked: Callable[[], bool] = lambda: False) -> StepResult:
        """One optimizer step over all processes; a non-finite one changes nothing, and ten in a row end the run."""
        self.model.train()
        training, number = self.config.training, self.step + 1
        parts = self._backward()
        norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip, foreach=True))
        mse, vlb, gradient_norm = torch.stack([*parts, norm.float()]).tolist()
        bad = not torch.tensor([mse, vlb, gradient_norm]).isfinite().all()
        # One exchange a step: all processes skip or none, and all stop after the same step.
        mse, vlb, bad_count, stop_count = self.process.sum(mse, vlb, float(bad), float(stop_asked()))
        if not bad_count:
            set_learning_rate(self.optimizer, learning_rate(training, number))
            self.optimizer.step()
            self.ema.update(self.model, number)
        self.optimizer.zero_grad(set_to_none=True)
        self.step = number
        self.skips_in_a_row = self.skips_in_a_row + 1 if bad_count else 0
        return StepResult(mse, vlb, gradient_norm, skipped=bad_count > 0, stop=stop_count > 0)

    def _backward(self) -> Tensor:
        """Gradients of the step's loss over all micro-batches and processes; returns (mse, vlb) of this one's share."""
        assert self._batches is not None, "start() comes first"
        training, process = self.config.training, self.process
        micro_batches = self.order.of_step(self.step)
        parts = torch.zeros(2, device=process.device)
        for index in range(len(micro_batches)):
            batch = next(self._batches).to(process.device)
            tokens_BTNC = self.model.patchify(self._latents(batch))
            torch.manual_seed(seed_of("dropout", training.seed, self.step, process.rank, index))
            with gradients_stay_local(self.wrapped, local=index + 1 < len(micro_batches)):
                loss = self.loss(self.wrapped, tokens_BTNC, batch, batch.step_masked)
                # The wrapper averages gradients over processes; the loss is a share of the whole step's mean.
                ((loss.mse + loss.vlb) * process.world).backward()
            parts += torch.stack([loss.mse.detach(), loss.vlb.detach()])
        return parts

    def _latents(self, batch: Batch) -> Tensor:
        if batch.latents_BTCHW is not None:
            latents_BTCHW = batch.latents_BTCHW
        else:
            assert batch.video_BTHWC is not None
            if self.vae is None:
                raise ValueError("the data are videos, so training needs an autoencoder; set vae.name")
            latents_BTCHW = self._encoded(self.vae, batch)
        expected = self.model.latent
        if latents_BTCHW.shape[1:] != (expected.frames, expected.channels, expected.height, expected.width):
            raise ValueError(
                f"latents of a clip are {tuple(latents_BTCHW.shape[1:])} (T, C, H, W), "
                f"the model was built for {expected}; check data.frames, data.height, data.width and vae"
            )
        return latents_BTCHW

    def _encoded(self, vae: VideoAutoencoder, batch: Batch) -> Tensor:
        """Latents of raw videos; drawn from the posterior as the same samples of latents on disk would be."""
        assert batch.video_BTHWC is not None
        if not self.config.data.sample_posterior:
            return vae.encode(batch.video_BTHWC)
        posterior, seed = vae.posterior(batch.video_BTHWC), self.config.training.seed
        shape = tuple(posterior.mean_BTCHW.shape[1:])
        noise_BTCHW = torch.stack([posterior_noise(shape, seed, sample) for sample in batch.samples])
        return posterior.mean_BTCHW + posterior.std_BTCHW * noise_BTCHW.to(posterior.mean_BTCHW.device)
