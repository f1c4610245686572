"""Every token exactly once, reverse diffusion as the reference, guidance as claimed, videos independent of others."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.objectives.ddpm import cosine_schedule, respace, reverse_table
from magi.sampling import denoise
from magi.sampling import frame as frame_module
from magi.sampling.denoise import denoise_tokens, draw_noise
from magi.sampling.frame import guidance_scale, plan_frame
from magi.sampling.generate import generate
from magi.sampling.history import History
from tests.fakes.reverse_step import reverse_step

FAST = SamplingConfig(iterations=3, steps=4)


def tiny_model(classes: int = 3, dropout: float = 0.0) -> Magi:
    config = ModelConfig(
        width=16, blocks=1, heads=2, patch_size=1, frames=3, head_width=16, head_blocks=1, classes=classes,
        class_tokens=1, interval_vocabulary=3, dropout=dropout, diffusion_steps=50,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=3, channels=2, height=3, width=4), generator).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def told(videos: int, classes: int = 3) -> Conditions:
    numbers = torch.arange(videos)
    return Conditions(numbers % 3 + 1, numbers % 2 * 2 + 1, numbers % classes if classes else None)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(11))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(model: Magi, config: SamplingConfig = FAST, seeds: tuple[int, ...] = (1, 2), **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "frames": 4,
        "conditions": told(len(seeds), model.config.classes),
        "generators": seeded(*seeds),
        "config": config,
    }
    return torch.stack(list(generate(model, **arguments | changes)), dim=1)


# Iterations


def mar_counts(tokens: int, iterations: int) -> list[int]:
    """The counts as MAR's sampling loop makes them, one mask length after another."""
    counts, masked = [], tokens
    for step in range(iterations):
        length = max(1, min(masked - 1, math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / iterations))))
        after = 0 if step == iterations - 1 else length
        counts.append(masked - after)
        masked = after
    return counts


@pytest.mark.parametrize("iterations", [1, 2, 5, 11, 12])
def test_every_token_is_generated_exactly_once_on_mars_schedule(
    monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    plain = History.predict

    def predict(self: History, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        calls.append((tokens_BNC.clone(), masked_BN.clone()))
        return plain(self, tokens_BNC, masked_BN, picked_Bm)

    monkeypatch.setattr(History, "predict", predict)
    model = tiny_model()
    frames_BTCHW = sample(model, FAST.model_copy(update={"iterations": iterations}), frames=2)
    assert len(calls) == 2 * iterations
    for frame in range(2):
        final_BNC = model.patchify(frames_BTCHW[:, frame : frame + 1]).squeeze(1)
        passes = calls[frame * iterations : (frame + 1) * iterations]
        masks = [masked_BN for _, masked_BN in passes] + [torch.zeros(2, 12, dtype=torch.bool)]
        assert bool(masks[0].all())
        for (tokens_BNC, before_BN), after_BN, count in zip(passes, masks[1:], mar_counts(12, iterations), strict=True):
            assert not bool((after_BN & ~before_BN).any()), "a token was masked again"
            assert (before_BN & ~after_BN).sum(1).tolist() == [count, count]
            assert torch.equal(tokens_BNC[~before_BN], final_BNC[~before_BN]), "a finished token changed"
    assert bool((final_BNC != 0).all())


def test_the_order_is_random_for_every_video_and_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, ...]] = []
    plain = frame_module.random_order

    def spy(tokens: int, generator: torch.Generator) -> Tensor:
        order_N = plain(tokens, generator)
        orders.append(tuple(order_N.tolist()))
        return order_N

    monkeypatch.setattr(frame_module, "random_order", spy)
    sample(tiny_model(), frames=3)
    assert len(orders) == 6
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(12)) for order in orders)


# Denoising


@pytest.mark.parametrize("x0_limit", [math.inf, 0.5])
@pytest.mark.parametrize("count", [2, 7, 50])
def test_the_table_is_the_reverse_step(count: int, x0_limit: float) -> None:
    schedule = respace(cosine_schedule(50), count)
    table = reverse_table(schedule, x0_limit)
    x_t, noise = normal(2, 5, 3).unbind(0)
    prediction = normal(5, 6)
    assert len(table) == count
    for index in range(count):
        expected = reverse_step(schedule, index, x_t, prediction, noise, 0.8, x0_limit)
        got = table.step(index, x_t, prediction[None], 1.0, 0.8 * noise)
        torch.testing.assert_close(got, expected)


def test_the_denoising_loop_is_the_reference_loop_with_an_unscaled_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps, temperature = tiny_model(), 9, 0.7
    schedule = respace(cosine_schedule(50), steps)
    z_MD = normal(5, 16)
    noise_IMC = normal(steps, 5, 2)
    with torch.no_grad():
        x = noise_IMC[0]
        for index in reversed(range(steps)):
            prediction = model.head(x, schedule.timesteps[index].expand(5), z_MD)
            x = reverse_step(schedule, index, x, prediction, noise_IMC[index], temperature)
        for budget in (1, 5 * 80 * 8 * 4, 2**20):  # a step at a time, four at a time, all at once
            monkeypatch.setattr(denoise, "MODULATION_BYTES", {"cpu": budget})
            got = denoise_tokens(model.head, z_MD[None], noise_IMC, reverse_table(schedule), 1.0, temperature)
            torch.testing.assert_close(got, x)


