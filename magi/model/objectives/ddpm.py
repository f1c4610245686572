"""The paper's objective, DDPM's: noise schedule, adding noise, loss and reverse steps of one token (paper section 4).

The model's prediction is (..., 2C): the noise, and v in about [-1, 1] that interpolates the log variance of the reverse
step between its bounds (learned range; Nichol and Dhariwal, arXiv 2102.09672). Knows no model and no loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from magi.config import SamplingConfig


@dataclass(frozen=True)
class NoiseSchedule:
    """Coefficients of each step (I,), float64 on the CPU; ``timesteps`` are step numbers of the training schedule."""

    timesteps: Tensor
    betas: Tensor
    alphas_bar: Tensor
    posterior_log_variance: Tensor
    posterior_x0: Tensor
    posterior_xt: Tensor

    def __len__(self) -> int:
        return len(self.betas)


def schedule_from_betas(betas: Tensor, timesteps: Tensor) -> NoiseSchedule:
    """Derive the coefficients of q(x_{t-1} | x_t, x_0) (DDPM, arXiv 2006.11239, equations 6 and 7)."""
    alphas_bar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=betas.dtype), alphas_bar[:-1]])
    variance = betas * (1 - previous) / (1 - alphas_bar)
    return NoiseSchedule(
        timesteps=timesteps,
        betas=betas,
        alphas_bar=alphas_bar,
        # The variance of the last step is 0; its logarithm is replaced by that of the step before, if there is one.
        posterior_log_variance=torch.cat([variance[1:2] if len(betas) > 1 else betas, variance[1:]]).log(),
        posterior_x0=betas * previous.sqrt() / (1 - alphas_bar),
        posterior_xt=(1 - previous) * (1 - betas).sqrt() / (1 - alphas_bar),
    )


def cosine_schedule(steps: int) -> NoiseSchedule:
    """The cosine schedule of Nichol and Dhariwal (equation 17), betas at most 0.999."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)
    return schedule_from_betas(betas, torch.arange(steps))


def respace(schedule: NoiseSchedule, count: int, first: int = 0, last: int = 0) -> NoiseSchedule:
    """Keep ``count`` evenly spaced timesteps from ``first`` (0: the highest) down to ``last``, with their marginals.

    Sampling starts from unit noise at ``first``, and its step at ``last`` gives the clean token. Where few steps are
    taken, the highest timesteps multiply the head's error most, and the lowest have little noise left to remove.
    """
    first = first or len(schedule) - 1
    if not last < first < len(schedule):
        raise ValueError(
            f"sampling.first_timestep {first}, sampling.last_timestep {last}: expected the last below the first, "
            f"and the first below {len(schedule)}"
        )
    if not 1 <= count <= first - last + 1:
        raise ValueError(f"sampling.steps: expected 1..{first - last + 1}, got {count}")
    low, stride = (last, (first - last) / (count - 1)) if count > 1 else (first, 0)
    kept = torch.tensor([round(low + i * stride) for i in range(count)])
    alphas_bar = schedule.alphas_bar[kept]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])
    return schedule_from_betas(1 - alphas_bar / previous, schedule.timesteps[kept])


def _gather(values: Tensor, timestep: Tensor, like: Tensor) -> Tensor:
    """values[timestep] in device and dtype of ``like``, with a channel axis that broadcasts."""
    return values.to(like.dtype).to(like.device)[timestep].unsqueeze(-1)


