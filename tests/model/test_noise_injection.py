"""Noise touches observation slots only, and its level is the bucket of its amplitude."""

import torch

from magi.model.noise_injection import draw_noise_amplitude, inject_noise, noise_level
from magi.model.teacher_forcing import complete_teacher_forcing, masked_teacher_forcing


def test_noise_touches_observation_slots_only() -> None:
    tokens_BTNC, noise_BTNC = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    masked_BTN = torch.ones(2, 3, 4, dtype=torch.bool)
    amplitude_B = torch.tensor([0.5, 0.0])
    noisy = inject_noise(complete_teacher_forcing(tokens_BTNC, masked_BTN), noise_BTNC, amplitude_B).tokens_BSNC
    torch.testing.assert_close(noisy[0, :2], tokens_BTNC[0, :2] + 0.5 * noise_BTNC[0, :2])
    assert torch.equal(noisy[1, :2], tokens_BTNC[1, :2])
    assert torch.equal(noisy[:, 2:], tokens_BTNC)


def test_masked_teacher_forcing_has_no_observation_to_disturb() -> None:
    tokens_BTNC, masked_BTN = torch.randn(1, 3, 4, 5), torch.ones(1, 3, 4, dtype=torch.bool)
    sequence = masked_teacher_forcing(tokens_BTNC, masked_BTN)
    noisy = inject_noise(sequence, torch.randn(1, 3, 4, 5), torch.tensor([0.7]))
    assert torch.equal(noisy.tokens_BSNC, tokens_BTNC)


def test_levels_split_the_range_evenly() -> None:
    amplitude_B = torch.tensor([0.0, 0.139, 0.141, 0.42, 0.5599, 0.57, 0.7])
    assert noise_level(amplitude_B, 0.7, 5).tolist() == [1, 1, 2, 3, 4, 5, 5]
    assert noise_level(torch.zeros(2), 0.0, 5).tolist() == [1, 1]


def test_amplitudes_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    amplitude = torch.stack([draw_noise_amplitude(0.7, generator) for _ in range(4000)])
    assert amplitude.min() >= 0 and amplitude.max() <= 0.7
    assert abs(amplitude.mean() - 0.35) < 0.01 and abs(amplitude.std() - 0.7 / 12**0.5) < 0.01
