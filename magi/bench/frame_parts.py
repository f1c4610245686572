"""Speed of the parts of a frame: the head's denoising loop of one iteration, a masked pass, and a long history."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.mar_baseline import CompiledHead, MarStyleHead, MarStyleSampler
from magi.bench.models import in_format, paper_model
from magi.bench.runner import Work, time_calls
from magi.bench.sampling import (
    EXACT_LIMIT,
    compiled_baseline,
    filled_sampler,
    kv_cache,
    mar_style,
    paper_settings,
    random_frame,
    shapes_of,
    without_graphs,
)
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.objectives.ddpm import cosine_schedule, respace
from magi.sampling.denoise import Denoiser
from magi.sampling.execution import Precision

FP32_LIMIT = 5e-5
BF16_LIMIT = 2e-2
BF16_SLACK = 1.5
"""What is computed in bf16 may be this much further from float32 than the plain form in bf16 is."""


# The head's loop


class HeadLoop:
    """One iteration's work under guidance: the loop of a prepared sampler, the baseline's, conditions and noise.

    ``rows`` are those of the head's products: half as many tokens, with the label and without. The same rows have the
    same conditions and noise whatever the number format.
    """

    def __init__(self, model: Magi, rows: int, steps: int, precision: Precision = "auto") -> None:
        self.config = SamplingConfig(
            iterations=1, steps=steps, guidance=3.0, guidance_schedule="constant", precision=precision
        )
        self.sampler = filled_sampler(model, self.config, 1)
        self.denoiser, self.table = self.sampler.denoiser, self.sampler.plan.table
        model = self.sampler.model
        weight, generator = model.mask_token, torch.Generator().manual_seed(1)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        z_GMD = torch.randn(2, rows // 2, model.config.width, generator=generator)
        self.z_GMD = z_GMD.bfloat16().to(weight)  # the same numbers in every format
        noise_IMC = torch.randn(steps, rows // 2, model.token_channels, generator=generator)
        self.noise_IMC = noise_IMC.to(weight.device, dtype)
        self.scale = self.noise_IMC.new_tensor(self.config.guidance)
        self.schedule = respace(cosine_schedule(model.config.diffusion_steps), steps)
        self.plain = MarStyleHead(model, self.schedule, self.config)

    def ours(self, noise_IMC: Tensor | None = None, denoiser: Denoiser | None = None) -> Tensor:
        """Tokens x_MC; noise is drawn unless it is given."""
        noise_IMC = torch.randn_like(self.noise_IMC) if noise_IMC is None else noise_IMC
        return (denoiser or self.denoiser)(self.z_GMD, noise_IMC, self.table, self.scale)

    def baseline(self, noise_IMC: Tensor | None = None, head: MarStyleHead | None = None) -> Tensor:
        """The same by the plain loop, or another ``head``'s."""
        head = head or self.plain
        return head.sample(self.z_GMD.flatten(0, 1), self.config.guidance, self.noise_IMC.dtype, noise_IMC)


def loop_parities(loop: HeadLoop) -> tuple[Parity, ...]:
    """Our loop against the plain one: in float32, and in the format that is timed; a graph against none."""
    rows, noise_IMC = 2 * loop.z_GMD.shape[1], loop.noise_IMC
    steps, source = loop.config.steps, loop.sampler.source
    exact = HeadLoop(in_format(source, torch.float32), rows, steps, "fp32")
    reference, timed = exact.baseline(noise_IMC), loop.ours(noise_IMC).clone()
    allowed = FP32_LIMIT
    if loop.denoiser.head.dtype == torch.bfloat16:
        narrow = HeadLoop(in_format(source, torch.bfloat16), rows, steps)
        allowed = max(BF16_LIMIT, BF16_SLACK * relative_error(narrow.baseline(noise_IMC), reference))
    parities = [
        Parity("float32 loop", relative_error(exact.ours(noise_IMC), reference), FP32_LIMIT),
        Parity("timed loop", relative_error(timed, reference), allowed),
    ]
    if loop.sampler.execution.graphs:
        eager = loop.ours(noise_IMC, without_graphs(source, loop.config, 1).denoiser)
        parities.append(Parity("graph against eager", float((timed - eager).abs().max()), 0.0))
    return tuple(parities)


def head_case(setting: Setting, rows: int) -> PreparedCase:
    """A denoising step of the paper's head under guidance, of half as many tokens as rows."""
    model, on_gpu = paper_model(setting, blocks=1), setting.device.type == "cuda"  # all of its head
    steps = 5 if setting.smoke else 100
    loop = HeadLoop(model if on_gpu else in_format(model, torch.float32), rows, steps)
    candidates = [Candidate(OURS, loop.ours, warmups=3, calls=5), Candidate("eager", loop.baseline)]
    if not on_gpu:
        candidates.append(Candidate("ours in fp32", HeadLoop(loop.sampler.source, rows, steps, "fp32").ours))
    elif not setting.smoke:
        compiled = CompiledHead(model, loop.schedule, loop.config, "reduce-overhead")
        candidates.append(Candidate("compiled", partial(loop.baseline, head=compiled), warmups=2))
    shape = model.config
    return PreparedCase(
        tuple(candidates),
        check=partial(loop_parities, loop),
        units=steps,
        metrics=lambda seconds: {"us a step": seconds[OURS] * 1e6},
        shapes={
            "rows": rows,
            "condition width": shape.width,
            "head width": shape.head_width,
            "head blocks": shape.head_blocks,
            "channels": model.token_channels,
            "steps": steps,
            "dtype": str(loop.denoiser.head.dtype),
        },
    )