def test_tokens_stay_within_the_limit_of_the_config() -> None:
    assert sample(tiny_model(), FAST.model_copy(update={"x0_limit": 0.7})).abs().max() == pytest.approx(0.7)
    assert sample(tiny_model()).abs().max() > 1


class ExactHead:
    """The noise prediction of tokens that are drawn from one Gaussian: the exact score at every timestep."""

    def __init__(self, mean_C: Tensor, covariance_CC: Tensor, steps: int) -> None:
        self.mean_C, self.covariance_CC = mean_C, covariance_CC
        self.alphas_bar = cosine_schedule(steps).alphas_bar
        self.modulation_width = 1

    def embed_time(self, timestep: Tensor) -> Tensor:
        return timestep[:, None]

    def modulations(self, time: Tensor, z: Tensor) -> Tensor:
        return time.expand(-1, -1, z.shape[-2], 1)

    def denoise(self, x_MC: Tensor, timestep_1M1: Tensor) -> Tensor:
        alpha_bar = self.alphas_bar[timestep_1M1[0, 0, 0]]
        noisy_CC = alpha_bar * self.covariance_CC + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        centred_MC = x_MC - alpha_bar.sqrt() * self.mean_C
        noise_MC = (1 - alpha_bar).sqrt() * torch.linalg.solve(noisy_CC, centred_MC.T).T
        return torch.cat([noise_MC, torch.zeros_like(noise_MC)], dim=-1)[None]


def test_reverse_diffusion_with_the_exact_score_recovers_a_gaussian() -> None:
    mean_C = torch.tensor([1.0, -0.5], dtype=torch.float64)
    covariance_CC = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    head: Any = ExactHead(mean_C, covariance_CC, 1000)
    table = reverse_table(respace(cosine_schedule(1000), 250))
    noise_IMC = draw_noise(seeded(3, 4), 250, 10_000, 2).double()
    x_MC = denoise_tokens(head, torch.zeros(1, 20_000, 1).double(), noise_IMC, table, 1.0, 1.0)
    torch.testing.assert_close(x_MC.mean(0), mean_C, atol=0.02, rtol=0)
    torch.testing.assert_close(x_MC.T.cov(), covariance_CC, atol=0.02, rtol=0)


def test_noise_is_one_draw_a_video() -> None:
    together = draw_noise(seeded(5, 6), 3, 2, 4)
    assert together.shape == (3, 4, 4)
    assert torch.equal(together[:, 2:], draw_noise(seeded(6), 3, 2, 4))
    assert together.std() > 0.5


# Guidance


def test_guidance_scales_the_noise_prediction_and_takes_the_variance_with_the_label() -> None:
    class TwoAnswers:
        modulation_width = 1

        def embed_time(self, timestep: Tensor) -> Tensor:
            return timestep[:, None]

        def modulations(self, time: Tensor, z: Tensor) -> Tensor:
            return torch.zeros(len(time), *z.shape[1:3], 1)

        def denoise(self, x: Tensor, _: Tensor) -> Tensor:
            return torch.stack([torch.cat([x, x * 0 + 0.3], -1), torch.cat([x * 0 + 2, x * 0 - 9.0], -1)])

    schedule = respace(cosine_schedule(50), 3)
    noise_IMC = normal(3, 4, 2)
    x = noise_IMC[0]
    for index in (2, 1, 0):
        prediction = torch.cat([2 + 2.5 * (x - 2), torch.full_like(x, 0.3)], dim=-1)
        x = reverse_step(schedule, index, x, prediction, noise_IMC[index], 1.0)
    head: Any = TwoAnswers()
    got = denoise_tokens(head, torch.zeros(2, 4, 1).double(), noise_IMC, reverse_table(schedule), 2.5, 1.0)
    torch.testing.assert_close(got, x)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_scale_one_is_no_guidance(schedule: str) -> None:
    model = tiny_model()
    plain = sample(model)
    almost = FAST.model_copy(update={"guidance": 1 + 1e-9, "guidance_schedule": schedule})
    torch.testing.assert_close(sample(model, almost), plain, atol=1e-6, rtol=0)
    stronger = FAST.model_copy(update={"guidance": 3.0, "guidance_schedule": schedule})
    assert (sample(model, stronger) - plain).abs().max() > 1e-2


def test_scale_zero_is_the_null_label() -> None:
    # Without temperature: the variance is that of the half with the label.
    model = tiny_model()
    cold = FAST.model_copy(update={"temperature": 0.0})
    none = cold.model_copy(update={"guidance": 0.0, "guidance_schedule": "constant"})
    expected = sample(model, cold, conditions=told(2).null(model.config))
    torch.testing.assert_close(sample(model, none), expected)
    assert (sample(model, cold) - expected).abs().max() > 1e-2


