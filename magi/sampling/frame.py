"""One frame: its tokens in masked iterations, each a pass of the transformer and a denoising loop (section 5).

A plan says how many tokens and how much guidance each iteration has, and the denoising steps. It knows no frame loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.masking import cosine_counts, random_order
from magi.model.objectives.contract import ReverseSteps, make_objective
from magi.sampling.denoise import Denoiser, draw_noise
from magi.sampling.history import History


@dataclass(frozen=True)
class FramePlan:
    """What is the same for every frame: each iteration's count of tokens and guidance scale, and the reverse steps."""

    counts: tuple[int, ...]
    scales: tuple[float, ...]
    table: ReverseSteps


def plan_frame(model: Magi, config: SamplingConfig, first: bool = False) -> FramePlan:
    """Counts, guidance scales and reverse steps of a frame, or of a ``first`` one, which has none before it.

    ValueError for more iterations or steps than exist.
    """
    if first and config.first_frame_steps:
        config = config.changed(steps=config.first_frame_steps, first_timestep=0, last_timestep=0)
    counts = cosine_counts(model.tokens_per_frame, config.iterations)
    return FramePlan(tuple(counts), guidance_scales(config, counts), make_objective(model.config).steps(config))


def guidance_scales(config: SamplingConfig, counts: Sequence[int]) -> tuple[float, ...]:
    """Guidance scale of each iteration, of which iteration i predicts ``counts[i]`` tokens."""
    predicted = torch.tensor(counts).cumsum(0) / sum(counts)
    return tuple(guidance_scale(config, share) for share in predicted.tolist())


def guidance_scale(config: SamplingConfig, predicted: float) -> float:
    """Scale of an iteration after which the share ``predicted`` of the frame's tokens is there.

    MAR's linear schedule: 1 + (guidance - 1) * predicted, up to the full scale in the last iteration (MAR still counts
    one token as masked there).
    """
    if config.guidance_schedule == "constant":
        return config.guidance
    return 1 + (config.guidance - 1) * predicted


def generate_frame(
    model: Magi,
    history: History,
    generators: Sequence[torch.Generator],
    plan: FramePlan,
    denoiser: Denoiser,
    order_BN: Tensor | None = None,
) -> Tensor:
    """The iteration loop: tokens_BNC of the next frame, every token predicted exactly once.

    The order is random unless given. The host draws random numbers and goes on; it never waits for the device.
    """
    weight, N, C = model.mask_token, model.tokens_per_frame, model.token_channels
    batch, device, dtype = len(generators), weight.device, torch.promote_types(weight.dtype, torch.float32)
    if order_BN is None:
        order_BN = torch.stack([random_order(N, generator) for generator in generators])
    order_BN = _moved(order_BN, device)
    scales = _moved(torch.tensor(plan.scales, dtype=dtype), device)
    tokens_BNC = torch.zeros(batch, N, C, device=device, dtype=dtype)
    masked_BN = torch.ones(batch, N, device=device, dtype=torch.bool)
    start = 0
    for count, scale in zip(plan.counts, scales, strict=True):
        picked_Bm = order_BN[:, start : start + count]
        z_GMD = history.predict(tokens_BNC, masked_BN, picked_Bm).flatten(1, 2)
        noise_IMC = _moved(draw_noise(generators, len(plan.table), count, C).to(dtype), device)
        x_MC = denoiser(z_GMD, noise_IMC, plan.table, scale)
        tokens_BNC.scatter_(1, picked_Bm[..., None].expand(-1, -1, C), x_MC.unflatten(0, (batch, count)))
        masked_BN.scatter_(1, picked_Bm, False)
        start += count
    return tokens_BNC


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the CPU on ``device``, through pinned memory so that nobody waits."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
