"""Speed of the parts of a frame: the head's denoising loop of one iteration, a masked pass, and a long history."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.mar_baseline import CompiledHead, MarStyleHead, MarStyleSampler
from magi.bench.models import in_format, paper_model
from magi.bench.runner import Work, time_calls
from magi.bench.sampling import (
    EXACT_LIMIT,
    PAPER,
    SMOKE,
    compiled_baseline,
    filled_sampler,
    mar_style,
    random_frame,
    shapes_of,
)
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.objectives.ddpm import ReverseTable, cosine_schedule, respace, reverse_table
from magi.sampling.denoise import Denoiser

SCALE = 3.0
FP32_LIMIT = 5e-5
BF16_LIMIT = 2e-2
BF16_SLACK = 1.5
"""What is computed in bf16 may be this much further from float32 than the plain form in bf16 is."""


# The head's loop


@dataclass(frozen=True)
class HeadLoop:
    """One iteration's work: a model, its steps, and conditions and noise of M tokens under guidance."""

    model: Magi
    config: SamplingConfig
    table: ReverseTable
    z_GMD: Tensor
    noise_IMC: Tensor

    @property
    def plain(self) -> MarStyleHead:
        """The baseline's loop."""
        schedule = respace(cosine_schedule(self.model.config.diffusion_steps), self.config.steps)
        return MarStyleHead(self.model, schedule, self.config)

    @property
    def scale(self) -> Tensor:
        """Of the guidance, on the device."""
        return torch.tensor(SCALE, device=self.noise_IMC.device)

    def in_format(self, dtype: torch.dtype) -> "HeadLoop":
        """The same work of the same weights in another number format; noise stays."""
        return replace(self, model=in_format(self.model, dtype), z_GMD=self.z_GMD.to(dtype))

    def baseline(self, head: MarStyleHead, injected: bool = False) -> Tensor:
        """Tokens as the baseline makes them."""
        noise = self.noise_IMC if injected else None
        return head.sample(self.z_GMD.flatten(0, 1), SCALE, self.noise_IMC.dtype, noise)

    def work(self, denoiser: Denoiser) -> Work:
        """Our loop with its own noise."""
        scale = self.scale
        return torch.inference_mode()(lambda: denoiser(self.z_GMD, torch.randn_like(self.noise_IMC), self.table, scale))


def head_loop(model: Magi, rows: int, steps: int) -> HeadLoop:
    """``rows`` rows of the head's products: half as many tokens, with the label and without."""
    config = SamplingConfig(iterations=1, steps=steps, guidance=SCALE, guidance_schedule="constant")
    table = reverse_table(respace(cosine_schedule(model.config.diffusion_steps), steps), config.x0_limit)
    weight = model.mask_token
    generator = torch.Generator(weight.device).manual_seed(1)
    tokens, width = rows // 2, model.config.width

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=weight.device, dtype=torch.float32).to(dtype)

    dtype = torch.promote_types(weight.dtype, torch.float32)
    z_GMD = normal(2, tokens, width, dtype=weight.dtype)
    return HeadLoop(model, config, table, z_GMD, normal(steps, tokens, model.token_channels, dtype=dtype))


def loop_parities(loop: HeadLoop, denoiser: Denoiser) -> tuple[Parity, ...]:
    """Our loop against the plain one: in float32, and in the format that is timed."""
    exact = loop.in_format(torch.float32)
    reference = exact.baseline(exact.plain, injected=True)
    ours = Denoiser(exact.model.head, loop.config.temperature)(exact.z_GMD, exact.noise_IMC, loop.table, loop.scale)
    timed = denoiser(loop.z_GMD, loop.noise_IMC, loop.table, loop.scale).clone()
    allowed = FP32_LIMIT
    if denoiser.head.dtype == torch.bfloat16:
        narrow = loop.in_format(torch.bfloat16)
        plain = relative_error(narrow.baseline(narrow.plain, injected=True), reference)
        allowed = max(BF16_LIMIT, BF16_SLACK * plain)
    parities = [
        Parity("float32 loop", relative_error(ours, reference), FP32_LIMIT),
        Parity("timed loop", relative_error(timed, reference), allowed),
    ]
    if denoiser.graph is not None:
        eager = Denoiser(loop.model.head, loop.config.temperature, denoiser.head.dtype)
        eager.padded = True
        again = eager(loop.z_GMD, loop.noise_IMC, loop.table, loop.scale)
        parities.append(Parity("graph against eager", float((timed - again).abs().max()), 0.0))
    return tuple(parities)


