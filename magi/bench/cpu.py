"""Speed on a CPU: products in bf16, the head's loop, two whole frames, and temporal attention of training."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from magi.bench.attention import AttentionShape, forward_work, training_work
from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.frame_parts import head_loop, loop_parities, loop_shapes, pass_parity
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import bench_model, guided_conditions, in_format, small_model
from magi.bench.runner import Work
from magi.bench.sampling import filled_sampler, frame_parities, random_frame, shapes_of
from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.slot_attention import dense_slot_attention, slot_attention
from magi.model.teacher_forcing import SlotPattern
from magi.sampling.execution import choose_execution
from magi.sampling.generate import generate
from magi.sampling.prepared import SamplerCache


@torch.inference_mode()
def linear_case(setting: Setting) -> PreparedCase:
    """A layer of the paper's model on 512 rows."""
    rows, inner, outer = (8, 16, 16) if setting.smoke else (512, 1280, 5120)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, inner, generator=generator), torch.randn(outer, inner, generator=generator) / inner**0.5
    x16, w16 = x.bfloat16(), w.bfloat16()
    works = {OURS: lambda: F.linear(x16, w16), "fp32": lambda: F.linear(x, w)}
    flops = 2 * rows * inner * outer
    return PreparedCase(
        tuple(Candidate(name, torch.inference_mode()(run), warmups=3, calls=5) for name, run in works.items()),
        check=lambda: (Parity("bf16 product", relative_error(works[OURS](), works["fp32"]()), 1e-2),),
        metrics=lambda seconds: {f"GFLOP/s {name}": flops / time / 1e9 for name, time in seconds.items()},
        shapes={"rows": rows, "inputs": inner, "outputs": outer},
    )


@torch.inference_mode()
def head_case(setting: Setting) -> PreparedCase:
    """A denoising step of 4 tokens under guidance, the paper's head."""
    width, head_width = (32, 32) if setting.smoke else (1280, 1024)
    config = ModelConfig(width=width, blocks=1, heads=4, head_width=head_width, classes=4, class_tokens=1, dropout=0.0)
    latent = LatentShape(frames=16, channels=4, height=8, width=8)
    model = bench_model(config, latent, setting.device, torch.float32)
    loop = head_loop(model, 8, 5 if setting.smoke else 100)
    fast, wide = (
        filled_sampler(model, loop.config.changed(precision=precision), 1).sampler.denoiser
        for precision in ("auto", "fp32")
    )
    plain = loop.plain
    return PreparedCase(
        (
            Candidate(OURS, loop.work(fast)),
            Candidate("ours in fp32", loop.work(wide)),
            Candidate("eager", torch.inference_mode()(lambda: loop.baseline(plain))),
        ),
        check=torch.inference_mode()(lambda: loop_parities(loop, fast)),
        units=loop.config.steps,
        metrics=lambda seconds: {
            "ms a step": seconds[OURS] * 1e3,
            "fp32 x eager": seconds["eager"] / seconds["ours in fp32"],
        },
        shapes=loop_shapes(loop, fast),
    )


FRAMES = 3
"""One of context, then two."""
FAST = SamplingConfig(iterations=8, steps=5, guidance=3.0)
EXACT = FAST.changed(precision="fp32")


def _ours(model: Magi, config: SamplingConfig, context_BTNC: Tensor, samplers: SamplerCache | None) -> Work:
    """Latents of the new frames by the entry that a pipeline calls; a second call has the sampler of the first."""
    ones_B = torch.ones(1, dtype=torch.long)
    conditions = Conditions(ones_B, ones_B, 0 * ones_B)
    context_BTCHW = model.unpatchify(context_BTNC)

    def run() -> list[Tensor]:
        generators = [torch.Generator().manual_seed(0)]
        frames = generate(
            model,
            frames=FRAMES,
            conditions=conditions,
            generators=generators,
            config=config,
            context_BTCHW=context_BTCHW,
            samplers=samplers,
        )
        return list(frames)

    return run


