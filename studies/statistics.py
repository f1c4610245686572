"""From numbers a seed to a verdict: supported, contradicted or inconclusive.

A claim is a statement that an effect lies in a range: below zero ("lower than"), or between two margins ("about
equal"). The effect comes with a 95% interval: Student's over the paired differences of seeds, or, where there is one
seed, a bootstrap over clips. An interval within the range supports the statement, one wholly outside contradicts it,
and anything else is inconclusive. "About equal or better" is not contradicted by being better; the verdict then says
that it is not equal. Ranges are fixed in the studies, before their results. Knows no models, videos and files.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from magi.errors import NumericsError
from magi.evaluation.metrics.bootstrap import student_interval

Verdict = Literal["supported", "contradicted", "inconclusive"]
LEVEL = 0.95
TAIL_DRAWS = 10
"""Resamples that lie beyond each end of a bootstrap interval: with fewer its ends are the extremes of the draws."""


@dataclass(frozen=True)
class Effect:
    """A number, its interval, its value of each seed, and the method of the interval."""

    value: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    method: str


@dataclass(frozen=True)
class Statement:
    """``text`` says that ``quantity`` lies between ``low`` and ``high``; None is no bound.

    With ``lower_is_better`` a quantity below ``low`` is better than the statement says, and does not contradict it.
    """

    text: str
    quantity: str
    low: float | None
    high: float | None
    lower_is_better: bool = False


@dataclass(frozen=True)
class Judged:
    """A statement, the effect that was found, what follows, and on which side a supported range was missed."""

    statement: Statement
    effect: Effect
    verdict: Verdict
    missed: str = ""


def effect_over_seeds(values: Sequence[float], level: float = LEVEL, of: str = "seeds") -> Effect:
    """Mean of ``values``, one a seed (or ``of`` what), with Student's interval; ``ValueError`` for fewer than two."""
    found = student_interval(values, level)
    method = f"{level:.4g} t interval over {len(values)} {of}"
    return Effect(found.value, found.low, found.high, tuple(values), method)


def effect_over_clips(
    statistic: Callable[[Tensor], float], clips: int, level: float = LEVEL, resamples: int | None = None, seed: int = 0
) -> Effect:
    """``statistic(picked_N)`` of all clips, with a bootstrap interval over which clips are picked.

    All variants must be indexed with the same ``picked_N``, so that the comparison is paired. Drawing with replacement
    adds bias to a Frechet distance, so the quantiles are taken less their mean and put around the value.
    """
    value = statistic(torch.arange(clips))
    resamples = resamples or math.ceil(2 * TAIL_DRAWS / (1 - level))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.tensor(
        [statistic(torch.randint(clips, (clips,), generator=generator)) for _ in range(resamples)], dtype=torch.float64
    )
    low, high = (float(torch.quantile(drawn - drawn.mean(), share)) for share in ((1 - level) / 2, (1 + level) / 2))
    return Effect(value, value + low, value + high, (value,), f"{level:.4g} bootstrap over {clips} clips of one seed")


def effect_of(statistics: Sequence[Callable[[Tensor], float]], clips: int, level: float = LEVEL) -> Effect:
    """Over seeds where there are several (a statistic each), else over the clips of the one seed."""
    if not statistics:
        raise ValueError("an effect needs at least one seed")
    if len(statistics) > 1:
        return effect_over_seeds([statistic(torch.arange(clips)) for statistic in statistics], level)
    return effect_over_clips(statistics[0], clips, level)


def judge(statement: Statement, effect: Effect) -> Judged:
    """The verdict on one statement; ``NumericsError`` where the effect is not a number."""
    if not all(map(math.isfinite, (effect.value, effect.low, effect.high))):
        raise NumericsError(f"{statement.quantity} is not a finite number ({effect.value}); look at the runs' samples")
    low = -math.inf if statement.low is None else statement.low
    high = math.inf if statement.high is None else statement.high
    if low < effect.low and effect.high < high:
        return Judged(statement, effect, "supported")
    if statement.lower_is_better and effect.high < high:
        side = "better than equal" if effect.high <= low else "equal or better"
        return Judged(statement, effect, "supported", side)
    if effect.high <= low or high <= effect.low:
        return Judged(statement, effect, "contradicted")
    return Judged(statement, effect, "inconclusive")


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim of several parts: supported if all are, contradicted if one is; ``ValueError`` for no part."""
    found = _parts(verdicts)
    return "contradicted" if "contradicted" in found else "inconclusive" if "inconclusive" in found else "supported"


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim that one of several holds: contradicted only if all are. Widen their intervals for their number."""
    found = _parts(verdicts)
    return "supported" if "supported" in found else "inconclusive" if "inconclusive" in found else "contradicted"


def _parts(verdicts: Iterable[Verdict]) -> set[Verdict]:
    if not (found := set(verdicts)):
        raise ValueError("a claim needs at least one part")
    return found


def widened(comparisons: int, level: float = LEVEL) -> float:
    """Bonferroni's level of each of several intervals that hold together at ``level``."""
    return 1 - (1 - level) / comparisons


def relative(value: float, reference: float) -> float:
    """How much larger than ``reference``, as a share of it."""
    return (value - reference) / reference
