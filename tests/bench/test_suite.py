"""Every case works from end to end at tiny shapes, its parity holds, and the command prints and writes it.

Those of attention and training have a file of their own.
"""

import json
from pathlib import Path

import pytest
import torch

from magi.bench.attention import CASES as ATTENTION
from magi.bench.case import Case, Setting
from magi.bench.runner import run_case
from magi.bench.suite import CASES, FIRST, chosen
from magi.bench.training import CASES as TRAINING
from magi.cli.main import main

ELSEWHERE = {case.name for case in (*ATTENTION, *TRAINING)}
LONGEST_RUN = 9.5
"""Minutes of a run of the GPU cases (runs/bench.sh), what starts it aside."""


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in ELSEWHERE], ids=lambda case: case.name)
def test_a_case_works_and_its_parity_holds(case: Case) -> None:
    record = run_case(case, Setting(torch.device("cpu"), smoke=True, rounds=2))
    assert record["status"] == "measured", record.get("traceback", record.get("reason"))
    # The compiled baseline of a head is left out of a smoke test.
    left_out = {"x compiled"} if case.name.startswith("head.") else set()
    assert {goal["metric"] for goal in record["goals"]} <= set(record["metrics"]) | left_out
    assert record["metrics"] or record["contenders"]
    assert not record["shapes"].get("left out"), "a baseline that does not run"
    assert all(len(times["rounds"]) == 2 for times in record["contenders"].values()), "every side in every round"


def test_all_gpu_cases_fit_one_run() -> None:
    minutes = {case.name: case.minutes for case in CASES if case.kind == "cuda"}
    assert all(value > 0 for value in minutes.values())
    assert round(sum(minutes.values()), 6) <= LONGEST_RUN, minutes


def test_the_cases_that_the_plan_is_held_to_come_first() -> None:
    assert tuple(case.name for case in CASES if case.kind == "cuda")[: len(FIRST)] == FIRST
    with_goals = {case.name for case in CASES if case.kind == "cuda" and case.goals}
    assert set(FIRST) - {"calib"} <= with_goals
    assert FIRST[:2] == ("calib", "compile.time"), "what comes earlier builds kernels, and no first frame is cold"


def test_the_plan_has_all_its_cases() -> None:
    """Those that its tables name (the plan of speed, section 6)."""
    names = {case.name for case in CASES}
    heads = {f"head.step.{rows}" for rows in (16, 128, 1024)} | {"head.train"}
    frames = {f"{kind}.b{batch}" for kind in ("sample", "pass") for batch in (1, 8, 64)} | {"sample.presets"}
    training = {"train.ctf", "train.ctf_vs_mtf", "train.prune", "train.gemm_share", "opt.step"}
    others = {"calib", "kv.scaling", "attn.temporal.ctf", "attn.grid", "attn.spatial", "decode.vae", "compile.time"}
    assert heads | frames | training | others | {"cpu.linear", "cpu.head", "cpu.ctf", "cpu.e2e"} <= names


def test_cases_have_names_of_their_own_and_goals_in_order() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for goal in case.goals:
            assert goal.verdict(goal.reach) == "reached"
            assert goal.must == goal.reach or goal.verdict(goal.must) == "must", (case.name, goal)


def test_cases_are_chosen_by_name_or_its_first_parts() -> None:
    assert [case.name for case in chosen(["head.step"])] == ["head.step.16", "head.step.128", "head.step.1024"]
    assert [case.name for case in chosen(["pass.b8"])] == ["pass.b8"]
    assert chosen([]) == list(CASES)
    with pytest.raises(ValueError, match=r"unknown case 'cpu\.haed'; did you mean 'cpu\.head'"):
        chosen(["cpu.haed"])


