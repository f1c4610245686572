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
    ``drop_actions`` every action by no action, ``drop_text`` the caption by none.
    The rest is drawn for each masked view, U predicted slots in all, one view after another and those of the first
    frame alone at the end: ``masked_UN`` bool; ``timestep_RUN`` and ``diffusion_noise_RUNC``, of all tokens though only
    masked ones are trained.
    """

    masked_UN: Tensor
    amplitude: Tensor
    noise_TNC: Tensor
    drop_class: bool
    drop_actions: bool
    drop_text: bool
    timestep_RUN: Tensor
    diffusion_noise_RUNC: Tensor


View = tuple[tuple[int | str, ...], int]
"""What sets the generators of a masked view apart, and its frames: T, or the views of the first frame as one."""


def _views(training: TrainingConfig, shape: TokenShape) -> list[View]:
    """Keys depend on a view's number alone, so the first view is the one of a clip with one view."""
    whole: list[View] = [((view,) if view else (), shape.frames) for view in range(training.masked_views)]
    return [*whole, (("first",), training.first_frame_views)] if training.first_frame_views else whole


def _draw_ratio(training: TrainingConfig, sample: int, view: View) -> tuple[Tensor, torch.Generator]:
    """The mask ratio_T of a view, and its generator for what follows; masks have generators of their own."""
    key, frames = view
    generator = torch_generator("mask", training.seed, sample, *key)
    mean, std, minimum = training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min
    return draw_mask_ratio(frames, mean, std, minimum, generator), generator


def _draw_mask(training: TrainingConfig, shape: TokenShape, sample: int, view: View) -> Tensor:
    ratio_T, generator = _draw_ratio(training, sample, view)
    return draw_mask(ratio_T, shape.tokens, generator)


def _dropped(kind: str, training: TrainingConfig, sample: int, share: float) -> bool:
    """A generator of its own, so that a model without the condition is trained as if there were none."""
    return bool(torch.rand((), generator=torch_generator(kind, training.seed, sample)) < share)


@lru_cache(maxsize=4)
def masked_tokens(training: TrainingConfig, shape: TokenShape, samples: range) -> int:
    """How many tokens all masked views of the clips ``samples`` have masked, without drawing the masks themselves."""
    views = [(sample, view) for sample in samples for view in _views(training, shape)]
    return sum(int(masked_counts(_draw_ratio(training, *one)[0], shape.tokens).sum()) for one in views)


def draw_corruption(training: TrainingConfig, model: ModelConfig, shape: TokenShape, sample: int) -> Corruption:
    """All that is random of the clip with number ``sample``."""
    views, tokens, channels = _views(training, shape), shape.tokens, shape.channels
    drawn = [(torch_generator("noise", training.seed, sample, *key), frames) for key, frames in views]
    noisings, objective, first = training.diffusion_batch_mul, make_objective(model), drawn[0][0]
    return Corruption(
        masked_UN=torch.cat([_draw_mask(training, shape, sample, view) for view in views]),
        amplitude=draw_noise_amplitude(model.noise_max, first),
        noise_TNC=torch.randn(shape.frames, tokens, channels, generator=first),
        drop_class=bool(torch.rand((), generator=first) < training.class_dropout),
        drop_actions=_dropped("actions", training, sample, training.action_dropout),
        drop_text=_dropped("text", training, sample, training.text_dropout),
        timestep_RUN=torch.cat([objective.draw_time((noisings, count, tokens), one) for one, count in drawn], dim=1),
        diffusion_noise_RUNC=torch.cat(
            [torch.randn(noisings, count, tokens, channels, generator=one) for one, count in drawn], dim=1
        ),
    )