def _eager(model: Magi, context_BTNC: Tensor) -> Work:
    plain = MarStyleSampler(model, guided_conditions(model, 1), EXACT, 1)

    def run() -> Tensor:
        plain.restart()
        known_BTNC = context_BTNC
        for _ in range(FRAMES - 1):
            plain.observe(known_BTNC)
            known_BTNC = plain.frame()[:, None].to(context_BTNC.dtype)
        return known_BTNC

    return torch.inference_mode()(run)


@torch.inference_mode()
def end_to_end(setting: Setting, name: str, calls: int) -> PreparedCase:
    """Two frames of the size ``name``, 8 iterations of 5 steps under guidance, at the precision that a user gets."""
    model = small_model("smoke" if setting.smoke else name, setting.device)
    execution = choose_execution(model, FAST.precision)
    context_BTNC, narrow = random_frame(model, 1), in_format(model, torch.bfloat16)
    sides = {
        OURS: _ours(model, FAST, context_BTNC, SamplerCache()),
        "ours in fp32": _ours(model, EXACT, context_BTNC, SamplerCache()),
        "ours in fp32, first call": _ours(model, EXACT, context_BTNC, None),
        "eager": _eager(model, context_BTNC),
        "eager in bf16": _eager(narrow, context_BTNC.bfloat16()),
    }

    @torch.inference_mode()
    def check() -> tuple[Parity, ...]:
        return (*frame_parities(model, 1, EXACT), pass_parity(model, 1, FAST))

    return PreparedCase(
        tuple(Candidate(side, run, calls=calls) for side, run in sides.items()),
        check=check,
        metrics=lambda seconds: {
            "fp32 x eager": seconds["eager"] / seconds["ours in fp32"],
            "fp32, first call x eager": seconds["eager"] / seconds["ours in fp32, first call"],
        },
        shapes=shapes_of(filled_sampler(model, FAST, 1), FAST)
        | {
            "frames in the history": list(range(1, FRAMES)),
            "frames": FRAMES - 1,
            "products": {"passes": str(execution.pass_products), "head": str(execution.head_products)},
        },
    )


def attention_case(setting: Setting) -> PreparedCase:
    """Temporal attention of training: the split form against the dense mask, and all 2T slots."""
    positions, heads, width, frames = (4, 2, 8, 4) if setting.smoke else (256, 4, 48, 16)
    pattern = SlotPattern(frames - 1, frames, 1)
    shape = AttentionShape(1, positions, heads, width, pattern, torch.float32)
    naive = AttentionShape(1, positions, heads, width, SlotPattern(frames, frames, 1), torch.float32)
    projected, all_slots = shape.projections(setting.device), naive.projections(setting.device)
    d_out = torch.randn_like(projected[..., : heads * width])
    d_all = torch.randn_like(all_slots[..., : heads * width])
    low = AttentionShape(1, positions, heads, width, pattern, torch.bfloat16)
    works: dict[str, Callable[[], object]] = {
        OURS: training_work(slot_attention, projected, d_out, shape),
        "dense mask": training_work(dense_slot_attention, projected, d_out, shape),
        "all 2T slots": training_work(slot_attention, all_slots, d_all, naive),
        "bf16 forward, ours": forward_work(slot_attention, projected.bfloat16(), low),
        "bf16 forward, dense mask": forward_work(dense_slot_attention, projected.bfloat16(), low),
    }

    def check() -> tuple[Parity, ...]:
        ours, dense = works[OURS](), works["dense mask"]()
        pairs = zip(("result", "gradient"), ours, dense, strict=True)  # type: ignore[call-overload]
        return tuple(Parity(f"{what} against the dense mask", relative_error(a, b), 1e-5) for what, a, b in pairs)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"x dense mask, bf16 forward": seconds["bf16 forward, dense mask"] / seconds["bf16 forward, ours"]}

    shapes = {"P": positions, "heads": heads, "head width": width, "S": pattern.slots}
    candidates = tuple(Candidate(name, run, warmups=2 if name == OURS else 1, calls=5) for name, run in works.items())
    return PreparedCase(candidates, check, metrics=metrics, shapes=shapes)
