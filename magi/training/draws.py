"""Everything random of one training clip, drawn from (seed, sample number) alone (paper section 4).

Mask ratios and positions, observation noise, class dropout, diffusion timesteps and noise all come from CPU generators
of the clip's own. So a clip is trained on in the same way in any micro-batch, on any number of processes and loader
workers, and after any resume. It knows no files, models or processes.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from magi.config import ModelConfig, TrainingConfig
from magi.model.masking import draw_mask, draw_mask_ratio
from magi.model.noise_injection import draw_noise_amplitude


def seed_of(*numbers: int | str) -> int:
    """A 63-bit seed that mixes all of ``numbers``, so that neighbours share nothing."""
    text = " ".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _generator(*numbers: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*numbers))


@dataclass(frozen=True)
class DrawShape:
    """Sizes of a clip's draws: latent frames T, tokens a frame N, channels of a token C."""

    frames: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class ClipDraws:
    """The draws of one clip; R is ``training.diffusion_batch_mul``.

    ``masked_TN`` bool; ``amplitude`` () and ``noise_TNC`` of the observation noise; ``drop_class``; ``timestep_RTN``
    (long, 0..steps - 1) and ``diffusion_noise_RTNC``, drawn for all tokens though only masked ones are trained.
    """

    masked_TN: Tensor
    amplitude: Tensor
    noise_TNC: Tensor
    drop_class: bool
    timestep_RTN: Tensor
    diffusion_noise_RTNC: Tensor


def _draw_mask(training: TrainingConfig, shape: DrawShape, sample: int) -> Tensor:
    # The mask has a generator of its own, so that counting masked tokens draws no noise.
    generator = _generator("mask", training.seed, sample)
    mean, std, minimum = training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min
    ratio_T = draw_mask_ratio(shape.frames, mean, std, minimum, generator)
    return draw_mask(ratio_T, shape.tokens, generator)


def masked_tokens(training: TrainingConfig, shape: DrawShape, samples: list[int]) -> int:
    """How many tokens the clips ``samples`` have masked, together; every process can tell without asking the others."""
    return sum(int(_draw_mask(training, shape, sample).sum()) for sample in samples)


def draw_clip(training: TrainingConfig, model: ModelConfig, shape: DrawShape, sample: int) -> ClipDraws:
    """All draws of the clip with number ``sample``."""
    generator = _generator("noise", training.seed, sample)
    frame_shape = (shape.frames, shape.tokens)
    noisings = training.diffusion_batch_mul
    return ClipDraws(
        masked_TN=_draw_mask(training, shape, sample),
        amplitude=draw_noise_amplitude(model.noise_max, generator),
        noise_TNC=torch.randn(*frame_shape, shape.channels, generator=generator),
        drop_class=bool(torch.rand((), generator=generator) < training.class_dropout),
        timestep_RTN=torch.randint(model.diffusion_steps, (noisings, *frame_shape), generator=generator),
        diffusion_noise_RTNC=torch.randn(noisings, *frame_shape, shape.channels, generator=generator),
    )
