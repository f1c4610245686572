"""Mask ratios, masks, orders and schedules are the ones of MAR and MaskGIT."""

import math

import pytest
import torch

from magi.model.masking import cosine_counts, draw_mask, draw_mask_ratio, random_order


def test_ratios_follow_the_truncated_normal() -> None:
    ratio_T = draw_mask_ratio(200_000, 1.0, 0.25, 0.7, torch.Generator().manual_seed(0))
    assert ratio_T.min() >= 0.7 and ratio_T.max() <= 1.0
    # Mean of a normal(1, 0.25) truncated to [0.7, 1]: mu + sigma * (phi(a) - phi(b)) / (Phi(b) - Phi(a)).
    a, b = -1.2, 0.0
    phi = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (a, b)]
    area = 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))
    assert ratio_T.mean().item() == pytest.approx(1.0 + 0.25 * (phi[0] - phi[1]) / area, abs=5e-4)


def test_a_mask_covers_the_ratio_rounded_up_at_random_positions() -> None:
    ratio_T = torch.tensor([0.7, 0.71, 1.0] * 400, dtype=torch.float64)
    masked_TN = draw_mask(ratio_T, 10, torch.Generator().manual_seed(0))
    assert masked_TN.sum(1).tolist() == [7, 8, 10] * 400
    share_N = masked_TN[ratio_T == 0.7].float().mean(0)
    assert (share_N - 0.7).abs().max() < 0.1


def test_frames_have_ratios_of_their_own() -> None:
    assert len(draw_mask_ratio(16, 1.0, 0.25, 0.7, torch.Generator().manual_seed(0)).unique()) == 16


@pytest.mark.parametrize(("tokens", "iterations"), [(256, 64), (256, 1), (16, 8), (16, 16), (7, 3), (64, 10)])
def test_schedule_counts_equal_mars_formula(tokens: int, iterations: int) -> None:
    mask = [True] * tokens
    expected = []
    for step in range(iterations):
        ratio = math.cos(math.pi / 2.0 * (step + 1) / iterations)
        keep = max(1, min(sum(mask) - 1, math.floor(tokens * ratio)))
        keep = 0 if step == iterations - 1 else keep
        expected.append(sum(mask) - keep)
        mask = [True] * keep + [False] * (tokens - keep)
    counts = cosine_counts(tokens, iterations)
    assert counts == expected
    assert sum(counts) == tokens and min(counts) >= 1


def test_more_iterations_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling.iterations: expected 1..16"):
        cosine_counts(16, 17)


def test_an_order_names_every_token_once() -> None:
    order_N = random_order(50, torch.Generator().manual_seed(0))
    assert sorted(order_N.tolist()) == list(range(50))
    assert order_N.tolist() != list(range(50))
