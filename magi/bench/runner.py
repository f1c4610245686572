"""Measures cases: check first, then all contenders in turn, round after round; medians, spreads, verdicts, JSON.

Contenders are interleaved (A B A B ...), because clocks and neighbours drift. A GPU is timed by events on its stream, a
CPU by the performance counter. A case that fails is recorded and the next one runs. It knows no case by name.
"""

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from magi.bench.apart import measured_apart
from magi.bench.case import OURS, Case, Contender, Goal, Setting, Trial
from magi.bench.machine import gpu_clocks, machine_facts

FORMAT = 1
Record = dict[str, Any]
Work = Callable[[], object]


def run_suite(
    cases: Sequence[Case],
    setting: Setting,
    out: Path | None = None,
    minutes: float = float("inf"),
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Measure ``cases`` one after another; the report is written to ``out`` after each of them.

    Cases whose goals are for another device are recorded as not measured, and so are those that would not end within
    ``minutes``.
    """
    began = time.monotonic()
    report: Record = {
        "format": FORMAT,
        "device": setting.device.type,
        "smoke": setting.smoke,
        "rounds": setting.rounds,
        "machine": machine_facts(setting.device),
        "cases": [],
    }
    for case in cases:
        left = minutes - (time.monotonic() - began) / 60
        if case.kind != setting.device.type and not setting.smoke:
            record = _not_measured(case, "needs a GPU" if case.kind == "cuda" else "a CPU case")
        elif case.minutes > left:
            record = _not_measured(
                case, f"{left:.1f} of {minutes:g} minutes were left, it takes about {case.minutes:g}"
            )
        else:
            say(f"{case.name}: {case.measures}")
            record = _run_apart(case, setting) if case.apart else run_case(case, setting)
            say(f"{case.name}: {record['status']} in {record['seconds']:.1f} s {record.get('reason', '')}")
        report["cases"].append(record)
        if out is not None:
            write_report(report, out)
    return report


def write_report(report: Record, out: Path) -> None:
    """As JSON, in a folder that need not exist."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_case(case: Case, setting: Setting) -> Record:
    """Measure one case; an error of it becomes its record."""
    began = time.monotonic()
    trial: Trial | None = None
    try:
        trial = case.prepare(setting)
        record = _measure(case, trial, setting)
    except Exception as error:
        record = _not_measured(case, reason_of(error, 400), "error")
        record["traceback"] = traceback.format_exc()[-4000:]
    finally:
        if trial is not None:
            trial.close()
    del trial
    free_memory()
    return record | {"seconds": round(time.monotonic() - began, 3)}


def free_memory() -> None:
    """Give back what an ended case, a check or a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason_of(error: Exception, letters: int = 160) -> str:
    """What kind of error, and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:letters]}"


def those_that_run(works: Mapping[str, Callable[[], Work]]) -> tuple[dict[str, Work], dict[str, str]]:
    """Make and run each once; those that fail are left out, with the reason. Ours may not fail."""
    good: dict[str, Work] = {}
    failed: dict[str, str] = {}
    for name, make in works.items():
        try:
            work = make()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            good[name] = work
        except Exception as error:
            if name == OURS:
                raise
            failed[name] = reason_of(error)
    return good, failed


def _run_apart(case: Case, setting: Setting) -> Record:
    began = time.monotonic()
    try:
        return measured_apart(case, setting)
    except RuntimeError as error:
        return _not_measured(case, str(error), "error") | {"seconds": round(time.monotonic() - began, 3)}


def with_missing(report: Record, cases: Sequence[Case]) -> Record:
    """The report with every case of ``cases`` for its device, in their order; those it lacks are not measured.

    Figures are held to the goals that ``cases`` have now, so a goal that came later shows as not measured. What
    ``cases`` lack stays if it has a number.
    """
    found = {record["name"]: record for record in report["cases"]}
    listed = [
        _as_now(case, found.pop(case.name, None))
        for case in cases
        if case.name in found or case.kind == report["device"]
    ]
    return {**report, "cases": [*listed, *(record for record in found.values() if record["status"] == "measured")]}


def _as_now(case: Case, record: Record | None) -> Record:
    """A record with the goals of the case as it is now, and its words if it has no number."""
    if record is None:
        return _not_measured(case, "not in this run")
    if record["status"] != "measured":
        return {**record, **_not_measured(case, record["reason"], record["status"])}
    return {**record, "goals": [_verdict(goal, record["metrics"]) for goal in case.goals]}


