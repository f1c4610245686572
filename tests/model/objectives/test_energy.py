"""The energy score is a hand-worked number, lowest for the right distribution, and what a one-step head learns from."""

import math

import pytest
import torch

from magi.config import ModelConfig, SamplingConfig
from magi.model.diffusion_head import DiffusionHead
from magi.model.objectives.contract import make_objective
from magi.model.objectives.energy import EnergyObjective, energy_score
from magi.sampling.denoise import denoise_tokens


def test_hand_worked() -> None:
    """Samples at (0, 0) and (3, 4), 5 apart: 5 and 0 from their own ends, 3 and 4 from (3, 0)."""
    samples_nMC = torch.tensor([[[0.0, 0.0]] * 3, [[3.0, 4.0]] * 3])
    token_MC = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    assert energy_score(samples_nMC, token_MC).tolist() == [0.0, 0.0, 2.0]
    three = torch.tensor([[[0.0]], [[1.0]], [[3.0]]])  # pairs are 1, 2 and 3 apart, 2 on average; 1, 0 and 2 from y
    assert energy_score(three, torch.ones(1, 1)).tolist() == [0.0]
    with pytest.raises(ValueError, match="at least two samples of each token, got 1"):
        energy_score(three[:1], torch.ones(1, 1))


@pytest.mark.parametrize("count", [2, 5])
def test_of_gaussians_the_true_one_scores_lowest(count: int) -> None:
    """Against tokens of N(0, 1), samples of N(m, s): 2 E|N(m, 1 + s^2)| - 2 s / sqrt(pi), for any number of samples."""
    generator = torch.Generator().manual_seed(0)
    token_MC = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    normal_nMC = torch.randn(count, 200_000, 1, generator=generator, dtype=torch.float64)
    found = {}
    for m in (-0.5, 0.0, 0.5):
        for s in (0.0, 0.6, 1.0, 1.5):
            found[m, s] = float(energy_score(m + s * normal_nMC, token_MC).mean())
            width = math.sqrt(1 + s * s)
            folded = width * math.sqrt(2 / math.pi) * math.exp(-((m / width) ** 2) / 2) + m * math.erf(
                m / width / math.sqrt(2)
            )
            assert found[m, s] == pytest.approx(2 * folded - 2 * s / math.sqrt(math.pi), abs=0.015)
    assert min(found, key=found.__getitem__) == (0.0, 1.0)


def test_the_loss_is_the_score_of_a_token_s_samples_and_its_gradient_is_finite() -> None:
    """Two samples at 0 and 3 of a token at 1: 2 (1 + 2) / 2 - 3 = 0; both move towards it, and away from each other."""
    objective = make_objective(ModelConfig(objective="energy", diffusion_steps=50))
    assert isinstance(objective, EnergyObjective) and objective.outputs_per_channel == 1
    time = objective.draw_time((2, 1), torch.Generator())
    assert time.tolist() == [[49], [49]]
    token_RMC, noise_RMC = torch.ones(2, 1, 1), torch.randn(2, 1, 1)
    assert torch.equal(objective.corrupt(token_RMC, noise_RMC, time), noise_RMC)
    prediction_RMC = torch.tensor([[[0.0]], [[3.0]]], requires_grad=True)
    parts = objective.loss(prediction_RMC, token_RMC, noise_RMC, noise_RMC, time)
    assert parts.mse.tolist() == [[0.0], [0.0]] and parts.vlb.tolist() == [[0.0], [0.0]]
    (gradient_RMC,) = torch.autograd.grad(parts.mse.mean(), prediction_RMC)
    # d/dx of |x - 1| summed over both, and of - |x - x'|: -1 + 1 and 1 - 1.
    assert gradient_RMC.flatten().tolist() == [0.0, 0.0]
    same_RMC = torch.ones(2, 1, 1, requires_grad=True)
    (gradient_RMC,) = torch.autograd.grad(
        objective.loss(same_RMC, token_RMC, noise_RMC, noise_RMC, time).mse.sum(), same_RMC
    )
    assert gradient_RMC.tolist() == [[[0.0]], [[0.0]]], "a distance of 0"
    with pytest.raises(ValueError, match="diffusion_batch_mul 1: samples of a token are compared; set it to 2 or more"):
        objective.loss(prediction_RMC[:1], token_RMC[:1], noise_RMC[:1], noise_RMC[:1], time[:1])


WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
CENTRES = torch.tensor([[-1.5, 0.0], [1.5, 1.0], [0.5, -1.5]])
WIDTH, STEPS = 0.2, 600


def mixture(condition_M: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Tokens in 2-D from three round Gaussians whose weights depend on the condition."""
    mode_M = torch.multinomial(WEIGHTS[condition_M], 1, generator=generator).squeeze(1)
    return CENTRES[mode_M] + WIDTH * torch.randn(len(mode_M), 2, generator=generator)


def test_a_head_learns_mean_covariance_and_mode_weights_of_a_mixture() -> None:
    """One call a token, from Gaussian noise to a mixture of three modes whose weights depend on the condition."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = DiffusionHead(2, condition_width=2, width=32, blocks=2, outputs=1)
    objective, z_2D = EnergyObjective(99), torch.eye(2)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for step in range(STEPS):
        condition_M = torch.randint(2, (256,), generator=generator)
        token_MC, noise_RMC = mixture(condition_M, generator), torch.randn(4, 256, 2, generator=generator)
        time_RM = objective.draw_time((4, 256), generator)
        prediction_RMC = head(noise_RMC, time_RM, z_2D[condition_M])
        parts = objective.loss(prediction_RMC, token_MC.expand_as(noise_RMC), noise_RMC, noise_RMC, time_RM)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (STEPS - step) / STEPS)
        optimizer.zero_grad()
        parts.mse.mean().backward()
        optimizer.step()
    table, count = objective.steps(SamplingConfig(steps=1)), 20_000
    for condition in (0, 1):
        condition_M = torch.full((count,), condition)
        with torch.inference_mode():
            noise_IMC = torch.randn(1, count, 2, generator=generator)
            found_MC = denoise_tokens(head, z_2D[condition_M][None], noise_IMC, table, 1.0, temperature=1.0)
        weights = WEIGHTS[condition]
        mean = weights @ CENTRES
        covariance = (CENTRES - mean).T @ torch.diag(weights) @ (CENTRES - mean) + WIDTH**2 * torch.eye(2)
        assert torch.allclose(found_MC.mean(0), mean, atol=0.08)
        assert torch.allclose(found_MC.T.cov(), covariance, atol=0.12)
        nearest_M = torch.cdist(found_MC, CENTRES).argmin(dim=1)
        assert torch.allclose(nearest_M.bincount(minlength=3) / count, weights, atol=0.03)


def test_sampling_is_one_call_of_noise_scaled_by_temperature_and_guidance_acts_on_tokens() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = DiffusionHead(2, condition_width=4, width=16, blocks=1, outputs=1)
    z_GMD, noise_IMC = torch.randn(2, 5, 4), torch.randn(1, 5, 2)
    objective = EnergyObjective(99)
    table = objective.steps(SamplingConfig(steps=1))
    with torch.inference_mode():
        with_MC, without_MC = head(0.5 * noise_IMC[0], torch.tensor(99), z_GMD)
        unguided_MC = denoise_tokens(head, z_GMD[:1], noise_IMC, table, 1.0, temperature=0.5)
        guided_MC = denoise_tokens(head, z_GMD, noise_IMC, table, 3.0, temperature=0.5)
    assert torch.allclose(unguided_MC, with_MC, atol=1e-6)
    assert torch.allclose(guided_MC, without_MC + 3 * (with_MC - without_MC), atol=1e-5)
    with pytest.raises(ValueError, match=r"sampling.steps 12: the head of this model was trained for one step; set 1"):
        objective.steps(SamplingConfig(steps=12))
