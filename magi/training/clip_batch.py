"""What one training pass takes: clips, what the model is told of them, and their draws, stacked.

It knows no files, datasets, models or processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from magi.config import Config
from magi.model.conditioning import Conditions
from magi.model.noise_injection import noise_level
from magi.training.corruption import Corruption


@dataclass(frozen=True)
class Batch:
    """B clips: ``video_BTHWC`` (uint8) or ``latents_BTCHW``, their conditions and their draws (see ``Corruption``).

    ``picked_M`` holds the indices of the M masked tokens in the flattened (B, U, N) tokens: counted here, on the CPU,
    so that no device has to tell its host how many there are.
    """

    samples: tuple[int, ...]
    video_BTHWC: Tensor | None
    latents_BTCHW: Tensor | None
    conditions: Conditions
    masked_BUN: Tensor
    picked_M: Tensor
    amplitude_B: Tensor
    noise_BTNC: Tensor
    timestep_RBUN: Tensor
    diffusion_noise_RBUNC: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; ``DataLoader`` looks for this name."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed, conditions=self.conditions.map(function))


def stack_draws(
    draws: list[Corruption],
    config: Config,
    *,
    samples: tuple[int, ...],
    interval_B: Tensor,
    video_BTHWC: Tensor | None = None,
    latents_BTCHW: Tensor | None = None,
    label_B: Tensor | None = None,
) -> Batch:
    """A batch of clips and their draws, on the CPU."""
    amplitude_B = torch.stack([draw.amplitude for draw in draws])
    if config.model.teacher_forcing == "masked":
        amplitude_B = torch.zeros_like(amplitude_B)  # no observation frames, so no noise to tell of
    masked_BUN = torch.stack([draw.masked_UN for draw in draws])
    return Batch(
        samples=samples,
        video_BTHWC=video_BTHWC,
        latents_BTCHW=latents_BTCHW,
        conditions=Conditions(
            interval_B, noise_level(amplitude_B, config.model.noise_max, config.model.noise_levels), label_B
        ),
        masked_BUN=masked_BUN,
        picked_M=masked_BUN.flatten().nonzero().squeeze(1),
        amplitude_B=amplitude_B,
        noise_BTNC=torch.stack([draw.noise_TNC for draw in draws]),
        timestep_RBUN=torch.stack([draw.timestep_RUN for draw in draws], dim=1),
        diffusion_noise_RBUNC=torch.stack([draw.diffusion_noise_RUNC for draw in draws], dim=1),
    )
