"""Frechet distance: closed forms with their digits, invariants, the bias law, and every sample counted once."""

import pytest
import torch
from torch import Tensor

from magi.errors import NumericsError
from magi.evaluation.metrics import frechet
from magi.evaluation.metrics.frechet import (
    FeatureStatistics,
    distance_of,
    expected_floor,
    extrapolated_distance,
    frechet_distance,
    with_bootstrap,
)


def gaussian(mean: list[float], covariance_DD: Tensor) -> FeatureStatistics:
    """Statistics of a million samples of a known Gaussian."""
    count = 10**6
    return FeatureStatistics(
        len(mean), count, torch.tensor(mean, dtype=torch.float64), covariance_DD.double() * (count - 1)
    )


def normal(count: int, dimension: int, seed: int) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_form_of_two_dimensions() -> None:
    first, second = torch.tensor([[2.0, 1], [1, 3]]), torch.tensor([[1.0, 0.5], [0.5, 4]])
    assert frechet_distance(gaussian([0, 0], first), gaussian([1, -2], second)) == pytest.approx(
        5.2716385680127225, abs=1e-12
    )
    assert frechet_distance(gaussian([0, 0], first), gaussian([0, 0], second)) == pytest.approx(
        0.27163856801272246, abs=1e-12
    )


def test_closed_form_of_diagonal_covariances() -> None:
    rising = torch.arange(1, 401).double()
    zero = [0.0] * 400
    distance = frechet_distance(gaussian(zero, rising.diag()), gaussian(zero, rising.flip(0).diag()))
    assert distance == pytest.approx(34123.83905636109, abs=1e-7)


def test_equal_covariances_leave_the_means() -> None:
    features_ND = normal(200, 12, 0)
    shift_D = normal(1, 12, 1)[0]
    assert distance_of(features_ND, features_ND + shift_D) == pytest.approx(float(shift_D @ shift_D), abs=1e-9)


def test_symmetry_rotation_scale_and_order() -> None:
    first_ND, second_ND = normal(150, 10, 0), normal(130, 10, 1) * 1.5 + 0.3
    distance = distance_of(first_ND, second_ND)
    rotation_DD = torch.linalg.qr(normal(10, 10, 2)).Q
    assert distance > 1
    assert distance_of(second_ND, first_ND) == pytest.approx(distance, rel=1e-10)
    assert distance_of(first_ND @ rotation_DD, second_ND @ rotation_DD) == pytest.approx(distance, rel=1e-10)
    assert distance_of(3 * first_ND, 3 * second_ND) == pytest.approx(9 * distance, rel=1e-10)
    assert distance_of(first_ND.flip(0), second_ND) == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("count", [1, 8, 100, 399])
def test_identical_singular_sets_are_at_distance_zero(count: int) -> None:
    """Fewer vectors than dimensions: a root of the product alone is off by up to 8e-4 in float64, by 0.4 in float32."""
    features_ND = normal(count, 400, count)
    assert abs(distance_of(features_ND, features_ND.clone(), allow_singular=True)) < 1e-9


def test_few_vectors_are_at_the_distance_of_their_statistics() -> None:
    """The way through vectors and the way through covariances are the same number."""
    first_ND, second_ND = normal(12, 30, 0) * torch.linspace(0.1, 3, 30), normal(17, 30, 1) + 0.2
    whole = frechet_distance(FeatureStatistics.of(first_ND), FeatureStatistics.of(second_ND), allow_singular=True)
    assert distance_of(first_ND, second_ND, allow_singular=True) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("count", [8, 100])
def test_identical_singular_statistics_are_at_distance_zero(count: int) -> None:
    statistics = FeatureStatistics.of(normal(count, 400, count))
    assert abs(frechet_distance(statistics, statistics, allow_singular=True)) < 1e-9


def test_constant_sets_leave_the_means() -> None:
    first_ND, second_ND = torch.ones(20, 5), torch.full((30, 5), 3.0)
    assert distance_of(first_ND, second_ND) == pytest.approx(5 * 4)


def test_two_formulas_are_checked_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    first_ND, second_ND = normal(60, 6, 0), normal(60, 6, 1)
    factor = frechet._factor
    monkeypatch.setattr(frechet, "_factor", lambda values, vectors: 1.05 * factor(values, vectors))
    with pytest.raises(NumericsError, match="two formulas"):
        distance_of(first_ND, second_ND)


def test_distance_agrees_with_the_roots_of_the_plain_product() -> None:
    first_ND, second_ND = normal(80, 20, 3) * torch.linspace(0.1, 4, 20), normal(90, 20, 4)
    one, other = FeatureStatistics.of(first_ND), FeatureStatistics.of(second_ND)
    root = torch.linalg.eigvals(one.covariance_DD @ other.covariance_DD).sqrt().real.sum()
    trace = one.covariance_DD.trace() + other.covariance_DD.trace()
    plain = (one.mean_D - other.mean_D).square().sum() + trace - 2 * root
    assert frechet_distance(one, other) == pytest.approx(float(plain), rel=1e-10)


