from dataclasses import fields

import pytest
import torch

from magi.seeding import seed_of
from magi.training.corruption import TokenShape, draw_corruption, masked_tokens
from tests.fakes.training_runs import tiny_config

CONFIG = tiny_config(seed=3)
SHAPE = TokenShape(frames=3, tokens=16, channels=4)


def draw(sample: int, seed: int = 3) -> dict[str, torch.Tensor]:
    training = CONFIG.training.model_copy(update={"seed": seed})
    draws = draw_corruption(training, CONFIG.model, SHAPE, sample)
    return {field.name: torch.as_tensor(getattr(draws, field.name)) for field in fields(draws)}


def test_a_clip_is_a_pure_function_of_seed_and_sample() -> None:
    first = draw(5)
    torch.manual_seed(77)
    assert all(torch.equal(value, first[name]) for name, value in draw(5).items())
    for other in (draw(6), draw(5, seed=4)):
        assert not torch.equal(other["noise_TNC"], first["noise_TNC"])
        assert not torch.equal(other["masked_UN"], first["masked_UN"])


def test_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    draw(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_masked_tokens_are_counted_without_drawing_noise() -> None:
    samples = range(3, 12, 4)
    assert masked_tokens(CONFIG.training, SHAPE, samples) == sum(
        int(draw(sample)["masked_UN"].sum()) for sample in samples
    )


def test_distributions() -> None:
    """Ratios in [0.7, 1] and a mask for every frame, timesteps over the whole schedule, amplitudes up to 0.7."""
    draws = [draw(sample) for sample in range(300)]
    ratio = torch.stack([one["masked_UN"].float().mean(1) for one in draws])
    assert ratio.min() >= 0.7 and ratio.max() == 1.0 and (ratio[:, 0] != ratio[:, 1]).any()
    timestep = torch.stack([one["timestep_RUN"] for one in draws])
    assert timestep.shape[1:] == (4, 3, 16) and timestep.min() == 0 and timestep.max() == 99
    assert timestep.float().mean() == pytest.approx(49.5, abs=0.5)
    amplitude = torch.stack([one["amplitude"] for one in draws])
    assert amplitude.min() >= 0 and 0.6 < amplitude.max() <= 0.7
    dropped = torch.stack([one["drop_class"] for one in draws]).float().mean()
    assert dropped == pytest.approx(0.1, abs=0.05)
    noise = torch.stack([one["diffusion_noise_RUNC"] for one in draws])
    assert noise.std() == pytest.approx(1.0, abs=0.01)


def test_seeds_of_neighbours_share_nothing() -> None:
    seeds = {seed_of("mask", seed, sample) for seed in range(50) for sample in range(50)}
    assert len(seeds) == 2500 and seed_of("mask", 1, 23) != seed_of("mask", 12, 3)
