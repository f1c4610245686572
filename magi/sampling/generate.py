"""Generation: frames one after another, a frame's tokens in masked iterations, a token in denoising steps (section 5).

Frame loop > iteration loop > denoising loop; this is the frame loop, on latents: it knows neither pixels nor files.
Randomness comes from one generator a video, drawn on the CPU and then moved, so a video is the same in any batch, up to
rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.frame import plan_frame
from magi.sampling.prepared import PreparedSampler, SamplerCache

NextAction = Callable[[int], Tensor]
"""From the number of a latent frame to the rows (B, A + 1) of ``action_rows`` that lead to it."""
NextText = Callable[[int], Tensor]
"""From the number of a latent frame to the text_BLE that leads to it; the same tensor while it stays the same."""


def generate(
    model: Magi,
    *,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None = None,
    samplers: SamplerCache | None = None,
    next_action: NextAction | None = None,
    next_text: NextText | None = None,
) -> Iterator[Tensor]:
    """Yield latents_BCHW (at least float32) of the generated frames, one by one as they are finished.

    ``frames`` counts latent frames, those of the context included. ``generators`` are B CPU generators. A noise level
    above 1 in ``conditions`` also adds noise of that level to every frame that is observed. In "window" mode of a
    context longer than the window only the newest frames are seen. The model is used in evaluation mode and left in
    the mode it was in. A sampler is prepared before the first frame, or taken from ``samplers`` and put back after the
    last one: the frames are the same. ``next_action`` is asked for the action that leads to each latent frame by its
    number, and ``next_text`` for its text, of the context too, when that frame begins: what is finished never depends
    on it. Raises ValueError, before the first frame, for settings that do not fit the model.
    """
    _check(model, frames, conditions, generators, config, context_BTCHW)
    for first in (False, True):
        plan_frame(model, config, first)  # raises for more iterations or steps than there are

    def lead(sampler: PreparedSampler, number: int) -> None:
        if next_action is not None or next_text is not None:
            sampler.lead(next_action and next_action(number), next_text and next_text(number))

    return _frames(model, frames, conditions, generators, config, context_BTCHW, samplers or SamplerCache(), lead)


def _frames(
    model: Magi,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None,
    samplers: SamplerCache,
    lead: Callable[[PreparedSampler, int], None],
) -> Iterator[Tensor]:
    """The frame loop; ``lead`` tells a sampler what leads to the frame of a number."""
    with evaluating(model):
        sampler = samplers.take(model, config, conditions, generators, frames)
        sampler.begin(config, conditions, generators)
    finished_BTNC = None if context_BTCHW is None else model.patchify(context_BTCHW.to(model.mask_token.device))
    done = 0 if finished_BTNC is None else finished_BTNC.shape[1]
    with evaluating(sampler.model):
        for number in range(done):
            lead(sampler, number)
    for number in range(done, frames):
        with evaluating(sampler.model):
            # A frame joins the history when the next one needs it, so it is yielded earlier, and the last never does.
            if finished_BTNC is not None:
                sampler.observe(finished_BTNC)
            lead(sampler, number)
            finished_BTNC = sampler.frame()[:, None]
        try:
            yield model.unpatchify(finished_BTNC.clone()).squeeze(1)
        except GeneratorExit:  # no more frames are wanted; after any other error the sampler may be half written
            samplers.put(sampler)
            raise
    samplers.put(sampler)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode inside; every submodule has its own mode back afterwards."""
    # Those that are in training alone: on a CPU a tiny frame notices what all of them cost.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _check(
    model: Magi,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None,
) -> None:
    batch, latent, trained = len(generators), model.latent, model.config.frames
    if conditions.batch != batch or not batch:
        raise ValueError(f"expected one generator a video, got {batch} for {conditions.batch} videos")
    if conditions.frames not in (None, frames):
        raise ValueError(f"conditions of {conditions.frames} latent frames for {frames}; give one a frame, or constant")
    if conditions.noise_level_B.ndim != 1:
        raise ValueError("the noise level of a video is one number; leave out its frames")
    if any(generator.device.type != "cpu" for generator in generators):
        raise ValueError("generators must be on the CPU, so that noise does not depend on the device")
    done = 0
    if context_BTCHW is not None:
        expected = (batch, latent.channels, latent.height, latent.width)
        got = (len(context_BTCHW), *context_BTCHW.shape[2:])
        if got != expected:
            raise ValueError(f"context latents: expected (B, C, H, W) = {expected}, got {got}")
        done = context_BTCHW.shape[1]
        if not done:
            raise ValueError("context latents: expected at least one frame, or None")
    if done >= frames:
        raise ValueError(f"{frames} latent frames in all leave none to generate after {done} of context; ask for more")
    if (conditions.action_BA is None) == bool(model.config.actions):
        raise ValueError(f"conditions must have actions if and only if the model has; it has {model.config.actions}")
    if (conditions.text_BLE is None) == bool(model.config.text_encoder):
        raise ValueError("conditions must have text if and only if the model has; zeros are no text")
    if config.guidance != 1 and not conditions.can_guide:
        raise ValueError(
            f"sampling.guidance {config.guidance} needs a model with classes, actions or text; leave it at 1"
        )
    if config.longer == "window" and frames > trained and config.window_keep >= trained:
        raise ValueError(
            f"sampling.window_keep {config.window_keep} must be below model.frames {trained}; keep fewer frames"
        )