def add_noise(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, for tokens (..., C) at ``timestep`` (...)."""
    alphas_bar = _gather(schedule.alphas_bar, timestep, x0)
    return alphas_bar.sqrt() * x0 + (1 - alphas_bar).sqrt() * noise


@dataclass(frozen=True)
class DiffusionLoss:
    """Per-token losses: ``mse`` of the noise and ``vlb`` in bits a channel, which trains the variance only.

    Another objective has its own measure in place of the first.
    """

    mse: Tensor
    vlb: Tensor


def diffusion_loss(
    schedule: NoiseSchedule, prediction: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, timestep: Tensor
) -> DiffusionLoss:
    """MAR's loss of tokens (..., C): noise MSE, and the variational bound with the mean frozen; means over channels.

    At timestep 0 the bound is the likelihood of x0. MAR takes over the discretised Gaussian of 8-bit images there;
    tokens are continuous, so the continuous density is used. It trains a variance that sampling never uses.
    """
    predicted_noise, interpolation = prediction.chunk(2, dim=-1)
    mse = (predicted_noise - noise).square().mean(dim=-1)
    mean, log_variance = _reverse_mean_variance(schedule, predicted_noise.detach(), interpolation, x_t, timestep)
    true_mean = _gather(schedule.posterior_x0, timestep, x0) * x0 + _gather(schedule.posterior_xt, timestep, x0) * x_t
    true_log_variance = _gather(schedule.posterior_log_variance, timestep, x0)
    divergence = 0.5 * (
        log_variance
        - true_log_variance
        - 1
        + torch.exp(true_log_variance - log_variance)
        + (true_mean - mean).square() * torch.exp(-log_variance)
    )
    likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * torch.exp(-log_variance))
    bound = torch.where((timestep == 0).unsqueeze(-1), likelihood, divergence)
    return DiffusionLoss(mse, bound.mean(dim=-1) / math.log(2))


def _reverse_mean_variance(
    schedule: NoiseSchedule, predicted_noise: Tensor, interpolation: Tensor, x_t: Tensor, timestep: Tensor
) -> tuple[Tensor, Tensor]:
    alphas_bar = _gather(schedule.alphas_bar, timestep, x_t)
    x0 = (x_t - (1 - alphas_bar).sqrt() * predicted_noise) / alphas_bar.sqrt()
    mean = _gather(schedule.posterior_x0, timestep, x_t) * x0 + _gather(schedule.posterior_xt, timestep, x_t) * x_t
    highest = _gather(schedule.betas.log(), timestep, x_t)
    lowest = _gather(schedule.posterior_log_variance, timestep, x_t)
    fraction = (interpolation + 1) / 2
    return mean, fraction * highest + (1 - fraction) * lowest


@dataclass(frozen=True, eq=False)
class ReverseTable:
    """Ancestral reverse steps for a loop: all that does not depend on tokens as six numbers a step, on the host.

    x0 = x0_from_xt * x_t + x0_from_noise * predicted noise, within the limit; mean = mean_from_x0 * x0 + mean_from_xt *
    x_t; the logarithm of the standard deviation is log_std + log_std_slope * interpolation. Index 0 is the last step.
    Without the limit a slight error of the noise predicted first, where alpha_bar is tiny, implies a huge token, which
    no later step can mend.
    """

    timesteps: Tensor
    x0_from_xt: tuple[float, ...]
    x0_from_noise: tuple[float, ...]
    mean_from_x0: tuple[float, ...]
    mean_from_xt: tuple[float, ...]
    log_std: tuple[float, ...]
    log_std_slope: tuple[float, ...]
    x0_limit: float

    def __len__(self) -> int:
        return len(self.log_std)

    def start(self, noise_MC: Tensor, scaled_noise_MC: Tensor) -> Tensor:
        """Unit noise: temperature is of the noise that steps add."""
        return noise_MC

    def step(
        self, index: int, x_t: Tensor, prediction_GMC: Tensor, scale: float | Tensor, scaled_noise: Tensor
    ) -> Tensor:
        """x of the next step; the last one (0) adds no noise.

        Under guidance (G = 2) the noise is that without conditions + ``scale`` * (with - without), and the variance
        that with conditions. ``scaled_noise`` is noise times temperature, as MAR's.
        """
        predicted_noise, interpolation = prediction_GMC[0].chunk(2, dim=-1)
        if len(prediction_GMC) == 2:
            without, _ = prediction_GMC[1].chunk(2, dim=-1)
            predicted_noise = torch.lerp(without, predicted_noise, scale)
        x0 = (x_t * self.x0_from_xt[index]).add_(predicted_noise, alpha=self.x0_from_noise[index])
        x0.clamp_(-self.x0_limit, self.x0_limit)
        mean = (x0 * self.mean_from_x0[index]).add_(x_t, alpha=self.mean_from_xt[index])
        if index == 0:
            return mean
        std = (interpolation * self.log_std_slope[index]).add_(self.log_std[index]).exp_()
        return mean.addcmul_(std, scaled_noise)


def reverse_table(schedule: NoiseSchedule, x0_limit: float = math.inf) -> ReverseTable:
    """Fold the ancestral steps of a (respaced) schedule for sampling."""
    lowest, highest = schedule.posterior_log_variance, schedule.betas.log()
    return ReverseTable(
        timesteps=schedule.timesteps,
        x0_from_xt=tuple(schedule.alphas_bar.rsqrt().tolist()),
        x0_from_noise=tuple((-((1 - schedule.alphas_bar) / schedule.alphas_bar).sqrt()).tolist()),
        mean_from_x0=tuple(schedule.posterior_x0.tolist()),
        mean_from_xt=tuple(schedule.posterior_xt.tolist()),
        log_std=tuple(((lowest + highest) / 4).tolist()),
        log_std_slope=tuple(((highest - lowest) / 4).tolist()),
        x0_limit=x0_limit,
    )


@dataclass(frozen=True, eq=False)
class DdpmObjective:
    """Predict the noise, and between which bounds the reverse step's variance lies; see ``Objective``."""

    schedule: NoiseSchedule
    outputs_per_channel: int = 2

    @staticmethod
    @cache
    def of(steps: int) -> DdpmObjective:
        """On the cosine schedule of ``steps`` steps; computed once, as every training clip asks for it."""
        with torch.device("cpu"):  # the first to ask may be building a model without data, on 'meta'
            return DdpmObjective(cosine_schedule(steps))

    def draw_time(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Step numbers, long, uniform over the schedule."""
        return torch.randint(len(self.schedule), shape, generator=generator)

    def corrupt(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """``add_noise``."""
        return add_noise(self.schedule, x0, noise, time)

    def loss(self, prediction: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, time: Tensor) -> DiffusionLoss:
        """``diffusion_loss``."""
        return diffusion_loss(self.schedule, prediction, x0, x_t, noise, time)

    def steps(self, settings: SamplingConfig) -> ReverseTable:
        """Ancestral steps; ValueError for more than the schedule has between its ends."""
        schedule = respace(self.schedule, settings.steps, settings.first_timestep, settings.last_timestep)
        return reverse_table(schedule, settings.x0_limit)

    def to(self, device: torch.device) -> DdpmObjective:
        """With the schedule on another device."""
        schedule = self.schedule
        moved = {field.name: getattr(schedule, field.name).to(device) for field in fields(schedule)}
        return replace(self, schedule=replace(schedule, **moved))
