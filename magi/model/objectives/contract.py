"""What the diffusion head is trained on, and how sampling takes a step with it: the contract of an objective.

Another objective, such as flow matching, is one file beside ``ddpm.py`` and ``energy.py``, its name in
``model.objective`` of the config, and its line in ``make_objective``; loss, head and sampler know this contract alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from magi.model.objectives.ddpm import DdpmObjective, DiffusionLoss
from magi.model.objectives.energy import EnergyObjective

if TYPE_CHECKING:
    from magi.config import ModelConfig, SamplingConfig


class ReverseSteps(Protocol):
    """The steps of a sampling loop, counted down to index 0; ``timesteps`` (I,) are what the head is told of each."""

    @property
    def timesteps(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...

    def start(self, noise_MC: Tensor, scaled_noise_MC: Tensor) -> Tensor:
        """x of the first step, from unit noise; ``scaled_noise_MC`` is the same times temperature."""

    def step(
        self, index: int, x_t: Tensor, prediction_GMC: Tensor, scale: float | Tensor, scaled_noise: Tensor
    ) -> Tensor:
        """x of the next step.

        ``prediction_GMC`` is the head's output with the conditions, and under guidance of strength ``scale`` the one
        without them after it (G = 2). ``scaled_noise`` is noise times temperature.
        """


class Objective(Protocol):
    """Tokens (..., C) and their noisy versions at a time (...)."""

    @property
    def outputs_per_channel(self) -> int:
        """Numbers that the head predicts a channel."""

    def draw_time(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Times of noisy tokens in training, as the head is told them."""

    def corrupt(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The noisy tokens x_t."""

    def loss(self, prediction: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, time: Tensor) -> DiffusionLoss:
        """The parts of the loss of every token, whose noisings are the first axis (R, ..., C).

        An objective without a variational term gives zeros there.
        """

    def steps(self, settings: SamplingConfig) -> ReverseSteps:
        """Reverse steps as the settings place them; ValueError for more than there are."""

    def to(self, device: torch.device) -> Objective:
        """The same on another device."""


def make_objective(config: ModelConfig) -> Objective:
    """The objective that ``model.objective`` names."""
    if config.objective == "energy":
        return EnergyObjective(config.diffusion_steps - 1)
    return DdpmObjective.of(config.diffusion_steps)
