"""Speed on a CPU: products in bf16, and two whole frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.frame_parts import pass_parity
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import guided_conditions, in_format, labelled_conditions, small_model
from magi.bench.runner import Work
from magi.bench.sampling import filled_sampler, frame_parities, random_frame, shapes_of
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.sampling.generate import generate
from magi.sampling.prepared import SamplerCache

FRAMES = 3
"""One of context, then two."""
FAST = SamplingConfig(iterations=8, steps=5, guidance=3.0)
EXACT = FAST.changed(precision="fp32")


def linear_case(setting: Setting) -> PreparedCase:
    """A layer of the paper's model on 512 rows."""
    rows, inner, outer = (8, 16, 16) if setting.smoke else (512, 1280, 5120)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, inner, generator=generator), torch.randn(outer, inner, generator=generator) / inner**0.5
    x16, w16 = x.bfloat16(), w.bfloat16()
    works = {OURS: lambda: F.linear(x16, w16), "fp32": lambda: F.linear(x, w)}
    flops = 2 * rows * inner * outer
    return PreparedCase(
        tuple(Candidate(name, run, warmups=3, calls=5) for name, run in works.items()),
        check=lambda: (Parity("bf16 product", relative_error(works[OURS](), works["fp32"]()), 1e-2),),
        metrics=lambda seconds: {f"GFLOP/s {name}": flops / time / 1e9 for name, time in seconds.items()},
        shapes={"rows": rows, "inputs": inner, "outputs": outer},
    )


def _ours(model: Magi, config: SamplingConfig, context_BTNC: Tensor) -> Work:
    """The new frames as a pipeline generates them; the first call prepares the sampler, later ones find it."""
    samplers, context_BTCHW = SamplerCache(), model.unpatchify(context_BTNC)

    def run() -> list[Tensor]:
        generators, conditions = [torch.Generator().manual_seed(0)], labelled_conditions(model, 1)
        return list(
            generate(
                model,
                frames=FRAMES,
                conditions=conditions,
                generators=generators,
                config=config,
                context_BTCHW=context_BTCHW,
                samplers=samplers,
            )
        )

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

    return run


def end_to_end(setting: Setting, name: str, calls: int) -> PreparedCase:
    """Two frames of the size ``name``, 8 iterations of 5 steps under guidance, at the precision that a user gets."""
    model = small_model("smoke" if setting.smoke else name, setting.device)
    context_BTNC = random_frame(model, 1)
    sides = {
        OURS: _ours(model, FAST, context_BTNC),
        "ours in fp32": _ours(model, EXACT, context_BTNC),
        "eager": _eager(model, context_BTNC),
        "eager in bf16": _eager(in_format(model, torch.bfloat16), context_BTNC.bfloat16()),
    }
    sampler = filled_sampler(model, FAST, 1)
    products = {"passes": str(sampler.execution.pass_products), "head": str(sampler.execution.head_products)}

    def check() -> tuple[Parity, ...]:
        return (*frame_parities(model, 1, EXACT), pass_parity(model, 1, FAST))

    return PreparedCase(
        tuple(Candidate(side, run, calls=calls) for side, run in sides.items()),
        check=check,
        metrics=lambda seconds: {"fp32 x eager": seconds["eager"] / seconds["ours in fp32"]},
        shapes=shapes_of(sampler, FAST)
        | {"frames in the history": list(range(1, FRAMES)), "frames": FRAMES - 1, "products": products},
    )
