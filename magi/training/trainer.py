"""One optimizer step of a MAGI (paper section 4): everything put together, batch, loss, gradients, AdamW, EMA.

The guard against non-finite numbers and what a checkpoint holds are ``RunState``'s. It knows no files, loop or log.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from magi.config import Config
from magi.model.magi import Magi
from magi.seeding import posterior_noise, seed_of
from magi.training.batch import Batch, Clips, MicroBatches, data_identity, load_batches
from magi.training.batch_sampler import StepBatchSampler
from magi.training.corruption import TokenShape
from magi.training.loss import MagiLoss
from magi.training.optimizer import learning_rate, make_optimizer
from magi.training.parallelize import Distributed, gather, gradients_stay_local, parallelize
from magi.training.run_state import RunState, StepResult
from magi.vae.contract import VideoAutoencoder
from magi.weights import weights_hash


@dataclass(frozen=True, kw_only=True)
class MagiStep(StepResult):
    """A step whose loss is ``mse`` plus the bound ``vlb``."""

    vlb: float


class Trainer(RunState):
    """A run that trains a MAGI."""

    config: Config

    def __init__(
        self, config: Config, clips: Clips, vae: VideoAutoencoder | None, model: Magi, process: Distributed
    ) -> None:
        self.clips, self.model = clips, model.to(process.device)
        self.vae = vae.to(process.device) if vae is not None else None
        self.shape = TokenShape(model.latent.frames, model.tokens_per_frame, model.token_channels)
        frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
        self.teacher = weights_hash(frozen)[:16] if frozen else None
        # Sharding replaces the parameters, so what holds on to them comes after.
        self.wrapped = parallelize(self.model, config.training, process)
        optimizer = make_optimizer(self.model, config.training)
        super().__init__(config, config.training, self.model, optimizer, process)
        self.loss = MagiLoss(config.model, process.device, config.training.first_frame_views)
        self._batches: Generator[Batch, None, None] | None = None

    def identity(self) -> dict[str, str | None]:
        """The autoencoder, the data, and of frozen weights their hash."""
        vae = self.vae.id if self.vae is not None else None
        return {"vae": vae, "data": data_identity(self.clips)} | ({"teacher": self.teacher} if self.teacher else {})

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, cool-down."""
        return learning_rate(self.config.training, step)

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

    def take_step(self, stop_asked: Callable[[], bool] = lambda: False) -> MagiStep:
        """One optimizer step over all processes; a non-finite one changes nothing."""
        self.model.train()
        (mse, vlb), norm, skipped, stop = self.update(self._backward(), stop_asked)
        return MagiStep(loss=mse + vlb, mse=mse, vlb=vlb, gradient_norm=norm, skipped=skipped, stop=stop)

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
