"""Measures cases: check first, then all candidates in turn, round after round; medians, verdicts, JSON.

Candidates are interleaved (A B A B ...), because clocks and background load drift. A GPU is timed by events on its
stream, a CPU by the performance counter. A case that fails is recorded and the next one runs. Knows no case by name.
"""

import gc
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from magi.bench.case import OURS, Candidate, Case, Goal, PreparedCase, Setting
from magi.bench.machine import gpu_clocks, machine_facts
from magi.bench.report import FORMAT
from magi.files import write_json

Record = dict[str, Any]
Work = Callable[[], object]


def run_suite(
    cases: Sequence[Case],
    setting: Setting,
    out: Path | None = None,
    minutes: float = float("inf"),
    on_progress: Callable[[str], None] = lambda line: None,
) -> Record:
    """Measure ``cases`` one after another; the report is written to ``out`` after each, so a time-out loses one case.

    Cases whose goals are for another device, or that would not end within ``minutes``, are recorded as not measured.
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
            record = _not_measured(case, f"takes about {case.minutes:g} minutes, {left:.1f} of {minutes:g} were left")
        else:
            on_progress(f"{case.name}: {case.description}")
            record = run_case(case, setting)
            on_progress(f"{case.name}: {record['status']} in {record['seconds']:.1f} s {record.get('reason', '')}")
        report["cases"].append(record)
        if out is not None:
            write_json(out, report)
    return report


def run_case(case: Case, setting: Setting) -> Record:
    """Measure one case; an error of it becomes its record."""
    began = time.monotonic()
    try:
        with torch.inference_mode(not case.trains):
            record = _measure(case, case.prepare(setting), setting)
    except Exception as error:
        record = _not_measured(case, reason_of(error, 400), "error")
        record["traceback"] = traceback.format_exc()[-4000:]
    if "torch._dynamo" in sys.modules:  # what was compiled would hold the case's tensors
        torch.compiler.reset()
    free_memory()
    return record | {"seconds": round(time.monotonic() - began, 3)}


def free_memory() -> None:
    """Release what a finished case, a check or a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason_of(error: Exception, letters: int = 160) -> str:
    """The kind of error and its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:letters]}"


def run_each_once(works: Mapping[str, Callable[[], Work]]) -> tuple[dict[str, Work], dict[str, str]]:
    """Build and run each once; baselines that fail are left out, with the reason. Ours may not fail."""
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
            free_memory()
    return good, failed


def _not_measured(case: Case, reason: str, status: str = "not measured") -> Record:
    goals = [asdict(goal) | {"value": None, "verdict": "not measured"} for goal in case.goals]
    return {**_head_of(case), "status": status, "reason": reason, "metrics": {}, "goals": goals}


def _head_of(case: Case) -> Record:
    names = {"name": case.name, "kind": case.kind, "description": case.description, "unit": case.unit}
    return names | {"date": datetime.now(UTC).date().isoformat()}


def _measure(case: Case, prepared: PreparedCase, setting: Setting) -> Record:
    parities = prepared.check()
    found: Record = {"parity": [asdict(parity) | {"holds": parity.holds} for parity in parities]}
    found["shapes"] = dict(prepared.shapes)
    if failed := [parity for parity in parities if not parity.holds]:
        reason = "; ".join(f"{p.what}: {p.difference:.3g} is above {p.allowed:.3g}" for p in failed)
        # Without the figures: a difference that is not a number is no JSON, and the reason has it.
        return _not_measured(case, f"no parity: {reason}", "no parity") | {"shapes": found["shapes"]}
    found["candidates"] = _time_all(prepared, setting)
    medians = {name: times["median_seconds"] for name, times in found["candidates"].items()}
    metrics = {"seconds": medians[OURS]} if OURS in medians else {}
    metrics |= {f"x {name}": _ratio(found["candidates"], name) for name in medians if name != OURS and OURS in medians}
    metrics |= {name: float(value) for name, value in prepared.metrics(medians).items()}
    if strange := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise ValueError(f"not finite: {', '.join(strange)}")
    if setting.device.type == "cuda":
        found["clocks"] = gpu_clocks()
    goals = [_with_verdict(goal, metrics) for goal in case.goals]
    if setting.smoke:  # says that the case works, not how fast
        goals = [goal | {"verdict": "smoke"} for goal in goals]
    return {**_head_of(case), "status": "measured", **found, "metrics": metrics, "goals": goals}


def _with_verdict(goal: Goal, metrics: dict[str, float]) -> Record:
    value = metrics.get(goal.metric)
    return asdict(goal) | {"value": value, "verdict": "not measured" if value is None else goal.verdict(value)}


def _ratio(candidates: Record, name: str) -> float:
    """Baseline over ours: the median of the ratios within a round, so that a drift of the machine cancels."""
    pairs = zip(candidates[name]["rounds"], candidates[OURS]["rounds"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _time_all(prepared: PreparedCase, setting: Setting) -> Record:
    """Times of each candidate: warm-ups first, then rounds in which they take turns."""
    clock = _clock(setting)
    facts = {candidate.name: _warm_up(candidate, setting) for candidate in prepared.candidates}
    rounds: dict[str, list[float]] = {candidate.name: [] for candidate in prepared.candidates}
    for _ in range(setting.rounds):
        for candidate in prepared.candidates:
            calls = _calls(candidate.calls, setting)
            rounds[candidate.name].append(clock(candidate, calls) / (calls * prepared.units))
    return {
        name: {
            "median_seconds": statistics.median(times),
            "lowest_seconds": min(times),
            "highest_seconds": max(times),
            "rounds": times,
            **facts[name],
        }
        for name, times in rounds.items()
    }


def _calls(calls: int, setting: Setting) -> int:
    """``calls``, or at most one in a smoke run, which times nothing."""
    return min(1, calls) if setting.smoke else calls


def _warm_up(candidate: Candidate, setting: Setting) -> dict[str, float]:
    """Seconds of the warm-ups and, on a GPU, the peak of memory in them."""
    on_gpu = setting.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(_calls(candidate.warmups, setting)):
        _clock(setting)(candidate, 1)
    facts = {"warmup_seconds": time.perf_counter() - began}
    return facts | ({"peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9} if on_gpu else {})


def _clock(setting: Setting) -> Callable[[Candidate, int], float]:
    return _gpu_seconds if setting.device.type == "cuda" else _cpu_seconds


def _cpu_seconds(candidate: Candidate, calls: int) -> float:
    candidate.before()
    began = time.perf_counter()
    for _ in range(calls):
        candidate.run()
    return time.perf_counter() - began


def _gpu_seconds(candidate: Candidate, calls: int) -> float:
    candidate.before()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        candidate.run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def time_calls(run: Work, setting: Setting, calls: int = 10) -> float:
    """Median seconds a call, for a case that measures by itself."""
    clock, candidate, calls = _clock(setting), Candidate("", run), _calls(calls, setting)
    clock(candidate, _calls(2, setting))
    return statistics.median(clock(candidate, calls) / calls for _ in range(setting.rounds))
