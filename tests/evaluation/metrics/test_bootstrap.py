"""Intervals: as wide as fresh samples say, a pure function of values and key; Student's quantiles as published."""

import math

import pytest
import torch

from magi.evaluation.metrics.bootstrap import (
    Curve,
    mean_curve,
    ratio_curve,
    resampled_means,
    share_difference,
    share_interval,
    student_interval,
    t_quantile,
)


def tensors(curve: Curve) -> tuple[torch.Tensor, ...]:
    """Mean, low and high."""
    return tuple(torch.tensor(values, dtype=torch.float64) for values in (curve.mean, curve.low, curve.high))


def test_an_interval_holds_the_mean_and_shrinks_with_clips() -> None:
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double() + 5
    (few, few_low, few_high), (many, low, high) = (tensors(mean_curve(part, 0)) for part in (values[:25], values))
    torch.testing.assert_close(many, values.mean(0), atol=1e-6, rtol=0)
    assert (few_low < few).all() and (few < few_high).all()
    width = (high - low) * 400**0.5 / (2 * 1.96)  # of a unit normal: 1
    assert ((width > 0.8) & (width < 1.2)).all()
    assert ((few_high - few_low) > 2.5 * (high - low)).all()
    with pytest.raises(ValueError, match="at least one clip"):
        mean_curve(torch.zeros(0, 3), 0)


def test_an_interval_is_that_of_its_quantiles() -> None:
    """Of 0 and 1 in equal parts the mean of 400 is normal: 2.5% of its resamples lie below 0.5 - 1.96 / 40."""
    values = (torch.arange(400.0) % 2)[:, None]
    mean, low, high = (float(one) for one in tensors(mean_curve(values, 0)))
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - 1.96 / 40, 0.5 + 1.96 / 40), abs=0.004)


def test_resamples_are_of_clips_and_depend_on_the_key_alone() -> None:
    values_BT = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    means_RT = resampled_means(values_BT, 50, 3, "key")
    assert (resampled_means(torch.ones(3, 2), 50, 3, "key") == 1).all()
    torch.testing.assert_close(means_RT[:, 0], means_RT[:, 1])  # both frames of the same clips
    assert torch.equal(means_RT, resampled_means(values_BT, 50, 3, "key"))
    assert not torch.equal(means_RT, resampled_means(values_BT, 50, 4, "key"))


def test_ratio_to_real_is_one_for_real_clips() -> None:
    real = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) + 1
    mean, low, high = tensors(ratio_curve(2 * real, real, 0))
    torch.testing.assert_close(mean, torch.full((4,), 2.0).double())
    assert (low < 2).all() and (high > 2).all()


def test_students_interval_of_few_repetitions() -> None:
    """Of 4: 3.182 standard errors, the quantile of 3 degrees of freedom; one has no interval."""
    estimate = student_interval([3.0, 5.0, 4.0, 8.0])
    assert estimate.value == 5.0 and estimate.std == pytest.approx(math.sqrt(14 / 3))
    assert estimate.high - estimate.value == pytest.approx(3.18245 * estimate.std / 2, rel=1e-4)
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value)
    with pytest.raises(ValueError, match="at least two, got 1"):
        student_interval([1.0])


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.95, 4, 2.132),
        (0.995, 2, 9.925),
    ],
)
def test_t_quantile_is_the_published_one(probability: float, degrees: int, published: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(published, abs=6e-4)


def test_t_quantile_of_many_degrees_is_the_normal_one() -> None:
    assert t_quantile(0.975, 100_000) == pytest.approx(1.95996, abs=1e-3)
    assert t_quantile(0.5, 3) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0.975, 0)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_the_interval_of_a_share_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    found = share_interval(hits, count)
    assert (found.value, found.low, found.high) == pytest.approx((hits / count, low, high), abs=1e-4)


def test_the_interval_of_a_difference_of_shares_is_newcombes() -> None:
    found = share_difference(share_interval(56, 70), share_interval(48, 80))  # example (a) of his table II
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-4)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_that_is_none_is_refused(hits: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"no share of {hits} in {count}"):
        share_interval(hits, count)
