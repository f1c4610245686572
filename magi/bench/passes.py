"""Speed of one pass of the transformer over the frame being generated, and how it grows with the cached frames."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.head import BF16_LIMIT, BF16_SLACK
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import in_format, paper_model
from magi.bench.runner import Work, time_calls
from magi.bench.sampling import (
    EXACT_LIMIT,
    PAPER,
    SMOKE,
    compiled_side,
    make_ours,
    make_plain,
    random_frame,
    shapes_of,
)
from magi.config import SamplingConfig
from magi.model.magi import Magi


def pass_parity(model: Magi, videos: int, config: SamplingConfig, known: int = 15) -> Parity:
    """Conditions of the picked tokens against the plain pass in float32.

    Where the format is bf16 they may be as far from it as the plain pass in that format, and a half more; where only
    products are, by two hundredths.
    """
    ours = make_ours(model, config, videos, known=known, frames=known + 1)
    wide = make_plain(replace(ours, model=in_format(model, torch.float32)), config)
    wide.cache.layers = [None if pair is None else (pair[0].float(), pair[1].float()) for pair in wide.cache.layers]
    plain = make_plain(ours, config)
    wide.time = plain.time = model.config.frames - 1
    ours.past.frame_pass.place(torch.tensor(plain.time, device=model.mask_token.device))
    tokens_BNC = random_frame(model, videos)[:, 0]
    masked_BN, picked_Bm = _random_mask(model, videos)
    index = picked_Bm[None, :, :, None].expand(2, -1, -1, model.config.width)
    exact, rounded = (
        sampler.forward_pass(tokens_BNC, masked_BN).unflatten(0, (2, videos)).gather(2, index)
        for sampler in (wide, plain)
    )
    got = relative_error(ours.past.predict(tokens_BNC, masked_BN, picked_Bm), exact)
    allowed = EXACT_LIMIT[model.mask_token.device.type] if config.pass_precision == "model" else BF16_LIMIT
    if model.mask_token.dtype == torch.bfloat16:
        allowed = max(BF16_LIMIT, BF16_SLACK * relative_error(rounded, exact))
    return Parity("conditions of the picked tokens", got, allowed)


def _random_mask(model: Magi, videos: int) -> tuple[Tensor, Tensor]:
    """masked_BN and four picked tokens a video."""
    scores_BN = torch.rand(videos, model.tokens_per_frame, device=model.mask_token.device)
    return scores_BN < 0.5, scores_BN.argsort(dim=1)[:, :4]


def _pass(batch: int, compiled: bool = False) -> Callable[[Setting], Trial]:
    @torch.inference_mode()
    def prepare(setting: Setting) -> Trial:
        model, videos = paper_model(setting), 2 if setting.smoke else batch
        config = PAPER.model_copy(update=SMOKE) if setting.smoke else PAPER
        ours = make_ours(model, config, videos)
        plain = make_plain(ours, config)
        tokens_BNC = random_frame(model, videos)[:, 0]
        masked_BN, picked_Bm = _random_mask(model, videos)

        def run() -> Tensor:
            return ours.past.predict(tokens_BNC, masked_BN, picked_Bm)

        def work(sampler: MarStyleSampler) -> Work:
            return torch.inference_mode()(lambda: sampler.forward_pass(tokens_BNC, masked_BN))

        works, facts = compiled_side(plain, work, setting) if compiled else ({}, {})
        contenders = [Contender(OURS, torch.inference_mode()(run), warmups=3, calls=5)]
        contenders.append(Contender("eager", work(plain), warmups=2, calls=5))
        contenders += [Contender(name, faster, warmups=3, calls=5) for name, faster in works.items()]
        products = _product_seconds(model, 2 * videos * model.positions, setting)
        return Trial(
            tuple(contenders),
            check=torch.inference_mode()(lambda: pass_parity(model, min(videos, 2), config)),
            metrics=lambda seconds: {
                "ms": seconds[OURS] * 1e3,
                "share of matrix products": products / seconds[OURS],
            },
            shapes=shapes_of(ours, config) | facts,
            close=torch.compiler.reset if compiled else lambda: None,
        )

    return prepare


def _product_seconds(model: Magi, rows: int, setting: Setting) -> float:
    """Time of a pass's matrix products alone, in this run."""
    width, hidden = model.config.width, int(model.config.width * model.config.mlp_ratio)
    weight = model.mask_token
    total = 0.0
    for inner, outer in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
        x, w = weight.new_empty(rows, inner).normal_(), weight.new_empty(outer, inner).normal_()
        total += time_calls(lambda x=x, w=w: torch.nn.functional.linear(x, w), setting)  # type: ignore[misc]
    return 2 * model.config.blocks * total


