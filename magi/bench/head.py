"""Speed of the diffusion head's denoising loop: all steps of the tokens of one iteration, under guidance."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.mar_baseline import CompiledHead, MarStyleHead
from magi.bench.models import bench_model, in_format, paper_model
from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.diffusion import ReverseTable, cosine_schedule, respace, reverse_table
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser
from magi.sampling.fast_path import FastPath

SCALE = 3.0
FP32_LIMIT = 5e-5
BF16_LIMIT = 2e-2
BF16_SLACK = 1.5
"""A bf16 loop may be this much further from float32 than the plain bf16 loop is."""


@dataclass(frozen=True)
class Loop:
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

    def in_format(self, dtype: torch.dtype) -> "Loop":
        """The same work of the same weights in another number format; noise stays."""
        return replace(self, model=in_format(self.model, dtype), z_GMD=self.z_GMD.to(dtype))

    def baseline(self, head: MarStyleHead, injected: bool = False) -> Tensor:
        """Tokens as the baseline makes them."""
        noise = self.noise_IMC if injected else None
        return head.sample(self.z_GMD.flatten(0, 1), SCALE, self.noise_IMC.dtype, noise)


def make_loop(model: Magi, rows: int, steps: int) -> Loop:
    """``rows`` rows of the head's products: half as many tokens, with the label and without."""
    config = SamplingConfig(steps=steps, guidance=SCALE, guidance_schedule="constant")
    table = reverse_table(respace(cosine_schedule(model.config.diffusion_steps), steps), config.x0_limit)
    weight = model.mask_token
    generator = torch.Generator(weight.device).manual_seed(1)
    tokens, width = rows // 2, model.config.width

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=weight.device, dtype=torch.float32).to(dtype)

    dtype = torch.promote_types(weight.dtype, torch.float32)
    z_GMD = normal(2, tokens, width, dtype=weight.dtype)
    return Loop(model, config, table, z_GMD, normal(steps, tokens, model.token_channels, dtype=dtype))


def loop_parities(loop: Loop, denoiser: Denoiser) -> tuple[Parity, ...]:
    """Our loop against the plain one: in float32, and in the format that is timed."""
    exact = loop.in_format(torch.float32)
    reference = exact.baseline(exact.plain, injected=True)
    scale = torch.tensor(SCALE, device=loop.noise_IMC.device)
    ours = Denoiser(exact.model.head, loop.config.temperature)(exact.z_GMD, exact.noise_IMC, loop.table, scale)
    timed = denoiser(loop.z_GMD, loop.noise_IMC, loop.table, scale).clone()
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
        eager = Denoiser(loop.model.head, loop.config.temperature, denoiser.head.dtype, kernel=denoiser.kernel)
        eager.padded = True
        again = eager(loop.z_GMD, loop.noise_IMC, loop.table, scale)
        parities.append(Parity("graph against eager", float((timed - again).abs().max()), 0.0))
    return tuple(parities)


def _timed(loop: Loop, denoiser: Denoiser) -> Callable[[], object]:
    scale = torch.tensor(SCALE, device=loop.noise_IMC.device)

    def run() -> Tensor:
        return denoiser(loop.z_GMD, torch.randn_like(loop.noise_IMC), loop.table, scale)

    return torch.inference_mode()(run)


