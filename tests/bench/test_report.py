"""A report on paper says what was measured, what was not and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from magi.bench.report import load_report, markdown, rows
from magi.files import write_markdown_block

BEGIN, END = "<!-- results:bench:begin -->", "<!-- results:bench:end -->"


def times(median: float) -> dict[str, Any]:
    return {"median_seconds": median, "lowest_seconds": 0.9 * median, "highest_seconds": 1.1 * median}


def record(name: str, kind: str = "cpu", **changes: Any) -> dict[str, Any]:
    goal = {"metric": "x plain", "threshold": 4, "target": 6, "smaller": False, "value": 5.0, "verdict": "threshold"}
    return {
        "name": name, "kind": kind, "description": "a step", "unit": "step", "status": "measured", "goals": [goal],
        "metrics": {"x plain": 5.0}, "candidates": {"ours": times(2e-3), "plain": times(1e-2)},
    } | changes  # fmt: skip


def report(*records: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    machine = {"processor": "a chip", "threads": 2, "torch": "2", "when": "2026-01-02T03:04", "load": [0.5, 1, 1]}
    return {"format": 2, "device": device, "smoke": False, "machine": machine, "cases": list(records)}


def missing(name: str) -> dict[str, Any]:
    goal = {"metric": "ms", "threshold": 25, "target": 12, "smaller": True, "value": None, "verdict": "not measured"}
    return record(name, "cuda", status="not measured", reason="needs a GPU", metrics={}, goals=[goal])


def test_a_row_says_time_spread_baseline_goal_and_verdict() -> None:
    (row,) = rows(report(record("cpu.head")))
    assert row == (
        "cpu.head", "a step", "2 ms/step ±10%", "plain: 10 ms/step ±10%", "x plain >= 4 (target 6): 5, threshold",
    )  # fmt: skip


def test_what_is_not_measured_is_listed_with_its_reason_and_goal() -> None:
    (row,) = rows(report(missing("head.step")))
    assert row[2:] == ("", "", "ms <= 25 (target 12); not measured: needs a GPU")


def test_several_reports_make_a_table_each_and_a_list_of_what_none_measured() -> None:
    gpu = report(
        record("head.step", "cuda"), record("cpu.head", status="not measured", reason="a CPU case"), device="cuda"
    )
    text = markdown([report(record("cpu.head"), missing("head.step")), gpu], ["cpu.head", "head.step", "train.ctf"])
    assert text.count("| cpu.head |") == text.count("| head.step |") == 1, "each where it was measured"
    assert text.index("| cpu.head |") < text.index("| head.step |")
    assert text.endswith("Not measured yet: `train.ctf`.")


def test_what_a_reader_has_to_know_of_a_number_stands_beside_it() -> None:
    (row,) = rows(report(record("cpu.head", note="with older code")))
    assert row[1] == "a step (with older code)"


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_markdown_block(path, "bench", markdown([report(record("cpu.head"))]))
    text = path.read_text()
    assert text.startswith(f"before\n{BEGIN}\na chip") and text.endswith(f"|\n{END}\nafter\n")
    assert "\nold" not in text and text.count("| cpu.head |") == 1


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"])
def test_a_file_without_its_markers_is_refused_and_left(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="results:bench:begin"):
        write_markdown_block(path, "bench", "table")
    assert path.read_text() == text


def test_metrics_beside_the_goals_are_shown_too() -> None:
    """What no goal, no column and no baseline shows already."""
    metrics = {"seconds": 2e-3, "x plain": 5.0, "share of matrix products": 0.3465}
    (row,) = rows(report(record("pass.b1", metrics=metrics)))
    assert row[2] == "2 ms/step ±10%; share of matrix products 0.3465"


def test_a_baseline_that_does_not_run_is_shown_with_its_reason() -> None:
    (row,) = rows(report(record("pass.b1", shapes={"left out": {"compiled": "RuntimeError: no compiler"}})))
    assert row[3] == "plain: 10 ms/step ±10%; compiled: left out, RuntimeError: no compiler"


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"format": 1, "cases": []}), json.dumps({"format": 2})])
def test_another_file_is_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"report\.json: not a"):
        load_report(path)
