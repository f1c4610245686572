"""Effects and verdicts: intervals worked by hand, and which interval proves what."""

import math

import pytest
import torch

from magi.errors import NumericsError
from studies.statistics import (
    Effect,
    Statement,
    all_of,
    any_of,
    effect_of,
    effect_over_clips,
    effect_over_seeds,
    judge,
    relative,
    widened,
)

LOWER = Statement("lower", "effect", None, 0.0)
EQUAL = Statement("about equal", "effect", -0.1, 0.1)
OR_BETTER = Statement("about equal or better", "effect", -0.1, 0.1, lower_is_better=True)


def effect(low: float, high: float) -> Effect:
    return Effect((low + high) / 2, low, high, (0.0,), "given")


def test_interval_over_seeds_worked_by_hand() -> None:
    found = effect_over_seeds([1.0, 2.0, 3.0])  # mean 2, deviation 1, 4.3027 / sqrt(3) = 2.4842
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -0.4842, 4.4842), abs=1e-3)
    assert found.per_seed == (1.0, 2.0, 3.0) and "3 seeds" in found.method
    with pytest.raises(ValueError, match="at least two"):
        effect_over_seeds([1.0])


def test_bootstrap_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    found = effect_over_clips(lambda picked_N: float(values[picked_N].mean()), 400, resamples=2000)
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.1)


def test_bootstrap_is_centred_on_the_value_and_not_on_the_biased_resamples() -> None:
    """A resample repeats clips, so the number of different ones falls to 63%: the value must not."""
    found = effect_over_clips(lambda picked_N: len(picked_N.unique()) / 100, 100)
    assert found.low < 1.0 < found.high and found.high - found.low < 0.2


def test_bootstrap_is_wider_at_a_wider_level_and_repeats_itself() -> None:
    values = torch.arange(50).double()

    def mean(picked_N: torch.Tensor) -> float:
        return float(values[picked_N].mean())

    narrow, wide = effect_over_clips(mean, 50), effect_over_clips(mean, 50, level=0.999)
    assert wide.low < narrow.low and narrow.high < wide.high
    assert narrow == effect_over_clips(mean, 50)


def test_effect_is_over_seeds_where_there_are_several_else_over_clips() -> None:
    constants = [lambda picked_N, value=value: value for value in (1.0, 3.0)]
    assert "2 seeds" in effect_of(constants, 10).method and effect_of(constants, 10).value == 2.0
    assert "10 clips of one seed" in effect_of(constants[:1], 10).method
    with pytest.raises(ValueError, match="at least one seed"):
        effect_of([], 10)


@pytest.mark.parametrize(
    ("statement", "low", "high", "verdict"),
    [
        (LOWER, -0.3, -0.1, "supported"),
        (LOWER, -0.3, 0.1, "inconclusive"),
        (LOWER, 0.0, 0.2, "contradicted"),
        (LOWER, 0.1, 0.2, "contradicted"),
        (LOWER, -0.2, 0.0, "inconclusive"),
        (EQUAL, -0.05, 0.05, "supported"),
        (EQUAL, -0.05, 0.15, "inconclusive"),
        (EQUAL, -0.5, 0.5, "inconclusive"),
        (EQUAL, 0.11, 0.15, "contradicted"),
        (EQUAL, -0.2, -0.1, "contradicted"),
        (OR_BETTER, -0.05, 0.05, "supported"),
        (OR_BETTER, -0.2, -0.1, "supported"),
        (OR_BETTER, -0.2, 0.05, "supported"),
        (OR_BETTER, -0.2, 0.15, "inconclusive"),
        (OR_BETTER, 0.1, 0.2, "contradicted"),
    ],
)
def test_verdict_follows_from_where_the_interval_lies(
    statement: Statement, low: float, high: float, verdict: str
) -> None:
    assert judge(statement, effect(low, high)).verdict == verdict


def test_about_equal_is_not_contradicted_by_better_and_says_so() -> None:
    assert [judge(OR_BETTER, effect(low, low + 0.06)).missed for low in (-0.03, -0.13, -0.2)] == [
        "",
        "equal or better",
        "better than equal",
    ]
    assert judge(EQUAL, effect(-0.2, -0.14)).missed == ""


def test_what_is_not_a_number_is_no_verdict() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericsError, match="not a finite number"):
            judge(LOWER, Effect(bad, bad, bad, (bad,), "given"))


def test_verdicts_of_several_parts() -> None:
    assert all_of(["supported", "supported"]) == "supported"
    assert all_of(["supported", "inconclusive"]) == "inconclusive"
    assert all_of(["inconclusive", "contradicted", "supported"]) == "contradicted"
    assert any_of(["contradicted", "inconclusive", "supported"]) == "supported"
    assert any_of(["contradicted", "inconclusive"]) == "inconclusive"
    assert any_of(["contradicted", "contradicted"]) == "contradicted"
    for of in (all_of, any_of):
        with pytest.raises(ValueError, match="at least one part"):
            of([])


def test_widened_and_relative() -> None:
    assert widened(5) == pytest.approx(0.99) and widened(1) == pytest.approx(0.95)
    assert relative(77.0, 100.0) == pytest.approx(-0.23)
