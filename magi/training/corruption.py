"""Everything random of a training clip, drawn from (seed, sample number) alone (paper section 4).

Mask ratios and positions, observation noise, class dropout, diffusion timesteps and noise all come from CPU generators
of the clip's own. So a clip is trained on in the same way in any micro-batch, on any number of processes and loader
workers, and after any resume. It knows no files, models or processes.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from magi.config import ModelConfig, TrainingConfig
from magi.model.masking import draw_mask, draw_mask_ratio, masked_counts
from magi.model.noise_injection import draw_noise_amplitude
from magi.model.objectives.contract import make_objective
from magi.seeding import torch_generator


@dataclass(frozen=True)
class TokenShape:
    """Sizes of a clip's tokens: T latent frames of N tokens with C channels each."""

    frames: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class Corruption:
    """What is random of one clip; R is ``training.diffusion_batch_mul``.

    ``amplitude`` () and ``noise_TNC`` are the observation noise; ``drop_class`` replaces the label by the null class,
    ``drop_actions`` every action by no action.
    The rest is drawn for each masked view, U predicted slots in all, one view after another: ``masked_UN`` bool;
    ``timestep_RUN`` and ``diffusion_noise_RUNC``, of all tokens though only masked ones are trained.
    """

    masked_UN: Tensor
    amplitude: Tensor
    noise_TNC: Tensor
    drop_class: bool
    drop_actions: bool
    timestep_RUN: Tensor
    diffusion_noise_RUNC: Tensor


def _of_view(kind: str, training: TrainingConfig, sample: int, view: int) -> torch.Generator:
    """A view's generator depends on nothing but its number, so the first is the one of a clip with one view."""
    return torch_generator(kind, training.seed, sample, *([view] if view else []))


def _draw_ratio(training: TrainingConfig, shape: TokenShape, sample: int, view: int) -> tuple[Tensor, torch.Generator]:
    """The mask ratio_T of a view, and its generator for what follows; masks have generators of their own."""
    generator = _of_view("mask", training, sample, view)
    mean, std, minimum = training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min
    return draw_mask_ratio(shape.frames, mean, std, minimum, generator), generator


def _draw_mask(training: TrainingConfig, shape: TokenShape, sample: int, view: int) -> Tensor:
    ratio_T, generator = _draw_ratio(training, shape, sample, view)
    return draw_mask(ratio_T, shape.tokens, generator)


@lru_cache(maxsize=4)
def masked_tokens(training: TrainingConfig, shape: TokenShape, samples: range) -> int:
    """How many tokens all masked views of the clips ``samples`` have masked, without drawing the masks themselves."""
    views = [(sample, view) for sample in samples for view in range(training.masked_views)]
    return sum(int(masked_counts(_draw_ratio(training, shape, *one)[0], shape.tokens).sum()) for one in views)


def draw_corruption(training: TrainingConfig, model: ModelConfig, shape: TokenShape, sample: int) -> Corruption:
    """All that is random of the clip with number ``sample``."""
    views = range(training.masked_views)
    generators = [_of_view("noise", training, sample, view) for view in views]
    frame_shape = (shape.frames, shape.tokens)
    noisings, objective = training.diffusion_batch_mul, make_objective(model)
    return Corruption(
        masked_UN=torch.cat([_draw_mask(training, shape, sample, view) for view in views]),
        amplitude=draw_noise_amplitude(model.noise_max, generators[0]),
        noise_TNC=torch.randn(*frame_shape, shape.channels, generator=generators[0]),
        drop_class=bool(torch.rand((), generator=generators[0]) < training.class_dropout),
        # A generator of its own, so that a model without actions is trained as if there were none.
        drop_actions=bool(
            torch.rand((), generator=torch_generator("actions", training.seed, sample)) < training.action_dropout
        ),
        timestep_RUN=torch.cat([objective.draw_time((noisings, *frame_shape), one) for one in generators], dim=1),
        diffusion_noise_RUNC=torch.cat(
            [torch.randn(noisings, *frame_shape, shape.channels, generator=one) for one in generators], dim=1
        ),
    )