@torch.inference_mode()
def _cache_scaling(setting: Setting) -> Trial:
    """A pass with 10 and with 100 frames in the cache, of one video under guidance."""
    model = paper_model(setting)
    few, many = (2, 5) if setting.smoke else (10, 100)
    config = PAPER.model_copy(update={"iterations": 3, "steps": 4})
    ours = make_ours(model, config, 1, known=many, frames=many + 1)
    plain = make_plain(ours, config)
    tokens_BNC = random_frame(model, 1)[:, 0]
    masked_BN = torch.ones(1, model.tokens_per_frame, device=setting.device, dtype=torch.bool)
    picked_Bm = torch.arange(4, device=setting.device)[None]
    whole = list(plain.cache.layers)
    # The baseline knows whole positions alone; what is in the cache is random anyway.
    plain.time = model.config.frames - 1
    ours.past.frame_pass.place(torch.tensor(plain.time, device=setting.device))

    def ours_at(length: int) -> Tensor:
        ours.past.cache.rewind(length)
        return ours.past.predict(tokens_BNC, masked_BN, picked_Bm)

    def plain_at(length: int) -> Tensor:
        plain.cache.layers = [None if x is None else (x[0][:, :, :length], x[1][:, :, :length]) for x in whole]
        return plain.forward_pass(tokens_BNC, masked_BN)

    @torch.inference_mode()
    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        def slope(run: Callable[[int], object]) -> float:
            short, long = (time_calls(partial(run, n), setting, 5) for n in (few, many))
            return (long - short) / (many - few) * 1e6

        return {"us a past frame": slope(ours_at), "eager: us a past frame": slope(plain_at)}

    return Trial(
        (
            Contender(OURS, torch.inference_mode()(lambda: ours_at(many)), warmups=2, calls=5),
            Contender("eager", torch.inference_mode()(lambda: plain_at(many)), 2, calls=5),
        ),
        check=torch.inference_mode()(lambda: pass_parity(model, 1, config, many)),
        metrics=metrics,
        shapes=shapes_of(ours, config) | {"frames in the cache": [few, many]},
    )


CASES = (
    Case(
        "pass.b1",
        "cuda",
        "a masked pass of the transformer, 15 past frames",
        "pass",
        _pass(1, compiled=True),
        (Goal("x eager", 1.4, 2), Goal("x compiled", 1.0, 1.2), Goal("ms", 3.0, 2.1, smaller=True)),
        minutes=0.3,
    ),
    Case(
        "pass.b8",
        "cuda",
        "a masked pass of 8 videos at once",
        "pass",
        _pass(8),
        (Goal("x eager", 1.2, 1.4), Goal("ms", 18, 14.4, smaller=True)),
        minutes=0.05,
    ),
    Case(
        "pass.b64",
        "cuda",
        "a masked pass of 64 videos at once",
        "pass",
        _pass(64),
        (Goal("x eager", 1.2, 1.33), Goal("ms", 140, 105, smaller=True)),
        minutes=0.25,
    ),
    Case(
        "kv.scaling",
        "cuda",
        "a masked pass with 100 past frames, batch 1",
        "pass",
        _cache_scaling,
        (Goal("us a past frame", 20, 15, smaller=True),),
        minutes=0.1,
    ),
)
