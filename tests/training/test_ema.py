import torch
from torch import nn

from magi.training.ema import Ema


def weights_over_time(steps: int) -> torch.Tensor:
    return torch.randn(steps + 1, 3, generator=torch.Generator().manual_seed(0))


def averaged(decay: float, weights: torch.Tensor, dtype: torch.dtype = torch.float32) -> Ema:
    model = nn.Linear(3, 1, bias=False).to(dtype)
    model.weight.data.copy_(weights[0])
    ema = Ema(model, decay)
    for step, values in enumerate(weights[1:], start=1):
        model.weight.data.copy_(values)
        ema.update(model, step)
    return ema


def test_average_equals_its_closed_form() -> None:
    """a_n = sum over k of (1 - d_k) w_k times the product of all later d, in float64, over 1,000 steps."""
    steps, decay = 1000, 0.99
    weights = weights_over_time(steps)
    decays = torch.tensor([min(decay, (1 + k) / (10 + k)) for k in range(1, steps + 1)], dtype=torch.float64)
    later = torch.cat([decays.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    expected = later[0] * weights[0] + ((1 - decays) * later[1:]) @ weights[1:].double()
    got = averaged(decay, weights).average["weight"][0].double()
    assert (got - expected).abs().max() < 1e-6


def test_average_forgets_the_first_weights() -> None:
    """With a decay of 0.9999 alone, 9 tenths of the initial weights would be left after 1,000 steps."""
    start = torch.zeros(201, 3)
    start[0] = 1000.0
    assert averaged(0.9999, start).average["weight"].abs().max() < 1e-3


def test_average_is_float32_even_of_bfloat16_weights() -> None:
    ema = averaged(0.9, weights_over_time(5), torch.bfloat16)
    assert ema.average["weight"].dtype == torch.float32


def test_state_has_the_names_of_the_model_and_comes_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.9)
    assert ema.state(model).keys() == model.state_dict().keys()
    other = Ema(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 0.9)
    other.load(ema.state(model))
    assert all(torch.equal(other.average[name], ema.average[name]) for name in ema.average)


def test_average_is_a_copy() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    model.weight.data.zero_()
    assert ema.average["weight"].abs().min() > 0
