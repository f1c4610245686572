"""How sure one can be of a number: bootstrap intervals over clips, Wilson's interval of a share, and Student's interval
over few repetitions.

Clips are resampled, not frames: frames of one clip are not independent. Intervals are 95% ones, and pure functions of
the values and of the key of their random numbers (magi.seeding). Knows no distances and no models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from magi.seeding import torch_generator

RESAMPLES = 1000
_LOW, _HIGH = 0.025, 0.975
_NORMAL = 1.959964  # the 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A number with a 95% interval and its standard deviation."""

    value: float
    low: float
    high: float
    std: float


@dataclass(frozen=True)
class Curve:
    """A mean at every frame with its 95% interval; None where it is not finite (a ratio to no change at all)."""

    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


def _curve(*values: Tensor) -> Curve:
    """Of a mean and both bounds, rounded."""
    return Curve(
        *(tuple(round(value, 6) if math.isfinite(value) else None for value in one_T.tolist()) for one_T in values)
    )


def resamples(clips: int, count: int, *key: int | str) -> Tensor:
    """Numbers_RB of ``count`` resamples of ``clips`` clips, drawn with replacement."""
    return torch.randint(clips, (count, clips), generator=torch_generator("bootstrap", *key))


def resampled_means(values_BT: Tensor, count: int, *key: int | str) -> Tensor:
    """Means_RT over the clips of ``count`` resamples, float64; ``ValueError`` for no clips or no frames."""
    if values_BT.ndim != 2 or not values_BT.numel():
        raise ValueError(f"expected values_BT of at least one clip and frame, got {tuple(values_BT.shape)}")
    clips = len(values_BT)
    picked_RB = resamples(clips, count, *key)
    # How often each clip is drawn, as a matrix: the means of all resamples are then one product.
    counts_RB = torch.zeros(count, clips, dtype=torch.float64)
    counts_RB.scatter_add_(1, picked_RB, torch.ones_like(counts_RB))
    return counts_RB @ values_BT.double() / clips


def interval_95(draws_RT: Tensor) -> tuple[Tensor, Tensor]:
    """The 2.5% and 97.5% quantiles over resamples."""
    low_T, high_T = torch.quantile(draws_RT.double(), torch.tensor([_LOW, _HIGH], dtype=torch.float64), dim=0)
    return low_T, high_T


def mean_curve(values_BT: Tensor, *key: int | str) -> Curve:
    """Mean over clips at every frame, with the interval of the means of resampled clips."""
    return _curve(values_BT.double().mean(0), *interval_95(resampled_means(values_BT, RESAMPLES, *key)))


def ratio_curve(generated_BT: Tensor, real_BT: Tensor, *key: int | str) -> Curve:
    """Mean of the generated values over mean of the real ones at every frame; clips of both are resampled."""
    frames = min(generated_BT.shape[1], real_BT.shape[1])
    generated_BT, real_BT = generated_BT[:, :frames].double(), real_BT[:, :frames].double()
    means_RT = resampled_means(generated_BT, RESAMPLES, *key, "generated")
    ratios_RT = means_RT / resampled_means(real_BT, RESAMPLES, *key, "real")
    return _curve(generated_BT.mean(0) / real_BT.mean(0), *interval_95(ratios_RT))


def share_interval(hits: int, count: int) -> Estimate:
    """The share ``hits`` of ``count`` with Wilson's interval (1927), which has a width at 0 and at 1, too.

    ``ValueError`` for no count, of which there is no share.
    """
    if not 0 <= hits <= count or not count:
        raise ValueError(f"no share of {hits} in {count}")
    share, z = hits / count, _NORMAL
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = (0.0 if not hits else middle - half), (1.0 if hits == count else middle + half)
    return Estimate(*(round(value, 4) for value in (share, low, high, math.sqrt(share * (1 - share) / count))))


def share_difference(one: Estimate, other: Estimate) -> Estimate:
    """``one`` less ``other``, shares of independent counts, with Newcombe's interval (1998, his method 10)."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(*(round(found, 4) for found in (value, low, high, math.hypot(one.std, other.std))))


def student_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of a few repetitions with Student's interval; ``ValueError`` for fewer than two: one has no spread."""
    if len(values) < 2:
        raise ValueError(f"an interval over repetitions needs at least two, got {len(values)}")
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile((1 + level) / 2, len(values) - 1) * std / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, std)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t with ``degrees`` of freedom; ``ValueError`` for no freedom or outside 0.5..1.

    With t = sqrt(degrees) tan(a) the density is proportional to cos(a)^(degrees - 1), which is integrated. With 4
    repetitions a 95% interval is 3.18 standard errors to each side, not the 1.96 of many.
    """
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no quantile {probability} of Student's t with {degrees} degrees of freedom")
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    steps = (density[1:] + density[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(steps)]) / (2 * steps.sum())
    return math.sqrt(degrees) * math.tan(float(np.interp(probability - 0.5, below, angles)))
