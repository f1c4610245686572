"""No parity, no number; sides take turns; one failing case stops nobody; verdicts are what the goals say."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from magi.bench import runner
from magi.bench.case import OURS, Candidate, Case, Goal, Parity, PreparedCase, Setting
from magi.bench.runner import run_case, run_suite

CPU = Setting(torch.device("cpu"), rounds=3)


def case(prepare: Callable[[Setting], PreparedCase], **changes: Any) -> Case:
    arguments: dict[str, Any] = {
        "name": "a.case", "kind": "cpu", "description": "something", "unit": "step", "prepare": prepare,
    }  # fmt: skip
    return Case(**arguments | changes)


def prepared_case(difference: float = 0.0, **changes: Any) -> PreparedCase:
    candidates = (Candidate(OURS, lambda: None), Candidate("plain", lambda: time.sleep(0.002)))
    arguments: dict[str, Any] = {"candidates": candidates, "check": lambda: (Parity("result", difference, 1e-5),)}
    return PreparedCase(**arguments | changes)


@pytest.mark.parametrize("difference", [2e-5, math.nan, math.inf])
def test_without_parity_there_is_no_number(difference: float) -> None:
    def run() -> None:
        raise AssertionError("timed without parity")

    goals = (Goal("x plain", 1, 2),)
    record = run_case(case(lambda _: prepared_case(difference, candidates=(Candidate(OURS, run),)), goals=goals), CPU)
    assert record["status"] == "no parity"
    assert "result" in record["reason"]
    assert record["metrics"] == {} and "candidates" not in record
    assert record["goals"][0]["verdict"] == "not measured"


def test_sides_take_turns_after_their_warm_ups() -> None:
    calls: list[str] = []

    def side(name: str, **settings: Any) -> Candidate:
        return Candidate(name, lambda: calls.append(name), **settings)

    sides = (side(OURS, warmups=2, calls=2), side("plain", before=lambda: calls.append("before")))
    record = run_case(case(lambda _: prepared_case(candidates=sides, units=2.0)), CPU)
    plain = ["before", "plain"]
    assert calls == [OURS, OURS, *plain, *([OURS, OURS, *plain] * 3)]
    assert {name: len(times["rounds"]) for name, times in record["candidates"].items()} == {OURS: 3, "plain": 3}


def test_a_smoke_run_calls_each_side_once_a_round() -> None:
    """It says that a case works; more calls would only take longer."""
    calls: list[int] = []
    side = Candidate(OURS, lambda: calls.append(0), warmups=3, calls=5)
    record = run_case(case(lambda _: prepared_case(candidates=(side,))), Setting(torch.device("cpu"), True, 2))
    assert len(calls) == 1 + 2 and len(record["candidates"][OURS]["rounds"]) == 2


def test_times_are_for_a_unit_and_ratios_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that nothing but the sides moves."""
    now = [0.0]

    def taking(seconds: float) -> Callable[[], None]:
        return lambda: now.append(now[-1] + seconds)

    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: now[-1], monotonic=time.monotonic))
    sides = (Candidate(OURS, taking(0.01), calls=2), Candidate("plain", taking(0.04)))
    goals = (Goal("x plain", 2, 3), Goal("x plain", 2, 300), Goal("seconds", 1, 1e-9, smaller=True), Goal("no", 1, 2))
    made = prepared_case(candidates=sides, units=10.0, metrics=lambda seconds: {"rate": 1 / seconds["plain"]})
    record = run_case(case(lambda _: made, goals=goals), CPU)
    assert record["metrics"] == pytest.approx({"seconds": 0.001, "x plain": 4, "rate": 250})
    assert [goal["verdict"] for goal in record["goals"]][3] == "not measured"
    assert record["goals"][2]["verdict"] == "threshold"


def test_verdicts() -> None:
    more, less = Goal("x", 2, 4), Goal("ms", 10, 5, smaller=True)
    assert [more.verdict(value) for value in (1, 2, 4, math.nan)] == ["missed", "threshold", "target", "missed"]
    assert [less.verdict(value) for value in (11, 10, 5, math.nan)] == ["missed", "threshold", "target", "missed"]


def test_a_failing_case_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(setting: Setting) -> PreparedCase:
        raise RuntimeError("no such kernel\non this device")

    out, saved = tmp_path / "deep" / "out.json", []

    def good(setting: Setting) -> PreparedCase:
        saved.append(json.loads(out.read_text()))
        return prepared_case()

    cases = [case(broken), case(good, name="b"), case(good, name="c", kind="cuda"), case(good, name="d", minutes=99)]
    report = run_suite(cases, CPU, out, minutes=50)
    assert [record["status"] for record in report["cases"]] == ["error", "measured", "not measured", "not measured"]
    assert "RuntimeError: no such kernel on this device" in report["cases"][0]["reason"]
    assert report["cases"][2]["reason"] == "needs a GPU"
    assert "takes about 99 minutes, " in report["cases"][3]["reason"]
    assert [record["status"] for record in saved[0]["cases"]] == ["error"], "written after every case"
    assert json.loads(out.read_text()) == report
    assert {"torch", "load", "threads", "processor"} <= set(report["machine"])


def test_a_ratio_is_of_times_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the slowest over the fastest: both drift, the baseline is twice as slow in every round."""
    seconds = {OURS: iter([9.0, 1.0, 3.0, 2.0]), "plain": iter([9.0, 2.0, 6.0, 4.0])}
    monkeypatch.setattr(runner, "_cpu_seconds", lambda candidate, calls: next(seconds[candidate.name]))
    record = run_case(case(lambda _: prepared_case()), CPU)
    assert record["metrics"] == {"seconds": 2.0, "x plain": 2.0}
    assert record["candidates"][OURS]["warmup_seconds"] < 8, "of the clock, not of the warm-up"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_an_error(value: float, tmp_path: Path) -> None:
    broken = case(lambda _: prepared_case(metrics=lambda seconds: {"MFU": value}))
    report = run_suite([broken, case(lambda _: prepared_case())], CPU, tmp_path / "out.json")
    assert [record["status"] for record in report["cases"]] == ["error", "measured"]
    assert report["cases"][0]["reason"] == "ValueError: not finite: MFU"


def test_smoke_runs_cases_of_any_device_and_gives_no_verdict() -> None:
    goals = (Goal("x plain", 1, 2),)
    setting = Setting(torch.device("cpu"), smoke=True, rounds=1)
    report = run_suite([case(lambda _: prepared_case(), kind="cuda", goals=goals)], setting)
    assert report["cases"][0]["status"] == "measured"
    assert report["cases"][0]["goals"][0]["verdict"] == "smoke"