def loop_shapes(loop: HeadLoop, denoiser: Denoiser) -> dict[str, object]:
    """What is recorded of a loop."""
    return {
        "rows": loop.z_GMD.shape[0] * loop.z_GMD.shape[1],
        "condition width": loop.model.config.width,
        "head width": loop.model.config.head_width,
        "head blocks": loop.model.config.head_blocks,
        "channels": loop.model.token_channels,
        "steps": loop.config.steps,
        "dtype": str(denoiser.head.dtype),
    }


@torch.inference_mode()
def head_case(setting: Setting) -> PreparedCase:
    """A denoising step of 8 tokens under guidance."""
    model = paper_model(setting, blocks=1)  # all of its head
    loop = head_loop(model, 16, 5 if setting.smoke else 100)
    denoiser, plain = filled_sampler(model, loop.config, 1).sampler.denoiser, loop.plain
    candidates = [
        Candidate(OURS, loop.work(denoiser), warmups=3, calls=5),
        Candidate("eager", torch.inference_mode()(lambda: loop.baseline(plain))),
    ]
    if not setting.smoke:
        mode = "reduce-overhead" if setting.device.type == "cuda" else "default"
        compiled = CompiledHead(model, plain.schedule, loop.config, mode)
        candidates.append(Candidate("compiled", torch.inference_mode()(lambda: loop.baseline(compiled)), warmups=2))
    return PreparedCase(
        tuple(candidates),
        check=torch.inference_mode()(lambda: loop_parities(loop, denoiser)),
        units=loop.config.steps,
        metrics=lambda seconds: {"us a step": seconds[OURS] * 1e6},
        shapes=loop_shapes(loop, denoiser),
        close=torch.compiler.reset,
    )


# A pass


def pass_parity(model: Magi, videos: int, config: SamplingConfig, known: int = 15) -> Parity:
    """Conditions of the picked tokens against the plain pass in float32.

    Where the model is bf16 they may be ``BF16_SLACK`` times as far from it as the plain pass in that format; where only
    products are, within ``BF16_LIMIT``.
    """
    ours = filled_sampler(model, config, videos, known=known, frames=known + 1)
    wide = mar_style(replace(ours, model=in_format(model, torch.float32)), config)
    wide.cache.layers = [None if pair is None else (pair[0].float(), pair[1].float()) for pair in wide.cache.layers]
    plain = mar_style(ours, config)
    wide.time = plain.time = model.config.frames - 1
    ours.past.frame_pass.set_time(torch.tensor(plain.time, device=model.mask_token.device))
    tokens_BNC = random_frame(model, videos)[:, 0]
    masked_BN, picked_Bm = _random_mask(model, videos)
    index = picked_Bm[None, :, :, None].expand(2, -1, -1, model.config.width)
    exact, rounded = (
        sampler.forward_pass(tokens_BNC, masked_BN).unflatten(0, (2, videos)).gather(2, index)
        for sampler in (wide, plain)
    )
    got = relative_error(ours.sampler.masked_pass(tokens_BNC, masked_BN, picked_Bm), exact)
    products = ours.sampler.execution.pass_products
    allowed = BF16_LIMIT if products == torch.bfloat16 else EXACT_LIMIT[model.mask_token.device.type]
    if model.mask_token.dtype == torch.bfloat16:
        allowed = max(BF16_LIMIT, BF16_SLACK * relative_error(rounded, exact))
    return Parity("conditions of the picked tokens", got, allowed)


def _random_mask(model: Magi, videos: int) -> tuple[Tensor, Tensor]:
    """masked_BN and four picked tokens a video."""
    scores_BN = torch.rand(videos, model.tokens_per_frame, device=model.mask_token.device)
    return scores_BN < 0.5, scores_BN.argsort(dim=1)[:, :4]


