"""Generation: frames one after another, a frame's tokens in masked iterations, a token in denoising steps (section 5).

Frame loop > iteration loop > denoising loop. It works on latents and knows neither pixels nor files. Randomness comes
from one generator a video, drawn on the CPU and then moved, so a video is the same in any batch, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion import ReverseTable, cosine_schedule, respace, reverse_table
from magi.model.diffusion_head import DiffusionHead
from magi.model.magi import Magi
from magi.model.masking import cosine_counts, random_order
from magi.sampling.past import Past

MODULATION_BYTES = 64 * 2**20
"""Modulations of the head are computed for as many denoising steps at once as fit in this."""


@dataclass(frozen=True)
class FramePlan:
    """What is the same for every frame: tokens each iteration predicts, its guidance scale, and the reverse steps."""

    counts: tuple[int, ...]
    scales: tuple[float, ...]
    table: ReverseTable
    temperature: float


def generate(
    model: Magi,
    *,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield latents_BCHW (at least float32) of the generated frames, one by one as they are finished.

    ``frames`` counts latent frames, those of the context included. ``generators`` are B CPU generators. A noise level
    above 1 in ``conditions`` also adds noise of that level to every frame that is observed. In "window" mode of a
    context longer than the window only the newest frames are seen. The model is used in evaluation mode and left in
    the mode it was in. Raises ValueError, before the first frame, for settings that do not fit the model.
    """
    _check(model, frames, conditions, generators, config, context_BTCHW)
    plan = plan_frame(model, config)
    device = model.mask_token.device
    conditions = _to(conditions, device)
    if _is_guided(model, conditions, config):
        conditions = conditions.concatenate(conditions.without_label(model.config.classes))
    return _rollout(model, frames, conditions, generators, config, plan, context_BTCHW)


def plan_frame(model: Magi, config: SamplingConfig) -> FramePlan:
    """Counts, guidance scales and reverse steps of ``config``; ValueError for more iterations or steps than exist."""
    counts = cosine_counts(model.tokens_per_frame, config.iterations)
    predicted = torch.tensor(counts).cumsum(0) / model.tokens_per_frame
    return FramePlan(
        counts=tuple(counts),
        scales=tuple(guidance_scale(config, share) for share in predicted.tolist()),
        table=reverse_table(respace(cosine_schedule(model.config.diffusion_steps), config.steps), config.x0_limit),
        temperature=config.temperature,
    )


def guidance_scale(config: SamplingConfig, predicted: float) -> float:
    """Scale of an iteration after which the share ``predicted`` of the frame's tokens is there.

    MAR's linear schedule: 1 + (guidance - 1) * predicted, up to the full scale in the last iteration (MAR still counts
    one token as masked there).
    """
    if config.guidance_schedule == "constant":
        return config.guidance
    return 1 + (config.guidance - 1) * predicted


def _rollout(
    model: Magi,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    plan: FramePlan,
    context_BTCHW: Tensor | None,
) -> Iterator[Tensor]:
    """The frame loop."""
    finished_BTNC = None if context_BTCHW is None else model.patchify(context_BTCHW.to(model.mask_token.device))
    done = 0 if finished_BTNC is None else finished_BTNC.shape[1]
    with evaluating(model):
        past = Past(model, conditions, generators, frames, config)
    for _ in range(done, frames):
        with evaluating(model):
            # A frame is observed when the next one needs it: it is shown earlier so, and the last one never is.
            if finished_BTNC is not None:
                past.observe(finished_BTNC)
            finished_BTNC = generate_frame(model, past, generators, plan)[:, None]
        yield model.unpatchify(finished_BTNC.clone()).squeeze(1)


