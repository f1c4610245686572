"""Frechet distance between two sets of feature vectors, in float64, and how sure one can be of it.

d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), S the covariance with divisor N - 1. The trace of the
root is computed by two formulas whose results must agree: from the eigenvalues of the symmetric product
S_1^(1/2) S_2 S_1^(1/2), and as the nuclear norm of the product of low-rank factors of S_1 and S_2, which is exact where
a covariance is singular. A general matrix square root is not used: on singular products it returns wrong and even
negative distances.

Statistics are merged from shards by Chan's update, so a mean far from zero costs no digits. Two samples of one
distribution have a distance above zero that falls as 1/N: the floor that a score must be read against. Knows neither
networks nor videos.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magi.errors import NumericsError
from magi.evaluation.metrics.bootstrap import Estimate, interval_95, resamples
from magi.seeding import torch_generator

_DISAGREEMENT = 1e-3  # of the two formulas, over the sum of the traces
_RANK_TOLERANCE = 1e-12  # eigenvalues below this share of the largest are rounding


@dataclass
class FeatureStatistics:
    """Count, mean and scatter of feature vectors, in float64; grows by ``update`` and ``merge``.

    A sample has a number, and each number is counted once: a second one is a ``ValueError``, so neither a duplicated
    shard nor a padded last batch can enter a score unnoticed.
    """

    dimension: int
    count: int = 0
    mean_D: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    scatter_DD: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    samples: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, features_ND: Tensor) -> "FeatureStatistics":
        """Statistics of one set, numbered from 0."""
        statistics = cls(features_ND.shape[-1])
        statistics.update(features_ND, range(len(features_ND)))
        return statistics

    @property
    def covariance_DD(self) -> Tensor:
        """Scatter over N - 1 (zero for a single vector)."""
        return self.scatter_DD / max(1, self.count - 1)

    def update(self, features_BD: Tensor, samples: Sequence[int]) -> None:
        """Add vectors with their sample numbers; ``ValueError`` for a number already counted or a wrong shape."""
        if features_BD.ndim != 2 or features_BD.shape[1] != self.dimension or len(features_BD) != len(samples):
            raise ValueError(
                f"expected features_BD of {len(samples)} samples x {self.dimension}, got {tuple(features_BD.shape)}"
            )
        if not len(samples):
            return
        features_BD = features_BD.detach().to("cpu", torch.float64)
        mean_D = features_BD.mean(0)
        centred_BD = features_BD - mean_D
        self._add(len(samples), mean_D, centred_BD.T @ centred_BD, list(samples))

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the samples of ``other``; ``ValueError`` where both hold one sample or dimensions differ."""
        if other.dimension != self.dimension:
            raise ValueError(f"statistics of {other.dimension} dimensions cannot join those of {self.dimension}")
        if other.count:
            self._add(other.count, other.mean_D, other.scatter_DD, list(other.samples))

    def _add(self, count: int, mean_D: Tensor, scatter_DD: Tensor, samples: list[int]) -> None:
        if len(set(samples)) < len(samples) or not self.samples.isdisjoint(samples):
            twice = sorted(n for n, times in Counter([*self.samples, *samples]).items() if times > 1)
            raise ValueError(f"samples are counted once, but {len(twice)} come twice (the first is {twice[0]})")
        total, shift_D = self.count + count, mean_D - self.mean_D
        self.scatter_DD = self.scatter_DD + scatter_DD + torch.outer(shift_D, shift_D) * (self.count * count / total)
        self.mean_D = self.mean_D + shift_D * (count / total)
        self.count = total
        self.samples |= set(samples)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics, *, allow_singular: bool = False) -> float:
    """Squared Frechet distance of the two Gaussians (Dowson and Landau 1982), in float64 and never clipped.

    ``ValueError`` for empty or unequal statistics, and for no more vectors than dimensions unless ``allow_singular``:
    the covariance is then singular and the value mostly bias. ``NumericsError`` where the two formulas disagree.
    """
    _check_sizes(first, second, allow_singular)
    shift_D = first.mean_D - second.mean_D
    traces = float(first.covariance_DD.trace() + second.covariance_DD.trace())
    product, factors, full_rank = _trace_of_root(first.covariance_DD, second.covariance_DD)
    _check_agreement(product, factors, traces)
    return float(shift_D @ shift_D) + traces - 2 * (product if full_rank else factors)


def _check_agreement(product: float, factors: float, traces: float) -> None:
    if abs(product - factors) > _DISAGREEMENT * max(traces, 1e-300):
        raise NumericsError(
            f"two formulas of the Frechet distance disagree: trace of the root {product:.6g} and {factors:.6g}; "
            "look for features that are constant or of very different scales"
        )


def _check_sizes(first: FeatureStatistics, second: FeatureStatistics, allow_singular: bool) -> None:
    if first.dimension != second.dimension:
        raise ValueError(f"features of {first.dimension} and {second.dimension} dimensions cannot be compared")
    fewest = min(first.count, second.count)
    if fewest < 1:
        raise ValueError("a Frechet distance needs at least one clip on each side")
    if fewest <= first.dimension and not allow_singular:
        raise ValueError(
            f"{fewest} clips are no more than the {first.dimension} feature dimensions: the covariance is singular and "
            f"the score mostly bias; use at least {first.dimension + 1} clips a side"
        )


