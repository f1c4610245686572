"""The wall of an objective: flow matching, written here in thirty lines, trains and samples without another change."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.objectives.ddpm import DiffusionLoss
from magi.sampling.generate import generate
from magi.training.batch import make_batch
from magi.training.corruption import TokenShape, draw_corruption
from magi.training.loss import MagiLoss
from tests.fakes.training_runs import Clips, tiny_config

USERS = ("model.magi", "training.loss", "training.corruption", "sampling.frame")
STEPS = 50


@dataclass(frozen=True)
class EulerSteps:
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def start(self, noise_MC: Tensor, scaled_noise_MC: Tensor) -> Tensor:
        return noise_MC

    def step(
        self, index: int, x_t: Tensor, prediction_GMC: Tensor, scale: float | Tensor, scaled_noise: Tensor
    ) -> Tensor:
        velocity = prediction_GMC[0]
        if len(prediction_GMC) == 2:
            velocity = torch.lerp(prediction_GMC[1], velocity, scale)
        return x_t - velocity / len(self)


class FlowObjective:
    """x_t = (1 - t) x0 + t noise, and the head predicts the velocity noise - x0; times are 0..STEPS - 1."""

    outputs_per_channel = 1

    def draw_time(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(STEPS, shape, generator=generator)

    def corrupt(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return torch.lerp(x0, noise, ((time + 1) / STEPS).to(x0)[..., None])

    def loss(self, prediction: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, time: Tensor) -> DiffusionLoss:
        mse = (prediction - (noise - x0)).square().mean(-1)
        return DiffusionLoss(mse, torch.zeros_like(mse))

    def steps(self, settings: SamplingConfig) -> EulerSteps:
        return EulerSteps(torch.arange(settings.steps))

    def to(self, device: torch.device) -> "FlowObjective":
        return self


def test_another_objective_trains_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in USERS:
        monkeypatch.setattr(f"magi.{user}.make_objective", lambda config: FlowObjective())
    config, samples = tiny_config(), [0, 1]
    clips = [Clips()[sample] for sample in samples]
    latents_BTCHW = torch.stack([torch.from_numpy(clip.latents_TCHW) for clip in clips])
    frames, channels, height, width = latents_BTCHW.shape[1:]
    latent = LatentShape(frames=frames, channels=channels, height=height, width=width)
    model = Magi(config.model, latent, torch.Generator().manual_seed(0))
    assert model.head.output.out_features == model.token_channels
    tokens_BTNC = model.patchify(latents_BTCHW)
    shape = TokenShape(frames, model.tokens_per_frame, model.token_channels)
    draws = [draw_corruption(config.training, config.model, shape, sample) for sample in samples]
    batch = make_batch(clips, draws, config.model)
    assert int(batch.timestep_RBUN.max()) < STEPS
    loss = MagiLoss(config.model, torch.device("cpu"))
    parts = loss(model, tokens_BTNC, batch, int(batch.masked_BUN.sum()))
    # The head starts at zero: the loss is the mean square of the velocity, 1 + that of the tokens.
    assert (
        float(parts.mse.detach()) == pytest.approx(1 + float(tokens_BTNC.square().mean()), rel=0.2)
        and float(parts.vlb.detach()) == 0
    )
    ones_B = torch.ones(2, dtype=torch.long)
    made = generate(
        model,
        frames=2,
        conditions=Conditions(ones_B, ones_B, 0 * ones_B if config.model.classes else None),
        generators=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        config=SamplingConfig(iterations=1, steps=4, temperature=1.0),
    )
    # A velocity of zero leaves the noise as it was drawn.
    assert all(0.5 < float(frame_BCHW.std()) < 1.5 for frame_BCHW in made)