def test_guidance_without_a_label_changes_nothing_and_costs_nothing() -> None:
    model = tiny_model()
    nothing = told(2).null(model.config)
    guided = FAST.model_copy(update={"guidance": 7.0})
    assert torch.equal(sample(model, guided, conditions=nothing), sample(model, FAST, conditions=nothing))


def test_the_linear_schedule_is_mars() -> None:
    model, config = tiny_model(), SamplingConfig(iterations=6, steps=2, guidance=7.0)
    masked, expected = 12, []
    for count in mar_counts(12, 6):
        masked -= count
        expected.append(1 + (7 - 1) * (12 - masked) / 12)
    assert plan_frame(model, config).scales == pytest.approx(expected)
    assert expected[-1] == 7
    assert guidance_scale(config.model_copy(update={"guidance_schedule": "constant"}), 0.1) == 7


# Independence


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_video_is_the_same_in_any_batch(guidance: float) -> None:
    model = tiny_model()
    config = FAST.model_copy(update={"guidance": guidance, "longer": "window", "window_keep": 1})
    context = normal(3, 2, 2, 3, 4)
    everything = told(3)  # noise levels 1, 3, 1
    together = sample(model, config, (7, 8, 9), frames=6, context_BTCHW=context)
    for k, seed in enumerate((7, 8, 9)):
        alone = Conditions(*(values[k : k + 1] for values in (
            everything.interval_B, everything.noise_level_B, everything.label_B)))  # fmt: skip
        video = sample(model, config, (seed,), frames=6, conditions=alone, context_BTCHW=context[k : k + 1])
        torch.testing.assert_close(video[0], together[k], atol=1e-9, rtol=1e-9)


def test_the_same_seed_gives_the_same_video_and_the_global_state_stays() -> None:
    model, state = tiny_model(), torch.get_rng_state()
    first = sample(model)
    assert torch.equal(first, sample(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(first[0], sample(model, seeds=(3, 2))[0])
    ones = torch.ones(2, dtype=torch.long)
    same = Conditions(ones, ones, ones)
    twins = sample(model, seeds=(4, 4), conditions=same)
    torch.testing.assert_close(twins[0], twins[1])


def test_the_model_keeps_its_mode_and_frames_are_ordinary_tensors() -> None:
    model = tiny_model(dropout=0.5).train()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    frames = generate(model, frames=3, conditions=told(1), generators=seeded(1), config=FAST)
    first = next(frames)
    assert [module.training for module in model.modules()] == modes, "between two frames"
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not first.is_inference() and not first.requires_grad
    rest = list(frames)
    assert [module.training for module in model.modules()] == modes
    evaluated = sample(model.eval(), seeds=(1,), frames=3)
    assert torch.equal(evaluated[0], torch.stack([first, *rest], dim=1)[0]), "dropout was on"


@pytest.mark.parametrize("context", [0, 1, 3, 5])
@pytest.mark.parametrize("longer", ["window", "interpolate"])
def test_any_context_length_and_it_matters(context: int, longer: str) -> None:
    model = tiny_model(classes=0)
    config = FAST.model_copy(update={"longer": longer, "window_keep": 2})
    latents = normal(2, context, 2, 3, 4)
    videos = sample(model, config, frames=7, context_BTCHW=latents if context else None)
    assert videos.shape == (2, 7 - context, 2, 3, 4)
    assert bool(videos.isfinite().all())
    if context:
        changed = latents.clone()
        changed[:, -1] += 1
        assert (sample(model, config, frames=7, context_BTCHW=changed) - videos).abs().max() > 1e-3


def test_a_bfloat16_model_samples_in_float32() -> None:
    model = tiny_model().to(torch.bfloat16)
    videos = sample(model, frames=5)
    assert videos.dtype == torch.float32
    assert bool(videos.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": SamplingConfig(iterations=13, steps=2)}, "sampling.iterations: expected 1..12"),
        ({"config": SamplingConfig(iterations=2, steps=51)}, "sampling.steps: expected 1..50, got 51"),
        ({"config": SamplingConfig(iterations=2, steps=2, longer="window")},
         "window_keep 8 must be below model.frames 3"),
        ({"context_BTCHW": torch.zeros(2, 4, 2, 3, 4)}, "leave none to generate after 4"),
        ({"context_BTCHW": torch.zeros(2, 1, 2, 3, 5)}, r"expected \(B, C, H, W\) = \(2, 2, 3, 4\)"),
        ({"context_BTCHW": torch.zeros(2, 0, 2, 3, 4)}, "at least one frame"),
        ({"generators": seeded(1)}, "one generator a video, got 1 for 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_first_frame(changes: dict[str, Any], message: str) -> None:
    model = tiny_model()
    arguments: dict[str, Any] = {"frames": 4, "conditions": told(2), "generators": seeded(1, 2), "config": FAST}
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments | changes)


def test_guidance_needs_classes_and_a_short_video_no_window() -> None:
    model = tiny_model(classes=0)
    conditions = replace(told(2), label_B=None)
    with pytest.raises(ValueError, match="needs a model with classes"):
        sample(model, FAST.model_copy(update={"guidance": 2.0}), conditions=conditions)
    sample(model, FAST.model_copy(update={"longer": "window"}), frames=3)
