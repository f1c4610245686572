"""Generation: frames one after another, a frame's tokens in masked iterations, a token in denoising steps (section 5).

Frame loop > iteration loop > denoising loop. It works on latents and knows neither pixels nor files. Randomness comes
from one generator a video, drawn on the CPU and then moved, so a video is the same in any batch, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion import ReverseTable, cosine_schedule, respace, reverse_table, solver_table
from magi.model.magi import Magi
from magi.model.masking import cosine_counts, random_order
from magi.sampling.denoise import Denoiser, draw_noise
from magi.sampling.history import History
from magi.sampling.kept import Kept


@dataclass(frozen=True)
class FramePlan:
    """What is the same for every frame: for each iteration its count of tokens, guidance scale and reverse steps."""

    counts: tuple[int, ...]
    scales: tuple[float, ...]
    tables: tuple[ReverseTable, ...]


def generate(
    model: Magi,
    *,
    frames: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    config: SamplingConfig,
    context_BTCHW: Tensor | None = None,
    kept: Kept | None = None,
) -> Iterator[Tensor]:
    """Yield latents_BCHW (at least float32) of the generated frames, one by one as they are finished.

    ``frames`` counts latent frames, those of the context included. ``generators`` are B CPU generators. A noise level
    above 1 in ``conditions`` also adds noise of that level to every frame that is observed. In "window" mode of a
    context longer than the window only the newest frames are seen. The model is used in evaluation mode and left in
    the mode it was in. With ``kept`` what an earlier call made is used again where it fits, and kept for the next one:
    the frames are the same. Raises ValueError, before the first frame, for settings that do not fit the model.
    """
    _check(model, frames, conditions, generators, config, context_BTCHW)
    plan = plan_frame(model, config)
    device = model.mask_token.device
    conditions = _to(conditions, device)
    if _is_guided(model, conditions, config):
        conditions = conditions.concatenate(conditions.without_label(model.config.classes))
    return _rollout(model, frames, conditions, generators, config, plan, context_BTCHW, kept or Kept(0))


def plan_frame(model: Magi, config: SamplingConfig) -> FramePlan:
    """Counts, guidance scales and reverse steps of ``config``; ValueError for more iterations or steps than exist."""
    counts = cosine_counts(model.tokens_per_frame, config.iterations)
    predicted = torch.tensor(counts).cumsum(0) / model.tokens_per_frame
    steps = annealed_steps(config)
    tables = {count: _table(model, config, count) for count in set(steps)}
    return FramePlan(
        counts=tuple(counts),
        scales=tuple(guidance_scale(config, share) for share in predicted.tolist()),
        tables=tuple(tables[count] for count in steps),
    )


def annealed_steps(config: SamplingConfig) -> list[int]:
    """Denoising steps of each iteration, falling linearly to ``last_steps`` (DiSA, arXiv 2505.20297)."""
    first, last = config.steps, config.last_steps or config.steps
    return [round(first + (last - first) * i / max(1, config.iterations - 1)) for i in range(config.iterations)]


def _table(model: Magi, config: SamplingConfig, steps: int) -> ReverseTable:
    schedule = respace(cosine_schedule(model.config.diffusion_steps), steps)
    if config.solver == "ancestral":
        return reverse_table(schedule, config.x0_limit)
    return solver_table(schedule, config.x0_limit, stochastic=config.solver == "dpm++sde")


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
    kept: Kept,
) -> Iterator[Tensor]:
    """The frame loop."""
    finished_BTNC = None if context_BTCHW is None else model.patchify(context_BTCHW.to(model.mask_token.device))
    done = 0 if finished_BTNC is None else finished_BTNC.shape[1]
    with evaluating(model):
        parts = kept.take(model, conditions, generators, frames, config, plan.tables)
    past, plan = parts.past, replace(plan, tables=parts.tables)
    for _ in range(done, frames):
        with evaluating(model):
            # A frame is observed when the next one needs it: it is shown earlier so, and the last one never is.
            if finished_BTNC is not None:
                past.observe(finished_BTNC)
            finished_BTNC = generate_frame(model, past, generators, plan, parts.denoiser)[:, None]
        try:
            yield model.unpatchify(finished_BTNC.clone()).squeeze(1)
        except GeneratorExit:  # no more frames are wanted; after any other error the parts may be half written
            kept.give_back(parts)
            raise
    kept.give_back(parts)


def generate_frame(
    model: Magi,
    past: History,
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
    for count, scale, table in zip(plan.counts, scales, plan.tables, strict=True):
        picked_Bm = order_BN[:, start : start + count]
        z_GMD = past.predict(tokens_BNC, masked_BN, picked_Bm).flatten(1, 2)
        noise_IMC = _moved(draw_noise(generators, len(table), count, C).to(dtype), device)
        x_MC = denoiser(z_GMD, noise_IMC, table, scale)
        tokens_BNC.scatter_(1, picked_Bm[..., None].expand(-1, -1, C), x_MC.unflatten(0, (batch, count)))
        masked_BN.scatter_(1, picked_Bm, False)
        start += count
    return tokens_BNC


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the CPU on ``device``, through pinned memory so that nobody waits."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


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
