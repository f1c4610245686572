"""The energy score as an objective: the head turns noise into a token in one call (not in the paper; EAR, 2505.07812).

How well samples of a token fit the token that came (Gneiting and Raftery 2007, equation 21). A strictly proper score:
its mean is lowest where samples are drawn from the tokens' own distribution, neither narrower nor wider. Twice the
score of that paper, as energy-score heads are trained on. Knows no model and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magi.model.objectives.ddpm import DiffusionLoss

if TYPE_CHECKING:
    from magi.config import SamplingConfig


def energy_score(samples_nMC: Tensor, token_MC: Tensor) -> Tensor:
    """2 E|X - y| - E|X - X'| of M tokens from n samples X of each, Euclidean, (M,); lower is better.

    Its mean does not depend on n; ``ValueError`` for fewer than two samples, whose spread is unknown. The gradient of a
    distance of 0 is 0.
    """
    count = len(samples_nMC)
    if count < 2:
        raise ValueError(f"an energy score needs at least two samples of each token, got {count}")
    distance_M = (samples_nMC - token_MC).norm(dim=-1).mean(dim=0)
    pairs_nnM = (samples_nMC[:, None] - samples_nMC[None]).norm(dim=-1)
    return 2 * distance_M - pairs_nnM.sum(dim=(0, 1)) / (count * (count - 1))


@dataclass(frozen=True, eq=False)
class OneStep:
    """The head's only call; ``timesteps`` (1,) is what it was told in training."""

    timesteps: Tensor

    def __len__(self) -> int:
        return 1

    def start(self, noise_MC: Tensor, scaled_noise_MC: Tensor) -> Tensor:
        """The noise that becomes a token; a temperature below 1 gives likelier tokens, as it narrows what is drawn."""
        return scaled_noise_MC

    def step(
        self, index: int, x_t: Tensor, prediction_GMC: Tensor, scale: float | Tensor, scaled_noise: Tensor
    ) -> Tensor:
        """The token; under guidance (G = 2) that without conditions + ``scale`` * (with - without), of one noise."""
        token_MC = prediction_GMC[0]
        return torch.lerp(prediction_GMC[1], token_MC, scale) if len(prediction_GMC) == 2 else token_MC


@dataclass(frozen=True)
class EnergyObjective:
    """Predict the token itself from noise alone; the noisings of a token are the samples of its score.

    ``time`` is the timestep that the head is always told: the one at which a DDPM head, too, sees nothing but noise.
    """

    time: int
    outputs_per_channel: int = 1

    def draw_time(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The one timestep."""
        return torch.full(shape, self.time)

    def corrupt(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The noise."""
        return noise

    def loss(self, prediction: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, time: Tensor) -> DiffusionLoss:
        """The energy score of a token's R predictions (R, ..., C) for each of them, in ``mse``; its mean is the score.

        ``ValueError`` for R below 2.
        """
        if len(prediction) < 2:
            raise ValueError("training.diffusion_batch_mul 1: samples of a token are compared; set it to 2 or more")
        score = energy_score(prediction, x0[0]).expand(prediction.shape[:-1])
        return DiffusionLoss(score, torch.zeros_like(score))

    def steps(self, settings: SamplingConfig) -> OneStep:
        """One step; ``ValueError`` where more are asked for."""
        if settings.steps != 1:
            raise ValueError(f"sampling.steps {settings.steps}: the head of this model was trained for one step; set 1")
        return OneStep(torch.tensor([self.time]))

    def to(self, device: torch.device) -> EnergyObjective:
        """The same: it has no tensors."""
        return self
