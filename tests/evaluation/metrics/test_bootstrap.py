"""Student's quantiles are the published ones."""

import pytest

from magi.evaluation.metrics.bootstrap import t_quantile


@pytest.mark.parametrize(
    ("share", "degrees", "published"),
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
def test_t_quantile_is_the_published_one(share: float, degrees: int, published: float) -> None:
    assert t_quantile(share, degrees) == pytest.approx(published, abs=6e-4)


def test_t_quantile_of_many_degrees_is_the_normal_one() -> None:
    assert t_quantile(0.975, 100_000) == pytest.approx(1.95996, abs=1e-3)
    assert t_quantile(0.5, 3) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0.975, 0)
