"""Everything random of one training clip, drawn from (seed, sample number) alone (paper section 4).

Mask ratios and positions, observation noise, class dropout, diffusion timesteps and noise all come from CPU generators
of the clip's own. So a clip is trained on in the same way in any micro-batch, on any number of processes and loader
workers, and after any resume. It knows no files, models or processes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magi.config import ModelConfig, TrainingConfig
from magi.model.masking import draw_mask, draw_mask_ratio, masked_counts
from magi.model.noise_injection import draw_noise_amplitude
from magi.model.objectives.contract import make_objective
from magi.seeding import torch_generator


@dataclass(frozen=True)
class DrawShape:
    """Sizes of a clip's draws: latent frames T, tokens a frame N, channels of a token C."""

    frames: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class Corruption:
    """The draws of one clip; R is ``training.diffusion_batch_mul``.

    ``amplitude`` () and ``noise_TNC`` of the observation noise; ``drop_class``. Of each masked view, U predicted slots
    in all, one view after another: ``masked_UN`` bool; ``timestep_RUN`` (long, 0..steps - 1) and
    ``diffusion_noise_RUNC``, drawn for all tokens though only masked ones are trained.
    """

    masked_UN: Tensor
    amplitude: Tensor
    noise_TNC: Tensor
    drop_class: bool
    timestep_RUN: Tensor
    diffusion_noise_RUNC: Tensor


def _of_view(kind: str, training: TrainingConfig, sample: int, view: int) -> torch.Generator:
    """A view's draws depend on nothing but its number, so the first is the one of a clip with one view."""
    return torch_generator(kind, training.seed, sample, *([view] if view else []))


def _draw_ratio(training: TrainingConfig, shape: DrawShape, sample: int, view: int) -> tuple[Tensor, torch.Generator]:
    """The mask ratio_T of a view, and its generator for what follows; masks have generators of their own."""
    generator = _of_view("mask", training, sample, view)
    mean, std, minimum = training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min
    return draw_mask_ratio(shape.frames, mean, std, minimum, generator), generator


def _draw_mask(training: TrainingConfig, shape: DrawShape, sample: int, view: int) -> Tensor:
    ratio_T, generator = _draw_ratio(training, shape, sample, view)
    return draw_mask(ratio_T, shape.tokens, generator)


def masked_tokens(training: TrainingConfig, shape: DrawShape, samples: list[int]) -> int:
    """How many tokens all views of the clips ``samples`` have masked; every process can tell without the others.

    The device is idle meanwhile, so no more is drawn than the ratios.
    """
    views = [(sample, view) for sample in samples for view in range(training.masks_per_clip)]
    return sum(int(masked_counts(_draw_ratio(training, shape, *one)[0], shape.tokens).sum()) for one in views)


def draw_corruption(training: TrainingConfig, model: ModelConfig, shape: DrawShape, sample: int) -> Corruption:
    """All draws of the clip with number ``sample``."""
    views = range(training.masks_per_clip)
    generators = [_of_view("noise", training, sample, view) for view in views]
    frame_shape = (shape.frames, shape.tokens)
    noisings, objective = training.diffusion_batch_mul, make_objective(model)
    return Corruption(
        masked_UN=torch.cat([_draw_mask(training, shape, sample, view) for view in views]),
        amplitude=draw_noise_amplitude(model.noise_max, generators[0]),
        noise_TNC=torch.randn(*frame_shape, shape.channels, generator=generators[0]),
        drop_class=bool(torch.rand((), generator=generators[0]) < training.class_dropout),
        timestep_RUN=torch.cat([objective.draw_time((noisings, *frame_shape), one) for one in generators], dim=1),
        diffusion_noise_RUNC=torch.cat(
            [torch.randn(noisings, *frame_shape, shape.channels, generator=one) for one in generators], dim=1
        ),
    )
