"""The baseline of the suite computes what the sampler computes, so that its time means something."""

import pytest
import torch
from torch import Tensor

from magi.bench.case import relative_error
from magi.bench.frame_parts import HeadLoop
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import guided_conditions, small_model
from magi.bench.sampling import filled_sampler, mar_style, random_frame, sorted_order
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser, draw_noise
from magi.sampling.execution import Execution
from magi.sampling.frame import generate_frame, plan_frame
from magi.sampling.history import History

CONFIG = SamplingConfig(iterations=4, steps=5, guidance=3.0, temperature=0.8)


@pytest.fixture(scope="module")
def model() -> Magi:
    return small_model("smoke", torch.device("cpu"), torch.float64)


def seeded(videos: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(videos)]


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_frames_of_the_baseline_are_ours(model: Magi, schedule: str) -> None:
    config = CONFIG.model_copy(update={"guidance_schedule": schedule})
    videos, conditions = 2, guided_conditions(model, 2)
    order_BN = sorted_order(plan_frame(model, config), videos, model.tokens_per_frame)
    with torch.inference_mode():
        past, denoiser = History(model, conditions, seeded(videos), 5, config), Denoiser(model.head, config.temperature)
        plain = MarStyleSampler(model, conditions, config, videos)
        context = random_frame(model, videos).repeat(1, 2, 1, 1)
        past.observe(context)
        plain.observe(context)
        ours, theirs = seeded(videos), seeded(videos)

        def draw(steps: int, count: int, channels: int) -> Tensor:
            return draw_noise(theirs, steps, count, channels)

        for _ in range(2):
            found = generate_frame(model, past, ours, plan_frame(model, config), denoiser, order_BN)
            expected = plain.frame(order_BN, draw)
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
            past.observe(found[:, None])
            plain.observe(expected[:, None])
    assert plain.length == 4


def test_the_loop_of_the_baseline_is_ours(model: Magi) -> None:
    loop = HeadLoop(model, 10, 7)
    ours = loop.ours(loop.noise_IMC)
    assert relative_error(ours, loop.baseline(loop.noise_IMC)) < 1e-12
    assert relative_error(ours, loop.baseline()) > 0.1, "its own noise is its own"
    assert relative_error(ours, loop.ours()) > 0.1
    assert loop.z_GMD.dtype == torch.float64 and loop.z_GMD.shape == (2, 5, model.config.width)


def test_both_start_from_the_same_cache(model: Magi) -> None:
    with torch.inference_mode():
        ours = filled_sampler(model, CONFIG, 2, known=3, execution=Execution.plain(model))
        plain = mar_style(ours, CONFIG)
        order_BN = sorted_order(ours.plan, 2, model.tokens_per_frame)
        theirs = seeded(2)
        expected = plain.frame(order_BN, lambda steps, count, channels: draw_noise(theirs, steps, count, channels))
        torch.testing.assert_close(ours.frame(order_BN), expected, atol=1e-9, rtol=1e-9)