def _head_step(rows: int, kernel: bool = False) -> Callable[[Setting], Trial]:
    @torch.inference_mode()
    def prepare(setting: Setting) -> Trial:
        model = paper_model(setting, blocks=1)  # all of its head
        loop = make_loop(model, 16 if setting.smoke else rows, 5 if setting.smoke else 100)
        path = replace(FastPath.of(model), head_kernel=kernel and setting.device.type == "cuda")
        denoiser = path.denoiser(model, loop.config)
        plain = loop.plain
        contenders = [
            Contender(OURS, _timed(loop, denoiser), warmups=3, calls=5),
            Contender("eager", torch.inference_mode()(lambda: loop.baseline(plain)), warmups=1),
        ]
        if not (setting.smoke or kernel):
            mode = "reduce-overhead" if setting.device.type == "cuda" else "default"
            compiled = CompiledHead(model, plain.schedule, loop.config, mode)
            step = torch.inference_mode()(lambda: loop.baseline(compiled))
            contenders.append(Contender("compiled", step, warmups=2, sparse=None if rows == 16 else 2))
        return Trial(
            tuple(contenders),
            check=torch.inference_mode()(lambda: loop_parities(loop, denoiser)),
            units=loop.config.steps,
            metrics=lambda seconds: {"us a step": seconds[OURS] * 1e6},
            shapes={
                "rows": loop.z_GMD.shape[0] * loop.z_GMD.shape[1],
                "condition width": model.config.width,
                "head width": model.config.head_width,
                "head blocks": model.config.head_blocks,
                "channels": model.token_channels,
                "steps": loop.config.steps,
                "dtype": str(denoiser.head.dtype),
                "path": denoiser.path(loop.z_GMD, loop.table),
            },
        )

    return prepare


@torch.inference_mode()
def _cpu_head(setting: Setting) -> Trial:
    width, head_width = (32, 32) if setting.smoke else (1280, 1024)
    config = ModelConfig(width=width, blocks=1, heads=4, head_width=head_width, classes=4, class_tokens=1, dropout=0.0)
    latent = LatentShape(frames=16, channels=4, height=8, width=8)
    model = bench_model(config, latent, setting.device, torch.float32)
    loop = make_loop(model, 8, 5 if setting.smoke else 100)
    supported = torch.cpu._is_avx512_bf16_supported()
    dtype = torch.bfloat16 if supported else torch.float32
    fast = Denoiser(model.head, loop.config.temperature, dtype)
    wide = Denoiser(model.head, loop.config.temperature)
    plain = loop.plain
    return Trial(
        (
            Contender(OURS, _timed(loop, fast)),
            Contender("ours in fp32", _timed(loop, wide)),
            Contender("eager", torch.inference_mode()(lambda: loop.baseline(plain))),
        ),
        check=torch.inference_mode()(lambda: loop_parities(loop, fast)),
        units=loop.config.steps,
        metrics=lambda seconds: {
            "ms a step": seconds[OURS] * 1e3,
            "fp32 x eager": seconds["eager"] / seconds["ours in fp32"],
        },
        shapes={"rows": 8, "width": head_width, "steps": loop.config.steps, "dtype": str(dtype)},
    )


KERNEL_CASE = Case(
    "head.kernel",
    "cuda",
    "head.step.16 as one persistent kernel, which sampling does not choose yet",
    "step",
    _head_step(16, kernel=True),
    (Goal("us a step", 25, 12, smaller=True), Goal("x eager", 24, 50)),
    minutes=0.4,
    apart=True,
)
"""A process of its own, and the last of a run: a launch failure was seen once."""

# Of 24 times and more at 16 rows, launches are what is saved. With rows the arithmetic grows, which both sides have to
# do, and the launches stay: so less is asked of 128 and 1024 rows (our figures; the plan has none apart for them).
CASES = (
    Case(
        "head.step.16",
        "cuda",
        "a denoising step of 8 tokens under guidance (batch 1)",
        "step",
        _head_step(16),
        (
            Goal("us a step", 25, 12, smaller=True),
            Goal("x eager", 24, 50),
            Goal("x compiled", 3, 5),
        ),
        minutes=0.4,
    ),
    Case(
        "head.step.128",
        "cuda",
        "the same of 64 tokens (batch 8)",
        "step",
        _head_step(128),
        (Goal("x eager", 12, 24),),
        minutes=0.4,
    ),
    Case(
        "head.step.1024",
        "cuda",
        "the same of 512 tokens (batch 64, padded)",
        "step",
        _head_step(1024),
        (Goal("x eager", 4, 8),),
        minutes=0.4,
    ),
    Case(
        "cpu.head",
        "cpu",
        "a denoising step of 4 tokens under guidance, the paper's head",
        "step",
        _cpu_head,
        (Goal("x eager", 4, 6),),
        minutes=0.4,
    ),
)
