"""Every case works from end to end at tiny shapes, its parity holds, nothing is set up while it is timed; the command.

Cases of attention and training have a file of their own.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magi.bench import cpu, mar_baseline
from magi.bench.case import Candidate, Case, PreparedCase, Setting
from magi.bench.runner import run_case
from magi.bench.suite import CASES, choose
from magi.cli.main import main
from magi.sampling import denoise, history
from magi.sampling import prepared as prepared_sampler

ELSEWHERE = ("attn.", "train.", "opt.")
LONGEST_RUN = 8
"""Minutes of a run of the GPU cases (runs/gpu.sh), without its checks and what starts it."""
SMOKE = Setting(torch.device("cpu"), smoke=True, rounds=2)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.name.startswith(ELSEWHERE)], ids=lambda case: case.name
)
def test_a_case_works_and_its_parity_holds(case: Case) -> None:
    record = run_case(case, SMOKE)
    assert record["status"] == "measured", record.get("traceback", record.get("reason"))
    # The compiled baseline of a head is left out of a smoke test.
    left_out = {"x compiled"} if case.name.startswith("head.") else set()
    assert {goal["metric"] for goal in record["goals"]} <= set(record["metrics"]) | left_out
    assert record["metrics"] or record["candidates"]
    assert not record["shapes"].get("left out"), "a baseline that does not run"
    assert all(len(times["rounds"]) == 2 for times in record["candidates"].values()), "every side in every round"


def test_all_gpu_cases_fit_one_run() -> None:
    minutes = {case.name: case.minutes for case in CASES if case.kind == "cuda"}
    assert all(value > 0 for value in minutes.values())
    assert round(sum(minutes.values()), 6) <= LONGEST_RUN, minutes


def test_what_matters_most_is_measured_first() -> None:
    gpu = [case.name for case in CASES if case.kind == "cuda"]
    assert gpu[:3] == ["compile.time", "sample.b1", "train.ctf"], "what comes earlier builds kernels: none may"
    goals = {"sample.b64", "pass.b1", "head.step.16", "kv.scaling", "attn.temporal.ctf", "opt.step"}
    assert goals <= set(gpu) and all(case.goals for case in CASES if case.kind == "cuda")


SET_UPS = (
    (prepared_sampler, "PreparedSampler"),
    (mar_baseline, "MarStyleSampler"),
    (mar_baseline, "MarStyleHead"),
    (denoise, "Denoiser"),
    (history, "History"),
    (history, "FramePass"),
)


def set_up_while_timed(prepared: PreparedCase, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each candidate builds in its timed call, after its warm-ups."""
    for candidate in prepared.candidates:
        for _ in range(max(1, candidate.warmups)):
            candidate.before()
            candidate.run()
    seen: list[str] = []

    def recorded(name: str, build: Callable[..., None]) -> Callable[..., None]:
        def init(*given: Any, **named: Any) -> None:
            seen.append(name)
            build(*given, **named)

        return init

    found = {}
    with monkeypatch.context() as patch:
        for module, name in SET_UPS:
            built = getattr(module, name)
            patch.setattr(built, "__init__", recorded(name, built.__init__))
        for candidate in prepared.candidates:
            candidate.before()
            seen.clear()
            candidate.run()
            found[candidate.name] = list(seen)
    return found


SAMPLING = ("cpu.head", "cpu.e2e", "cpu.e2e.base", "cpu.long", "sample.b1", "sample.b64", "pass.b1", "head.step.16")