def test_the_command_writes_json_table_and_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, readme = tmp_path / "bench.json", tmp_path / "README.md"
    readme.write_text("<!-- results:bench:begin -->\n<!-- results:bench:end -->\n")
    words = ["bench", "cpu.linear", "pass.b8", "--device", "cpu", "--rounds", "1", "--threads", "1", "--smoke"]
    assert main([*words, "--out", str(out), "--readme", str(readme)]) == 0
    report = json.loads(out.read_text())
    assert [record["name"] for record in report["cases"]] == ["cpu.linear", "pass.b8"]
    assert "cpu.linear" in capsys.readouterr().out
    assert "| pass.b8 |" in readme.read_text()
    assert main(["bench", "--compare", str(out), str(out)]) == 0
    assert "1.000" in capsys.readouterr().out
    assert main(["bench", "--results", str(out)]) == 0
    assert "smoke" in capsys.readouterr().out


def test_the_command_merges_reports_and_lists_what_no_one_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, out = (tmp_path / name for name in ("first.json", "second.json", "out.json"))
    for path, value in ((first, 1.0), (second, 2.0)):
        record = {
            "name": "cpu.linear", "kind": "cpu", "measures": "a layer", "unit": "product", "status": "measured",
            "goals": [], "metrics": {"x": value},
        }  # fmt: skip
        machine = {"processor": "a chip", "threads": 2, "torch": "2", "when": f"2026-01-0{value:.0f}", "load": [0]}
        unmeasured = record | {"name": "cpu.head", "status": "not measured", "reason": "no time", "metrics": {}}
        report = {"format": 1, "device": "cpu", "smoke": False, "machine": machine, "cases": [record, unmeasured]}
        path.write_text(json.dumps(report))
    words = ["bench", "--merge", str(first), str(second), "--out", str(out), "--note", "cpu.linear=one thread"]
    words += ["--note", "cpu.head=a = b"]
    assert main(words) == 0
    made = json.loads(out.read_text())
    assert {case["name"] for case in made["cases"]} == {case.name for case in CASES if case.kind == "cpu"}
    measured = made["cases"][0]
    assert (measured["metrics"], measured["source"]["file"], measured["note"]) == (
        {"x": 2.0}, "second.json", "one thread",
    )  # fmt: skip
    assert [case["note"] for case in made["cases"] if "note" in case] == ["one thread", "a = b"]
    assert "one thread" in " ".join(capsys.readouterr().out.split())


def test_the_command_tells_where_the_time_of_a_case_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, readme = tmp_path / "profile.json", tmp_path / "performance.md"
    readme.write_text("<!-- results:profile:begin -->\n<!-- results:profile:end -->\n")
    words = ["bench", "--profile", "cpu.e2e", "--smoke", "--rounds", "1", "--out", str(out), "--readme", str(readme)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert (
        "| aten::addmm |" in printed and "times as fast as eager" in printed and printed.strip() in readme.read_text()
    )
    found = json.loads(out.read_text())["contenders"]
    assert set(found) == {"ours", "ours in fp32", "ours in fp32, first call", "eager", "eager in bf16"}
    (limits,) = (line for line in printed.splitlines() if line.startswith("If all but the products"))
    assert "times as fast as eager in bf16" in limits and "as ours" not in limits
    for operators in found.values():
        seconds = [operator["seconds"] for operator in operators]
        assert seconds == sorted(seconds, reverse=True) and operators[0]["calls"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "cpu"], "--profile cpu: names several cases"),
        (["--profile", "cpu.haed"], "did you mean 'cpu.head'"),
        (["--profile", "calib"], "calib: profiles are of CPU cases"),
        (["--merge", "a.json", "--out", "b.json"], "a.json: not a readable report"),
        (["--merge", "a.json"], "--merge: say with --out which file to write"),
        (["--note", "a=b"], "--note is of cases that --merge writes"),
        (["--merge", "a.json", "--out", "b.json", "--note", "a"], "--note a: expected CASE=TEXT"),
        (["nothing"], "unknown case 'nothing'"),
        (["--rounds", "0"], "--rounds"),
        (["--compare", "a.json", "b.json"], "a.json: not a readable report"),
        (["--results", "a.json"], "a.json: not a readable report"),
        (
            ["--readme", "nowhere.md", "cpu.linear", "--smoke", "--rounds", "1", "--out", "OUT"],
            "nowhere.md: no such file",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "out.json") if word == "OUT" else word for word in words]
    assert main(["bench", "--device", "cpu", "--threads", "1", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
