"""Noise on the observation frames of a training clip, and its levels (paper section 4, after GameNGen).

At inference the context is generated and so imperfect; noise in training teaches the model to live with that. Frames
that are predicted are never touched.
"""

from dataclasses import replace

import torch
from torch import Tensor

from magi.model.teacher_forcing import ForcedSequence


def draw_noise_amplitude(maximum: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw one amplitude () ~ U(0, maximum); one a clip is this project's decision, the paper leaves it open."""
    return maximum * torch.rand((), generator=generator)


def noise_level(amplitude_B: Tensor, maximum: float, levels: int) -> Tensor:
    """Bucket amplitudes in [0, maximum] into levels 1..levels (long); inference without noise is level 1."""
    if maximum == 0:
        return torch.ones_like(amplitude_B, dtype=torch.long)
    return (amplitude_B / maximum * levels).long().clamp(0, levels - 1) + 1


def inject_noise(sequence: ForcedSequence, noise_BTNC: Tensor, amplitude_B: Tensor) -> ForcedSequence:
    """Add amplitude * noise to the observation slots; ``noise_BTNC`` is one draw for each latent frame."""
    count = sequence.observations
    observed_BSNC = sequence.tokens_BSNC[:, :count]
    noisy_BSNC = observed_BSNC + amplitude_B[:, None, None, None] * noise_BTNC[:, sequence.time_S[:count]]
    return replace(sequence, tokens_BSNC=torch.cat([noisy_BSNC, sequence.tokens_BSNC[:, count:]], dim=1))