def test_bias_law_of_equal_gaussians() -> None:
    """E[d] = (1/n1 + 1/n2) d (d + 5) / 4 for unit covariance, to first order; at 2,048 clips of I3D that is 39.55."""
    dimension, count = 40, 1000
    law = 2 / count * dimension * (dimension + 5) / 4
    distances = [distance_of(normal(count, dimension, s), normal(count, dimension, 100 + s)) for s in range(12)]
    assert sum(distances) / 12 == pytest.approx(law, rel=0.04)
    assert expected_floor(torch.eye(dimension).double(), count, count) == pytest.approx(law, rel=1e-12)
    assert expected_floor(torch.eye(400).double(), 2048, 2048) == pytest.approx(39.55, abs=0.01)


def test_extrapolation_takes_the_bias_away() -> None:
    first_ND, second_ND = normal(900, 30, 5), normal(900, 30, 6)
    assert abs(extrapolated_distance(first_ND, second_ND)) < 0.3 * distance_of(first_ND, second_ND)


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_streaming_equals_batch(shards: int) -> None:
    features_ND = normal(333, 16, 7) + 1000  # a mean far from zero costs naive sums most of their digits
    whole = FeatureStatistics.of(features_ND)
    merged = FeatureStatistics(16)
    for part_N in torch.arange(333).chunk(shards):
        shard = FeatureStatistics(16)
        for batch_B in part_N.split(50):
            shard.update(features_ND[batch_B], batch_B.tolist())
        merged.merge(shard)
    assert merged.count == 333
    torch.testing.assert_close(merged.mean_D, whole.mean_D, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.covariance_DD, whole.covariance_DD, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(whole.covariance_DD, torch.cov(features_ND.T), rtol=1e-10, atol=1e-11)


def test_sample_counted_twice_is_refused() -> None:
    statistics = FeatureStatistics(4)
    statistics.update(normal(3, 4, 0), [0, 1, 2])
    with pytest.raises(ValueError, match="counted once, but 1 come twice"):
        statistics.update(normal(2, 4, 1), [2, 3])
    with pytest.raises(ValueError, match="twice"):
        statistics.update(normal(2, 4, 1), [7, 7])
    other = FeatureStatistics(4)
    other.update(normal(3, 4, 2), [1, 8, 9])
    with pytest.raises(ValueError, match=r"the first is 1\b"):
        statistics.merge(other)
    assert statistics.count == 3


def test_too_few_clips_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="64 clips are no more than the 64 feature dimensions") as caught:
        distance_of(normal(64, 64, 0), normal(200, 64, 1))
    assert "\n" not in str(caught.value)
    assert distance_of(normal(64, 64, 0), normal(200, 64, 1), allow_singular=True) > 0
    assert distance_of(normal(65, 64, 0), normal(200, 64, 1)) > 0
    with pytest.raises(ValueError, match="no more than the 64"):
        distance_of(normal(20, 64, 0), normal(30, 64, 1))
    with pytest.raises(ValueError, match="at least one clip"):
        frechet_distance(FeatureStatistics(3), FeatureStatistics(3))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(FeatureStatistics.of(normal(9, 3, 0)), FeatureStatistics.of(normal(9, 4, 0)))


def test_bootstrap_interval_is_as_wide_as_repeated_samples() -> None:
    """The spread of one bootstrap is that of fresh samples of the same size, within a factor."""
    scale = torch.linspace(1, 3, 6)
    fresh = torch.tensor([distance_of(normal(120, 6, s) * scale, normal(120, 6, 50 + s)) for s in range(40)])
    first_ND, second_ND = normal(120, 6, 0) * scale, normal(120, 6, 50)
    estimate = with_bootstrap(distance_of(first_ND, second_ND), first_ND, second_ND, count=60)
    assert estimate.value == distance_of(first_ND, second_ND)
    assert estimate.low < estimate.value < estimate.high
    assert 0.6 < estimate.std / float(fresh.std()) < 1.7


def test_both_sides_are_resampled_each_by_itself() -> None:
    """Draws of one key would pick the same clips on both sides: equal sets would then be 0 apart in every draw."""
    features_ND = normal(60, 4, 0)
    estimate = with_bootstrap(0.0, features_ND, features_ND, count=20)
    assert estimate.std > 0.01 and estimate.low < 0 < estimate.high


def test_extrapolation_is_a_line_through_all_halves_and_thirds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []

    def biased(first_ND: torch.Tensor, second_ND: torch.Tensor) -> float:
        assert torch.equal(first_ND, second_ND - 1000), "the same clips of both sets"
        seen.append(first_ND[:, 0].tolist())
        return 5 + 100 / len(first_ND)

    monkeypatch.setattr("magi.evaluation.metrics.frechet.distance_of", biased)
    numbers_N1 = torch.arange(60.0)[:, None]
    assert extrapolated_distance(numbers_N1, numbers_N1 + 1000) == pytest.approx(5)
    assert [len(part) for part in seen] == [60, 30, 30, 20, 20, 20]
    for parts in (seen[:1], seen[1:3], seen[3:]):
        assert sorted(number for part in parts for number in part) == list(range(60)), "each clip once"
    assert seen[0] != sorted(seen[0]), "in random order: clips of one video are neighbours"
