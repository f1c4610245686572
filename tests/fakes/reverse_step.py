"""One ancestral reverse step, written as in the paper (DDPM, arXiv 2006.11239), for the tables to be compared with."""

import math

import torch
from torch import Tensor

from magi.model.objectives.ddpm import NoiseSchedule


def reverse_step(
    schedule: NoiseSchedule,
    index: int,
    x_t: Tensor,
    prediction: Tensor,
    noise: Tensor,
    temperature: float = 1.0,
    x0_limit: float = math.inf,
) -> Tensor:
    """From x_t at ``index`` of a respaced schedule; ``prediction`` is noise and the interpolation of the variance."""
    predicted_noise, interpolation = prediction.chunk(2, dim=-1)
    alpha_bar, beta = float(schedule.alphas_bar[index]), float(schedule.betas[index])
    x0 = ((x_t - math.sqrt(1 - alpha_bar) * predicted_noise) / math.sqrt(alpha_bar)).clamp(-x0_limit, x0_limit)
    mean = float(schedule.posterior_x0[index]) * x0 + float(schedule.posterior_xt[index]) * x_t
    fraction = (interpolation + 1) / 2
    log_variance = fraction * math.log(beta) + (1 - fraction) * float(schedule.posterior_log_variance[index])
    return mean if index == 0 else mean + torch.exp(0.5 * log_variance) * noise * temperature
