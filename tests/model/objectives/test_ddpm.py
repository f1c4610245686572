"""The diffusion of one token against closed forms, a hand-worked case and another implementation."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from magi.config import SamplingConfig
from magi.model.objectives.ddpm import (
    DdpmObjective,
    add_noise,
    cosine_schedule,
    diffusion_loss,
    respace,
    reverse_table,
)
from tests.fakes.reverse_step import reverse_step


def test_cosine_schedule_is_nichol_and_dhariwals() -> None:
    schedule = cosine_schedule(1000)
    expected = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert schedule.alphas_bar[499].item() == pytest.approx(expected, rel=1e-9)
    assert schedule.betas.max().item() == pytest.approx(0.999)


def test_respacing_keeps_first_last_and_marginals() -> None:
    full = cosine_schedule(1000)
    short = respace(full, 100)
    assert len(short) == 100 and short.timesteps[0] == 0 and short.timesteps[-1] == 999
    torch.testing.assert_close(short.alphas_bar, full.alphas_bar[short.timesteps])
    with pytest.raises(ValueError, match=r"sampling.steps: expected 1..1000, got 1001"):
        respace(full, 1001)


def test_one_step_is_the_clean_token_that_the_first_timestep_implies() -> None:
    schedule = respace(cosine_schedule(1000), 1, first=900, last=150)
    assert schedule.timesteps.tolist() == [900]
    x_t, predicted = torch.tensor([[2.0]]), torch.tensor([[0.5, 0.0]])
    alpha_bar = cosine_schedule(1000).alphas_bar[900].item()
    expected = (2 - math.sqrt(1 - alpha_bar) * 0.5) / math.sqrt(alpha_bar)
    table = reverse_table(schedule)
    assert table.step(0, x_t, predicted[None], 1.0, x_t).item() == pytest.approx(expected)
    assert all(map(math.isfinite, (*table.log_std, *table.log_std_slope)))


def test_timesteps_run_from_the_first_to_the_last_that_are_asked_for() -> None:
    full = cosine_schedule(1000)
    short = respace(full, 3, first=900, last=150)
    assert short.timesteps.tolist() == [150, 525, 900]
    torch.testing.assert_close(short.alphas_bar, full.alphas_bar[short.timesteps])
    for first, last in ((1000, 0), (300, 300), (100, 300)):
        with pytest.raises(ValueError, match=f"first_timestep {first}, sampling.last_timestep {last}: expected"):
            respace(full, 2, first, last)
    with pytest.raises(ValueError, match=r"sampling.steps: expected 1..11, got 12"):
        respace(full, 12, first=20, last=10)


def test_the_last_step_gives_the_clean_token_at_any_timestep() -> None:
    """A head that knows the noise exactly gives back the token, though noise is left at the last timestep."""
    settings = SamplingConfig(steps=3, first_timestep=900, last_timestep=150)
    objective = DdpmObjective.of(1000)
    table = objective.steps(settings)
    assert table.timesteps.tolist() == [150, 525, 900]
    x0, noise = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    x_t = objective.corrupt(x0, noise, torch.full((5,), 150))
    prediction_GMC = torch.cat([noise, torch.zeros_like(noise)], dim=-1)[None]
    result = table.step(0, x_t, prediction_GMC, 1.0, noise)
    torch.testing.assert_close(result, x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x0_limit", [math.inf, 2.0])
@pytest.mark.parametrize("count", [10, 100])
def test_reverse_steps_equal_the_ddpm_scheduler(count: int, x0_limit: float) -> None:
    schedule = respace(cosine_schedule(1000), count)
    oracle = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        clip_sample=math.isfinite(x0_limit),
        clip_sample_range=x0_limit,
        timestep_spacing="linspace",
    )
    oracle.set_timesteps(count)
    assert oracle.timesteps.tolist() == schedule.timesteps.flip(0).tolist()
    ours = theirs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.Generator().manual_seed(1)
    for index in reversed(range(count)):
        prediction = torch.randn(8, 8, generator=weights)
        timestep = int(schedule.timesteps[index])
        torch.manual_seed(index)
        theirs = oracle.step(prediction, timestep, theirs).prev_sample
        torch.manual_seed(index)
        noise = torch.randn(8, 4) if index > 0 else torch.zeros(8, 4)
        ours = reverse_step(schedule, index, ours, prediction, noise, x0_limit=x0_limit)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_reverse_diffusion_with_the_exact_score_recovers_a_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = respace(cosine_schedule(1000), 250)
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    x_t = torch.randn(40_000, 2, dtype=torch.float64, generator=generator)
    for index in reversed(range(len(schedule))):
        alpha_bar = schedule.alphas_bar[index]
        marginal = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        score = -(x_t - alpha_bar.sqrt() * mean) @ torch.linalg.inv(marginal)
        # v = 1 asks for the upper variance bound, beta, which is right for data of about unit variance.
        prediction = torch.cat([-(1 - alpha_bar).sqrt() * score, torch.ones_like(x_t)], dim=1)
        noise = torch.randn(x_t.shape, dtype=torch.float64, generator=generator)
        x_t = reverse_step(schedule, index, x_t, prediction, noise, temperature=1.0)
    torch.testing.assert_close(x_t.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(x_t.T), covariance, rtol=0, atol=0.03)


def test_temperature_zero_is_deterministic_and_the_last_step_adds_no_noise() -> None:
    schedule = respace(cosine_schedule(1000), 10)
    x_t, prediction = torch.randn(3, 2), torch.randn(3, 4)
    for index, temperature in ((5, 0.0), (0, 1.0)):
        a, b = (reverse_step(schedule, index, x_t, prediction, torch.randn(3, 2), temperature) for _ in range(2))
        assert torch.equal(a, b)


def test_loss_equals_a_hand_worked_case() -> None:
    """One token of one channel on a schedule of two steps, every number worked out from the definitions."""
    schedule = respace(cosine_schedule(1000), 2)
    timestep = 1
    alpha_bar, previous = (float(schedule.alphas_bar[i]) for i in (1, 0))
    beta = 1 - alpha_bar / previous
    x0, noise, predicted, v = 0.7, -0.4, 0.1, 0.5
    x_t = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * noise
    coefficient_x0 = math.sqrt(previous) * beta / (1 - alpha_bar)
    coefficient_xt = math.sqrt(1 - beta) * (1 - previous) / (1 - alpha_bar)
    lowest = math.log(beta * (1 - previous) / (1 - alpha_bar))
    guess = (x_t - math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(alpha_bar)
    mean_gap = coefficient_x0 * (x0 - guess)
    log_variance = (v + 1) / 2 * math.log(beta) + (1 - (v + 1) / 2) * lowest
    divergence = 0.5 * (
        log_variance - lowest - 1 + math.exp(lowest - log_variance) + mean_gap**2 / math.exp(log_variance)
    )
    assert coefficient_xt * x_t == pytest.approx(float(schedule.posterior_xt[1]) * x_t)

    def column(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    noisy = add_noise(schedule, column(x0), column(noise), torch.tensor([timestep]))
    assert noisy.item() == pytest.approx(x_t)
    loss = diffusion_loss(schedule, column(predicted, v), column(x0), noisy, column(noise), torch.tensor([timestep]))
    assert loss.mse.item() == pytest.approx((predicted - noise) ** 2)
    assert loss.vlb.item() == pytest.approx(divergence / math.log(2), rel=1e-6)


def test_the_bound_trains_the_variance_only() -> None:
    schedule = cosine_schedule(1000)
    prediction = torch.randn(5, 6, requires_grad=True)
    x0, noise, timestep = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 10, 500, 999])
    x_t = add_noise(schedule, x0, noise, timestep)
    loss = diffusion_loss(schedule, prediction, x0, x_t, noise, timestep)
    (gradient,) = torch.autograd.grad(loss.vlb.sum(), prediction, retain_graph=True)
    assert (gradient[:, :3] == 0).all() and (gradient[:, 3:] != 0).any(dim=1).all()
    (gradient,) = torch.autograd.grad(loss.mse.sum(), prediction)
    assert (gradient[:, 3:] == 0).all()


def test_the_schedule_is_on_the_cpu_whoever_asks_first() -> None:
    with torch.device("meta"):
        objective = DdpmObjective.of(37)
    assert objective.schedule.betas.device.type == "cpu"
    assert objective is DdpmObjective.of(37)