@torch.inference_mode()
def pass_case(setting: Setting) -> PreparedCase:
    """A masked pass of one video with 15 past frames."""
    model = paper_model(setting)
    config = PAPER.model_copy(update=SMOKE) if setting.smoke else PAPER
    ours = filled_sampler(model, config, 1)
    plain = mar_style(ours, config)
    tokens_BNC = random_frame(model, 1)[:, 0]
    masked_BN, picked_Bm = _random_mask(model, 1)

    def work(sampler: MarStyleSampler) -> Work:
        return torch.inference_mode()(lambda: sampler.forward_pass(tokens_BNC, masked_BN))

    run = torch.inference_mode()(lambda: ours.sampler.masked_pass(tokens_BNC, masked_BN, picked_Bm))
    works, facts = compiled_baseline(plain, work, setting)
    candidates = [Candidate(OURS, run, warmups=3, calls=5), Candidate("eager", work(plain), warmups=2, calls=5)]
    candidates += [Candidate(name, faster, warmups=3, calls=5) for name, faster in works.items()]
    products = _product_seconds(model, 2 * model.positions, setting)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"ms": seconds[OURS] * 1e3, "share of matrix products": products / seconds[OURS]}

    check = torch.inference_mode()(lambda: (pass_parity(model, 1, config),))
    shapes = shapes_of(ours, config) | facts
    return PreparedCase(tuple(candidates), check, metrics=metrics, shapes=shapes, close=torch.compiler.reset)


def _product_seconds(model: Magi, rows: int, setting: Setting) -> float:
    """Time of a pass's matrix products alone, in this run."""
    width, hidden = model.config.width, int(model.config.width * model.config.mlp_ratio)
    weight = model.mask_token
    total = 0.0
    for inner, outer in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
        x, w = weight.new_empty(rows, inner).normal_(), weight.new_empty(outer, inner).normal_()
        total += time_calls(partial(torch.nn.functional.linear, x, w), setting)
    return 2 * model.config.blocks * total


@torch.inference_mode()
def history_case(setting: Setting) -> PreparedCase:
    """A pass with 100 frames in the history, of one video under guidance, and what a frame of history adds."""
    model = paper_model(setting)
    few, many = (2, 5) if setting.smoke else (10, 100)
    config = PAPER.model_copy(update={"iterations": 3, "steps": 4})
    ours = filled_sampler(model, config, 1, known=many, frames=many + 1)
    plain = mar_style(ours, config)
    tokens_BNC = random_frame(model, 1)[:, 0]
    masked_BN = torch.ones(1, model.tokens_per_frame, device=setting.device, dtype=torch.bool)
    picked_Bm = torch.arange(4, device=setting.device)[None]
    whole = list(plain.cache.layers)
    # The baseline knows whole positions alone; what is in the cache is random anyway.
    plain.time = model.config.frames - 1
    ours.past.frame_pass.set_time(torch.tensor(plain.time, device=setting.device))

    def ours_at(length: int) -> Tensor:
        ours.past.cache.rewind(length)
        return ours.sampler.masked_pass(tokens_BNC, masked_BN, picked_Bm)

    def plain_at(length: int) -> Tensor:
        plain.cache.layers = [None if x is None else (x[0][:, :, :length], x[1][:, :, :length]) for x in whole]
        return plain.forward_pass(tokens_BNC, masked_BN)

    @torch.inference_mode()
    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        def slope(run: Callable[[int], object]) -> float:
            short, long = (time_calls(partial(run, n), setting, 5) for n in (few, many))
            return (long - short) / (many - few) * 1e6

        return {"us a past frame": slope(ours_at), "eager: us a past frame": slope(plain_at)}

    sides = {OURS: partial(ours_at, many), "eager": partial(plain_at, many)}
    return PreparedCase(
        tuple(Candidate(name, torch.inference_mode()(run), warmups=2, calls=5) for name, run in sides.items()),
        check=torch.inference_mode()(lambda: (pass_parity(model, 1, config, many),)),
        metrics=metrics,
        shapes=shapes_of(ours, config) | {"frames in the history": [few, many]},
    )