def generate_frame(model: Magi, past: Past, generators: Sequence[torch.Generator], plan: FramePlan) -> Tensor:
    """The iteration loop: tokens_BNC of the next frame, every token predicted exactly once in a random order."""
    weight, N, C = model.mask_token, model.tokens_per_frame, model.token_channels
    batch, device, dtype = len(generators), weight.device, torch.promote_types(weight.dtype, torch.float32)
    order_BN = torch.stack([random_order(N, generator) for generator in generators]).to(device)
    tokens_BNC = torch.zeros(batch, N, C, device=device, dtype=dtype)
    masked_BN = torch.ones(batch, N, device=device, dtype=torch.bool)
    start = 0
    for count, scale in zip(plan.counts, plan.scales, strict=True):
        picked_Bm = order_BN[:, start : start + count]
        z_GBND = past.predict(tokens_BNC, masked_BN)
        index = picked_Bm[None, :, :, None].expand(len(z_GBND), -1, -1, z_GBND.shape[-1])
        z_GMD = z_GBND.gather(2, index).flatten(1, 2)
        noise_IMC = draw_noise(generators, len(plan.table), count, C).to(device, dtype)
        x_MC = denoise_tokens(model.head, z_GMD, noise_IMC, plan.table, scale, plan.temperature)
        tokens_BNC.scatter_(1, picked_Bm[..., None].expand(-1, -1, C), x_MC.unflatten(0, (batch, count)))
        masked_BN.scatter_(1, picked_Bm, False)
        start += count
    return tokens_BNC


def draw_noise(generators: Sequence[torch.Generator], steps: int, count: int, channels: int) -> Tensor:
    """All noise of an iteration, (steps, M, C) with M = B * count: one draw a video."""
    noise = [torch.randn(steps, count, channels, generator=generator) for generator in generators]
    return torch.stack(noise, dim=1).flatten(1, 2)


def denoise_tokens(
    head: DiffusionHead, z_GMD: Tensor, noise_IMC: Tensor, table: ReverseTable, scale: float, temperature: float
) -> Tensor:
    """The denoising loop: tokens x_MC given their conditions.

    Row 0 of the noise is the start, row i the noise of reverse step i. With G = 2 (with the label, then without) the
    halves share x_t and noise: the noise prediction is without + scale * (with - without), the variance that of the
    half with the label.
    """
    x_MC = noise_IMC[0]
    for chunk in _chunks(head, z_GMD, len(table)):
        timesteps_I11 = table.timesteps[chunk].to(z_GMD.device)[:, None, None]
        modulations_I = head.modulations(timesteps_I11, z_GMD[None])
        for index, modulations in zip(chunk, modulations_I, strict=True):
            prediction_GMC = head.denoise(x_MC.to(z_GMD.dtype), modulations).to(x_MC.dtype)
            predicted_noise, interpolation = prediction_GMC[0].chunk(2, dim=-1)
            if len(prediction_GMC) == 2:
                without, _ = prediction_GMC[1].chunk(2, dim=-1)
                predicted_noise = without + scale * (predicted_noise - without)
            x_MC = table.step(index, x_MC, predicted_noise, interpolation, noise_IMC[index], temperature)
    return x_MC


def _chunks(head: DiffusionHead, z_GMD: Tensor, steps: int) -> Iterator[list[int]]:
    """Step indices from the last to 0, in pieces whose modulations fit in ``MODULATION_BYTES``."""
    bytes_a_step = z_GMD.shape[0] * z_GMD.shape[1] * head.modulation.out_features * z_GMD.element_size()
    size = max(1, MODULATION_BYTES // bytes_a_step)
    indices = list(range(steps - 1, -1, -1))
    return (indices[start : start + size] for start in range(0, steps, size))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode inside; every submodule has its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _to(conditions: Conditions, device: torch.device) -> Conditions:
    label_B = conditions.label_B
    return Conditions(
        conditions.interval_B.to(device),
        conditions.noise_level_B.to(device),
        None if label_B is None else label_B.to(device),
    )


def _is_guided(model: Magi, conditions: Conditions, config: SamplingConfig) -> bool:
    """Whether guidance changes anything: without a single label both halves are the same."""
    if config.guidance == 1 or conditions.label_B is None:
        return False
    return not bool((conditions.label_B == model.config.classes).all())


def _check(
    model: Magi,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None,
) -> None:
    batch, latent, trained = len(generators), model.latent, model.config.frames
    if len(conditions.interval_B) != batch or not batch:
        raise ValueError(f"expected one generator a video, got {batch} for {len(conditions.interval_B)} videos")
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
    if config.guidance != 1 and not model.config.classes:
        raise ValueError(f"sampling.guidance {config.guidance} needs a model with classes; leave it at 1")
    if config.longer == "window" and frames > trained and config.window_keep >= trained:
        raise ValueError(
            f"sampling.window_keep {config.window_keep} must be below model.frames {trained}; keep fewer frames"
        )
