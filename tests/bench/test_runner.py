"""No parity, no number; sides take turns; one failing case stops nobody; verdicts are what the goals say."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magi.bench import apart
from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial
from magi.bench.runner import run_case, run_suite, with_missing
from magi.bench.suite import chosen

CPU = Setting(torch.device("cpu"), rounds=3)


def case(prepare: Callable[[Setting], Trial], **changes: Any) -> Case:
    arguments: dict[str, Any] = {
        "name": "a.case", "kind": "cpu", "measures": "something", "unit": "step", "prepare": prepare,
    }  # fmt: skip
    return Case(**arguments | changes)


def trial(difference: float = 0.0, **changes: Any) -> Trial:
    contenders = (Contender(OURS, lambda: None), Contender("plain", lambda: time.sleep(0.002)))
    arguments: dict[str, Any] = {"contenders": contenders, "check": lambda: Parity("result", difference, 1e-5)}
    return Trial(**arguments | changes)


@pytest.mark.parametrize("difference", [2e-5, math.nan, math.inf])
def test_without_parity_there_is_no_number(difference: float) -> None:
    def run() -> None:
        raise AssertionError("timed without parity")

    goals = (Goal("x plain", 1, 2),)
    record = run_case(case(lambda _: trial(difference, contenders=(Contender(OURS, run),)), goals=goals), CPU)
    assert record["status"] == "no parity"
    assert "result" in record["reason"]
    assert record["metrics"] == {} and "contenders" not in record
    assert record["goals"][0]["verdict"] == "not measured"


def test_sides_take_turns_after_their_warm_ups() -> None:
    calls: list[str] = []

    def side(name: str, **settings: Any) -> Contender:
        return Contender(name, lambda: calls.append(name), **settings)

    little = side("plain", warm=lambda: calls.append("a little"))
    sides = (side(OURS, warmups=2, calls=2), little, side("slow", warmups=0, sparse=1))
    record = run_case(case(lambda _: trial(contenders=sides, units=2.0)), CPU)
    once = [OURS, OURS, "plain"]
    assert calls == [OURS, OURS, "a little", *once, "slow", *once, *once]
    assert {name: len(times["rounds"]) for name, times in record["contenders"].items()} == {
        OURS: 3, "plain": 3, "slow": 1,
    }  # fmt: skip


def test_times_are_for_a_unit_and_ratios_over_ours() -> None:
    sides = (
        Contender(OURS, lambda: time.sleep(0.01), calls=2),
        Contender("plain", lambda: time.sleep(0.04)),
    )
    goals = (Goal("x plain", 2, 3), Goal("x plain", 2, 300), Goal("seconds", 1, 1e-9, smaller=True), Goal("no", 1, 2))
    made = trial(contenders=sides, units=10.0, metrics=lambda seconds: {"rate": 1 / seconds["plain"]})
    record = run_case(case(lambda _: made, goals=goals), CPU)
    assert 0.001 <= record["metrics"]["seconds"] < 0.01
    assert 0.004 <= 1 / record["metrics"]["rate"] < 0.04
    assert record["metrics"]["x plain"] > 1
    assert [goal["verdict"] for goal in record["goals"]][3] == "not measured"
    assert record["goals"][2]["verdict"] == "must"


def test_verdicts() -> None:
    more, less = Goal("x", 2, 4), Goal("ms", 10, 5, smaller=True)
    assert [more.verdict(value) for value in (1, 2, 4, math.nan)] == ["below", "must", "reached", "below"]
    assert [less.verdict(value) for value in (11, 10, 5, math.nan)] == ["below", "must", "reached", "below"]


def test_a_failing_case_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(setting: Setting) -> Trial:
        raise RuntimeError("no such kernel\non this device")

    closed: list[int] = []
    out, saved = tmp_path / "deep" / "out.json", []

    def good(setting: Setting) -> Trial:
        saved.append(json.loads(out.read_text()))
        return trial(close=lambda: closed.append(1))

    cases = [case(broken), case(good, name="b"), case(good, name="c", kind="cuda"), case(good, name="d", minutes=99)]
    report = run_suite(cases, CPU, out, minutes=50)
    assert [record["status"] for record in report["cases"]] == ["error", "measured", "not measured", "not measured"]
    assert "RuntimeError: no such kernel on this device" in report["cases"][0]["reason"]
    assert report["cases"][2]["reason"] == "needs a GPU"
    assert "minutes were left" in report["cases"][3]["reason"]
    assert closed == [1]
    assert [record["status"] for record in saved[0]["cases"]] == ["error"], "written after every case"
    assert json.loads(out.read_text()) == report
    assert {"torch", "load", "threads", "processor"} <= set(report["machine"])


def test_a_case_apart_is_measured_in_another_process() -> None:
    """The real suite's, at tiny shapes: what comes back is what its own process measured."""
    (kernel,) = chosen(["head.kernel"])
    assert kernel.apart
    report = run_suite([kernel], Setting(torch.device("cpu"), smoke=True, rounds=1))
    (record,) = report["cases"]
    assert (record["name"], record["status"]) == ("head.kernel", "measured"), record.get("reason")
    assert set(record["contenders"]) == {OURS, "eager"}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, sys; print('unspecified launch failure', file=sys.stderr, flush=True); os.abort()", "launch fail"),
        ("import time; time.sleep(60)", "did not end within"),
        ("pass", "ended with 0: no message"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_its_own_case_alone(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr(apart, "START_SECONDS", 2 if "sleep" in program else 60)
    goals = (Goal("x plain", 1, 2),)
    report = run_suite([case(lambda _: trial(), apart=True, minutes=0, goals=goals), case(lambda _: trial())], CPU)
    dead, alive = report["cases"]
    assert dead["status"] == "error" and reason in dead["reason"] and dead["goals"][0]["verdict"] == "not measured"
    assert alive["status"] == "measured"


def test_a_report_lists_every_case_of_its_device() -> None:
    cases = [
        case(lambda _: trial(), name=name, kind=kind) for name, kind in (("a", "cpu"), ("b", "cpu"), ("g", "cuda"))
    ]
    report = run_suite(cases[1:2], CPU)
    report["cases"].append(report["cases"][0] | {"name": "gone"})
    listed = with_missing(report, cases)["cases"]
    assert [record["name"] for record in listed] == ["a", "b", "gone"], "in their order, and what the suite has no more"
    assert (listed[0]["status"], listed[0]["reason"]) == ("not measured", "not in this run")
    assert listed[1]["status"] == "measured"


def test_a_report_is_held_to_the_goals_and_cases_of_now() -> None:
    """Numbers stay; words and goals of what has none, and goals of what has, are those of the suite; the rest goes."""
    report = run_suite([case(lambda _: trial(), name="a", goals=(Goal("x plain", 1, 2),))], CPU)
    report["cases"] += [
        {"name": name, "kind": "cpu", "measures": "as it was", "unit": "step", "status": "error", "reason": "why",
         "metrics": {}, "goals": [], "traceback": "here"} for name in ("b", "gone")
    ]  # fmt: skip
    before = report["cases"][0]
    goals = (Goal("x plain", 1e9, 2e9), Goal("x other", 1, 2))
    cases = [case(lambda _: trial(), name=name, goals=goals) for name in ("a", "b")]
    first, second = with_missing(report, cases)["cases"]
    assert first | {"goals": []} == before | {"goals": []}
    assert [(goal["metric"], goal["must"], goal["verdict"]) for goal in first["goals"]] == [
        ("x plain", 1e9, "below"), ("x other", 1, "not measured"),
    ]  # fmt: skip
    assert first["goals"][0]["value"] == before["metrics"]["x plain"]
    assert (second["status"], second["reason"], second["traceback"]) == ("error", "why", "here")
    assert second["measures"] != "as it was" and [goal["value"] for goal in second["goals"]] == [None, None]


def test_smoke_runs_cases_of_any_device_and_gives_no_verdict() -> None:
    goals = (Goal("x plain", 1, 2),)
    setting = Setting(torch.device("cpu"), smoke=True, rounds=1)
    report = run_suite([case(lambda _: trial(), kind="cuda", goals=goals)], setting)
    assert report["cases"][0]["status"] == "measured"
    assert report["cases"][0]["goals"][0]["verdict"] == "smoke"