@pytest.mark.parametrize("name", SAMPLING)
def test_no_candidate_sets_itself_up_in_the_timed_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that does would lose by that."""
    (case,) = (case for case in CASES if case.name == name)
    prepared = case.prepare(SMOKE)
    found = set_up_while_timed(prepared, monkeypatch)
    assert {side: built for side, built in found.items() if built} == {}
    torch.compiler.reset()


def test_a_planted_set_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that builds its sampler anew in every call, ours and the baseline."""
    prepared = cpu.end_to_end(SMOKE, "tiny", 1)
    eager = next(candidate for candidate in prepared.candidates if candidate.name == "eager")
    model = cpu.small_model("smoke", SMOKE.device)
    context_BTNC = cpu.random_frame(model, 1)
    planted = Candidate("planted", lambda: cpu._eager(model, context_BTNC)())
    ours = Candidate("ours planted", lambda: cpu._ours(model, cpu.FAST, context_BTNC)())
    sides = PreparedCase((eager, planted, ours), check=lambda: ())
    found = set_up_while_timed(sides, monkeypatch)
    assert found["eager"] == [] and found["planted"] == ["MarStyleSampler", "MarStyleHead"]
    assert found["ours planted"] == ["PreparedSampler", "History", "FramePass", "Denoiser"]


def test_cases_have_names_of_their_own_and_goals_in_order() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for goal in case.goals:
            assert goal.verdict(goal.target) == "target"
            assert goal.threshold == goal.target or goal.verdict(goal.threshold) == "threshold", (case.name, goal)


def test_cases_are_chosen_by_name_or_its_first_parts() -> None:
    assert [case.name for case in choose(["head.step"])] == ["head.step.16"]
    assert [case.name for case in choose(["pass.b1"])] == ["pass.b1"]
    assert choose([]) == list(CASES)
    with pytest.raises(ValueError, match=r"unknown case 'cpu\.haed'; did you mean 'cpu\.head'"):
        choose(["cpu.haed"])


def test_the_command_writes_json_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    argv = ["bench", "cpu.linear", "pass.b1", "--device", "cpu", "--rounds", "1", "--threads", "1", "--smoke"]
    assert main([*argv, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [record["name"] for record in report["cases"]] == ["pass.b1", "cpu.linear"]
    printed = capsys.readouterr().out
    assert "cpu.linear" in printed and "smoke shapes, no speed" in printed


def test_a_case_that_fails_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured all the same."""
    failing = replace(next(case for case in CASES if case.name == "cpu.linear"), prepare=broken)
    monkeypatch.setattr("magi.bench.suite.CASES", (failing, *choose(["pass.b1"])))
    argv = ["bench", "--device", "cpu", "--rounds", "1", "--threads", "1", "--smoke"]
    assert main([*argv, "--out", str(tmp_path / "bench.json")]) == 4
    assert "cpu.linear: without a number" in capsys.readouterr().err
    statuses = {
        record["name"]: record["status"] for record in json.loads((tmp_path / "bench.json").read_text())["cases"]
    }
    assert statuses == {"cpu.linear": "error", "pass.b1": "measured"}


def broken(setting: Setting) -> PreparedCase:
    raise RuntimeError("no kernel")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cpu.haed"], "did you mean 'cpu.head'"),
        (["nothing"], "unknown case 'nothing'"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_what_cannot_be_done_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", "--threads", "1", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_command_measures_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("magi.bench.report.print_table", lambda *_: None)
    monkeypatch.setattr("magi.bench.runner.run_suite", lambda *given, on_progress: asked.append(given) or {"cases": []})
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    argv = ["bench", "cpu.linear", "--device", "cpu", "--rounds", "3", "--threads", "7", "--minutes", "2.5"]
    assert main([*argv, "--out", str(tmp_path / "x.json")]) == 0
    threads, (cases, setting, out, minutes) = asked
    assert (threads, [case.name for case in cases], minutes) == (7, ["cpu.linear"], 2.5)
    assert setting == Setting(torch.device("cpu"), False, 3) and out == tmp_path / "x.json"
    asked.clear()
    assert main(["bench", "--device", "cpu", "--smoke"]) == 0
    threads, (cases, setting, out, minutes) = asked
    assert threads == os.cpu_count() and cases == list(CASES) and setting.smoke
    assert str(out) == "build/bench_cpu.json" and minutes == 10