def _trace_of_root(first_DD: Tensor, second_DD: Tensor) -> tuple[float, float, bool]:
    """Trace of (first second)^(1/2) from the product and from factors, and whether both matrices are regular."""
    values_D, vectors_DD = torch.linalg.eigh(first_DD)
    root_DD = (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T
    symmetric_DD = root_DD @ second_DD @ root_DD
    product = torch.linalg.eigvalsh((symmetric_DD + symmetric_DD.T) / 2).clamp_min(0).sqrt().sum()
    first_DR, second_DR = _factor(values_D, vectors_DD), _factor(*torch.linalg.eigh(second_DD))
    factors = torch.linalg.svdvals(first_DR.T @ second_DR).sum()
    full_rank = min(first_DR.shape[1], second_DR.shape[1]) == len(first_DD)
    return float(product), float(factors), full_rank


def _factor(values_D: Tensor, vectors_DD: Tensor) -> Tensor:
    """F_DR with F F^T the matrix of these eigenvalues, without the directions that are rounding."""
    kept_D = values_D > _RANK_TOLERANCE * values_D.max().clamp_min(1e-300)
    return vectors_DD[:, kept_D] * values_D[kept_D].sqrt()


def distance_of(first_ND: Tensor, second_ND: Tensor, *, allow_singular: bool = False) -> float:
    """Frechet distance of two sets of feature vectors held in memory; errors as ``frechet_distance``."""
    if allow_singular and 0 < max(len(first_ND), len(second_ND)) < first_ND.shape[1] == second_ND.shape[1]:
        return _distance_of_few(first_ND.double(), second_ND.double())
    return frechet_distance(
        FeatureStatistics.of(first_ND), FeatureStatistics.of(second_ND), allow_singular=allow_singular
    )


def _distance_of_few(first_ND: Tensor, second_ND: Tensor) -> float:
    """The same from fewer vectors than dimensions, without a matrix of dimensions x dimensions.

    With centred vectors A and B, tr (S_1 S_2)^(1/2) is the nuclear norm of A B^T over sqrt((N_1 - 1)(N_2 - 1)).
    """
    shift_D = first_ND.mean(0) - second_ND.mean(0)
    first_ND, second_ND = ((x - x.mean(0)) / max(1, len(x) - 1) ** 0.5 for x in (first_ND, second_ND))
    cross_NM = first_ND @ second_ND.T
    factors = float(torch.linalg.svdvals(cross_NM).sum())
    product = float(torch.linalg.eigvalsh(cross_NM @ cross_NM.T).clamp_min(0).sqrt().sum())
    traces = float(first_ND.square().sum() + second_ND.square().sum())
    _check_agreement(product, factors, traces)
    return float(shift_D @ shift_D) + traces - 2 * factors


def with_bootstrap(value: float, first_ND: Tensor, second_ND: Tensor, count: int = 100, seed: int = 0) -> Estimate:
    """``value``, the distance of the two sets, with a 95% interval over resampled clips of both.

    Drawing with replacement adds bias to a Frechet distance, so the resampled values give only the spread: their
    quantiles, less their mean, are put around the value.
    """
    pairs = zip(
        resamples(len(first_ND), count, seed, "first"), resamples(len(second_ND), count, seed, "second"), strict=True
    )
    drawn_R = torch.tensor(
        [distance_of(first_ND[one_N], second_ND[other_N], allow_singular=True) for one_N, other_N in pairs],
        dtype=torch.float64,
    )
    low, high = (float(bound) for bound in interval_95(drawn_R - drawn_R.mean()))
    return Estimate(value, value + low, value + high, float(drawn_R.std()))


def extrapolated_distance(first_ND: Tensor, second_ND: Tensor, seed: int = 0) -> float:
    """The distance at N -> infinity: a line in 1/N through the distances of random halves, thirds and all clips.

    ``ValueError`` where a third is no more than the dimensions. The bias of a Frechet distance is linear in 1/N.
    """
    count = min(len(first_ND), len(second_ND))
    order_N = torch.randperm(count, generator=torch_generator("extrapolation", seed))
    inverse, values = [], []
    for parts in (1, 2, 3):
        size = count // parts
        for part in range(parts):
            picked = order_N[part * size : (part + 1) * size]
            inverse.append(1 / size)
            values.append(distance_of(first_ND[picked], second_ND[picked]))
    design_P2 = torch.tensor([[1.0, x] for x in inverse], dtype=torch.float64)
    solution = torch.linalg.lstsq(design_P2, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(solution[0, 0])


def expected_floor(covariance_DD: Tensor, first_count: int, second_count: int) -> float:
    """Distance to expect between two samples of one Gaussian: (1/n1 + 1/n2) (1.5 tr S + 1/2 sum l_i l_j / (l_i + l_j)).

    The sum runs over i != j; exact to first order in 1/n.
    """
    values_D = torch.linalg.eigvalsh(covariance_DD).clamp_min(0)
    sums_DD = (values_D[:, None] + values_D).clamp_min(1e-300)
    pairs_DD = values_D[:, None] * values_D / sums_DD
    bias = 1.5 * values_D.sum() + 0.5 * (pairs_DD.sum() - pairs_DD.diagonal().sum())
    return float((1 / first_count + 1 / second_count) * bias)