def _not_measured(case: Case, reason: str, status: str = "not measured") -> Record:
    goals = [asdict(goal) | {"value": None, "verdict": "not measured"} for goal in case.goals]
    return {**_named(case), "status": status, "reason": reason, "metrics": {}, "goals": goals}


def _named(case: Case) -> Record:
    return {"name": case.name, "kind": case.kind, "measures": case.measures, "unit": case.unit}


def _measure(case: Case, trial: Trial, setting: Setting) -> Record:
    checked = trial.check()
    parities = checked if isinstance(checked, tuple) else (checked,)
    found: Record = {"parity": [asdict(parity) | {"holds": parity.holds} for parity in parities]}
    found["shapes"] = {name: _plain(value) for name, value in trial.shapes.items()}
    failed = [parity for parity in parities if not parity.holds]
    if failed:
        reason = "; ".join(f"{p.what}: {p.difference:.3g} is above {p.allowed:.3g}" for p in failed)
        return _not_measured(case, f"no parity: {reason}", "no parity") | found
    found["contenders"] = _time_all(trial, setting)
    medians = {name: times["median_seconds"] for name, times in found["contenders"].items()}
    metrics = {"seconds": medians[OURS]} if OURS in medians else {}
    metrics |= {f"x {name}": _ratio(found["contenders"], name) for name in medians if name != OURS and OURS in medians}
    metrics |= {name: float(value) for name, value in trial.metrics(medians).items()}
    if setting.device.type == "cuda":
        found["clocks"] = gpu_clocks()
    goals = [_verdict(goal, metrics) for goal in case.goals]
    if setting.smoke:  # says that the case works, not how fast
        goals = [goal | {"verdict": "smoke"} for goal in goals]
    return {**_named(case), "status": "measured", **found, "metrics": metrics, "goals": goals}


def _verdict(goal: Goal, metrics: dict[str, float]) -> Record:
    value = metrics.get(goal.metric)
    return asdict(goal) | {"value": value, "verdict": "not measured" if value is None else goal.verdict(value)}


def _ratio(contenders: Record, name: str) -> float:
    """Baseline over ours: the median of the ratios within a round, so that a drift of the machine cancels."""
    pairs = zip(contenders[name]["rounds"], contenders[OURS]["rounds"], strict=False)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _time_all(trial: Trial, setting: Setting) -> Record:
    clock = _gpu_seconds if setting.device.type == "cuda" else _cpu_seconds
    cold: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for contender in trial.contenders:
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        warm = replace(contender, run=contender.warm or contender.run)
        for _ in range(contender.warmups):
            clock(warm, 1)
        cold[contender.name] = time.perf_counter() - began
        if setting.device.type == "cuda":
            peaks[contender.name] = torch.cuda.max_memory_allocated() / 1e9
    rounds: dict[str, list[float]] = {contender.name: [] for contender in trial.contenders}
    for number in range(setting.rounds):
        for contender in trial.contenders:
            if contender.sparse is None or number < contender.sparse:
                seconds = clock(contender, contender.calls) / (contender.calls * trial.units)
                rounds[contender.name].append(seconds)
    return {
        name: {
            "median_seconds": statistics.median(times),
            "lowest_seconds": min(times),
            "highest_seconds": max(times),
            "rounds": times,
            "warmup_seconds": cold[name],
            **({"peak_gigabytes": peaks[name]} if name in peaks else {}),
        }
        for name, times in rounds.items()
    }


def _cpu_seconds(contender: Contender, calls: int) -> float:
    contender.before()
    began = time.perf_counter()
    for _ in range(calls):
        contender.run()
    return time.perf_counter() - began


def _gpu_seconds(contender: Contender, calls: int) -> float:
    contender.before()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        contender.run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def time_calls(run: Callable[[], object], setting: Setting, calls: int = 10) -> float:
    """Median seconds a call, for a case that measures by itself."""
    clock = _gpu_seconds if setting.device.type == "cuda" else _cpu_seconds
    contender = Contender("", run)
    clock(contender, 2)
    return statistics.median(clock(contender, calls) / calls for _ in range(setting.rounds))


def _plain(value: object) -> object:
    """A value that JSON takes."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return str(value)
