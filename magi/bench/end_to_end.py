"""Speed on a CPU from a context to two finished frames, by the sampler's own entry, against the plain sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import in_format, small_model, told
from magi.bench.passes import pass_parity
from magi.bench.sampling import frame_parities, make_ours, random_frame, shapes_of
from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.generate import generate
from magi.sampling.kept import Kept

FRAMES = 3
"""One of context, then two."""
EXACT = SamplingConfig(iterations=8, steps=5, guidance=3.0)
ROUNDED = EXACT.model_copy(update={"pass_precision": "bf16"})
ALL_ROUNDED = ROUNDED.model_copy(update={"head_precision": "bf16"})
"""A head of the tiny width is slower so: its products are too small."""
Run = Callable[[], object]


def _ours(model: Magi, config: SamplingConfig, context_BTNC: Tensor, kept: Kept | None) -> Run:
    """Latents of the new frames; a pipeline's second call has what its first one kept."""
    ones_B = torch.ones(1, dtype=torch.long)
    conditions = Conditions(ones_B, ones_B, 0 * ones_B)
    context_BTCHW = model.unpatchify(context_BTNC)

    def run() -> list[Tensor]:
        return list(
            generate(
                model,
                frames=FRAMES,
                conditions=conditions,
                generators=[torch.Generator().manual_seed(0)],
                config=config,
                context_BTCHW=context_BTCHW,
                kept=kept,
            )
        )

    return run


def _eager(model: Magi, context_BTNC: Tensor) -> Run:
    def run() -> Tensor:
        plain, known_BTNC = MarStyleSampler(model, told(model, 1), EXACT, 1), context_BTNC
        for _ in range(FRAMES - 1):
            plain.observe(known_BTNC)
            known_BTNC = plain.frame()[:, None].to(context_BTNC.dtype)
        return known_BTNC

    return torch.inference_mode()(run)


def end_to_end(name: str, rounded: SamplingConfig, calls: int) -> Callable[[Setting], Trial]:
    """A case of the size ``name``: 8 iterations of 5 steps under guidance, ``rounded`` where a processor has bf16."""

    @torch.inference_mode()
    def prepare(setting: Setting) -> Trial:
        model = small_model("smoke" if setting.smoke else name, setting.device)
        fast = rounded if torch.cpu._is_avx512_bf16_supported() else EXACT
        context_BTNC, narrow = random_frame(model, 1), in_format(model, torch.bfloat16)
        sides = {
            OURS: _ours(model, fast, context_BTNC, Kept()),
            "ours in fp32": _ours(model, EXACT, context_BTNC, Kept()),
            "ours in fp32, first call": _ours(model, EXACT, context_BTNC, None),
            "eager": _eager(model, context_BTNC),
            "eager in bf16": _eager(narrow, context_BTNC.bfloat16()),
        }

        @torch.inference_mode()
        def check() -> tuple[Parity, ...]:
            return (*frame_parities(model, 1, EXACT), pass_parity(model, 1, fast))

        return Trial(
            tuple(Contender(side, run, calls=calls) for side, run in sides.items()),
            check=check,
            metrics=lambda seconds: {
                "fp32 x eager": seconds["eager"] / seconds["ours in fp32"],
                "fp32, first call x eager": seconds["eager"] / seconds["ours in fp32, first call"],
            },
            shapes=shapes_of(make_ours(model, fast, 1), fast)
            | {
                "frames in the cache": list(range(1, FRAMES)),
                "frames": FRAMES - 1,
                "products": {"passes": fast.pass_precision, "head": fast.head_precision},
            },
        )

    return prepare


CASES = (
    Case(
        "cpu.e2e",
        "cpu",
        "two frames of the tiny model, 8 x 5, guidance",
        "run",
        end_to_end("tiny", ROUNDED, calls=4),
        (Goal("x eager", 2, 4),),
        minutes=0.3,
    ),
    Case(
        "cpu.e2e.base",
        "cpu",
        "two frames of the base model, 8 x 5, guidance",
        "run",
        end_to_end("base", ALL_ROUNDED, calls=1),
        (),
        minutes=1.5,
    ),
)
