"""The energy score is a hand-worked number, and lowest for the distribution that the tokens come from."""

import math

import pytest
import torch

from magi.sampling.energy_score import energy_score


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