# A pass


def pass_parity(model: Magi, videos: int, config: SamplingConfig, known: int = 15) -> Parity:
    """Conditions of the picked tokens against the plain pass in float32.

    Where the model is bf16 they may be ``BF16_SLACK`` times as far from it as the plain pass in that format; where only
    products are, within ``BF16_LIMIT``.
    """
    ours = filled_sampler(model, config, videos, known=known, frames=known + 1)
    wide, plain = mar_style(ours, config, in_format(model, torch.float32)), mar_style(ours, config)
    wide.time = plain.time = model.config.frames - 1
    ours.history.frame_pass.set_time(torch.tensor(plain.time, device=model.mask_token.device))
    tokens_BNC = random_frame(model, videos)[:, 0]
    masked_BN, picked_Bm = _random_mask(model, videos)
    index = picked_Bm[None, :, :, None].expand(2, -1, -1, model.config.width)
    exact, rounded = (
        sampler.forward_pass(tokens_BNC, masked_BN).unflatten(0, (2, videos)).gather(2, index)
        for sampler in (wide, plain)
    )
    got = relative_error(ours.masked_pass(tokens_BNC, masked_BN, picked_Bm), exact)
    products = ours.execution.pass_products
    allowed = BF16_LIMIT if products == torch.bfloat16 else EXACT_LIMIT[model.mask_token.device.type]
    if model.mask_token.dtype == torch.bfloat16:
        allowed = max(BF16_LIMIT, BF16_SLACK * relative_error(rounded, exact))
    return Parity("conditions of the picked tokens", got, allowed)


def _random_mask(model: Magi, videos: int) -> tuple[Tensor, Tensor]:
    """masked_BN and four picked tokens a video."""
    scores_BN = torch.rand(videos, model.tokens_per_frame, device=model.mask_token.device)
    return scores_BN < 0.5, scores_BN.argsort(dim=1)[:, :4]


def pass_case(setting: Setting) -> PreparedCase:
    """A masked pass of one video with 15 past frames."""
    model = paper_model(setting)
    config = paper_settings(setting)
    ours = filled_sampler(model, config, 1)
    plain = mar_style(ours, config)
    tokens_BNC = random_frame(model, 1)[:, 0]
    masked_BN, picked_Bm = _random_mask(model, 1)

    def work(sampler: MarStyleSampler) -> Work:
        return partial(sampler.forward_pass, tokens_BNC, masked_BN)

    run = partial(ours.masked_pass, tokens_BNC, masked_BN, picked_Bm)
    works, facts = compiled_baseline(plain, work, setting)
    candidates = [Candidate(OURS, run, warmups=3, calls=5), Candidate("eager", work(plain), warmups=2, calls=5)]
    candidates += [Candidate(name, faster, warmups=3, calls=5) for name, faster in works.items()]
    products = _product_seconds(model, 2 * model.positions, setting)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"ms": seconds[OURS] * 1e3, "share of matrix products": products / seconds[OURS]}

    shapes = shapes_of(ours, config) | facts
    return PreparedCase(tuple(candidates), lambda: (pass_parity(model, 1, config),), metrics=metrics, shapes=shapes)


def _product_seconds(model: Magi, rows: int, setting: Setting) -> float:
    """Time of a pass's matrix products alone, in this run."""
    width, hidden = model.config.width, int(model.config.width * model.config.mlp_ratio)
    weight = model.mask_token
    total = 0.0
    for inner, outer in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
        x, w = weight.new_empty(rows, inner).normal_(), weight.new_empty(outer, inner).normal_()
        total += time_calls(partial(torch.nn.functional.linear, x, w), setting)
    return 2 * model.config.blocks * total


def history_case(setting: Setting) -> PreparedCase:
    """A pass with 100 frames in the history, of one video under guidance, and what a frame of history adds."""
    model = paper_model(setting)
    few, many = (2, 5) if setting.smoke else (10, 100)
    config = paper_settings(setting).changed(iterations=3, steps=4)
    ours = filled_sampler(model, config, 1, known=many, frames=many + 1)
    plain = mar_style(ours, config)
    tokens_BNC = random_frame(model, 1)[:, 0]
    masked_BN = torch.ones(1, model.tokens_per_frame, device=setting.device, dtype=torch.bool)
    picked_Bm = torch.arange(4, device=setting.device)[None]
    whole = plain.cache
    # The baseline knows whole positions alone; what is in the cache is random anyway.
    plain.time = model.config.frames - 1
    ours.history.frame_pass.set_time(torch.tensor(plain.time, device=setting.device))

    def ours_at(length: int) -> Tensor:
        kv_cache(ours).rewind(length)
        return ours.masked_pass(tokens_BNC, masked_BN, picked_Bm)

    def plain_at(length: int) -> Tensor:
        plain.cache = [None if x is None else (x[0][:, :, :length], x[1][:, :, :length]) for x in whole]
        return plain.forward_pass(tokens_BNC, masked_BN)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        def slope(run: Callable[[int], object]) -> float:
            short, long = (time_calls(partial(run, n), setting, 5) for n in (few, many))
            return (long - short) / (many - few) * 1e6

        return {"us a past frame": slope(ours_at), "eager: us a past frame": slope(plain_at)}

    sides = {OURS: partial(ours_at, many), "eager": partial(plain_at, many)}
    return PreparedCase(
        tuple(Candidate(name, run, warmups=2, calls=5) for name, run in sides.items()),
        check=lambda: (pass_parity(model, 1, config, many),),
        metrics=metrics,
        shapes=shapes_of(ours, config) | {"frames in the history": [few, many]},
    )
