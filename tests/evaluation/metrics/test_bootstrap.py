"""Intervals: as wide as fresh samples say, a pure function of values and key; Student's quantiles as published."""

import math

import pytest
import torch

from magi.evaluation.metrics.bootstrap import mean_band, ratio_band, resampled_means, student_interval, t_quantile


def test_band_holds_the_mean_and_shrinks_with_clips() -> None:
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double() + 5
    few, many = mean_band(values[:25], 0), mean_band(values, 0)
    torch.testing.assert_close(many.mean_T, values.mean(0))
    assert (few.low_T < few.mean_T).all() and (few.mean_T < few.high_T).all()
    width = (many.high_T - many.low_T) * 400**0.5 / (2 * 1.96)  # of a unit normal: 1
    assert ((width > 0.8) & (width < 1.2)).all()
    assert ((few.high_T - few.low_T) > 2.5 * (many.high_T - many.low_T)).all()
    with pytest.raises(ValueError, match="at least one clip"):
        mean_band(torch.zeros(0, 3), 0)


def test_resamples_are_of_clips_and_depend_on_the_key_alone() -> None:
    values_BT = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    means_RT = resampled_means(values_BT, 50, 3, "key")
    assert (resampled_means(torch.ones(3, 2), 50, 3, "key") == 1).all()
    torch.testing.assert_close(means_RT[:, 0], means_RT[:, 1])  # both frames of the same clips
    assert torch.equal(means_RT, resampled_means(values_BT, 50, 3, "key"))
    assert not torch.equal(means_RT, resampled_means(values_BT, 50, 4, "key"))


def test_ratio_to_real_is_one_for_real_clips() -> None:
    real = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) + 1
    ratio = ratio_band(2 * real, real, 0)
    torch.testing.assert_close(ratio.mean_T, torch.full((4,), 2.0).double())
    assert (ratio.low_T < 2).all() and (ratio.high_T > 2).all()


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
