"""A report on paper says what was measured, what was not and why, and what moved."""

import json
from pathlib import Path
from typing import Any

import pytest

from magi.bench.report import comparison, load_report, markdown, merged, rows
from magi.files import write_markdown_block

BEGIN, END = "<!-- results:bench:begin -->", "<!-- results:bench:end -->"


def times(median: float) -> dict[str, Any]:
    return {"median_seconds": median, "lowest_seconds": 0.9 * median, "highest_seconds": 1.1 * median}


def record(name: str, kind: str = "cpu", **changes: Any) -> dict[str, Any]:
    goal = {"metric": "x plain", "must": 4, "reach": 6, "smaller": False, "value": 5.0, "verdict": "must"}
    return {
        "name": name, "kind": kind, "measures": "a step", "unit": "step", "status": "measured", "goals": [goal],
        "metrics": {"x plain": 5.0}, "contenders": {"ours": times(2e-3), "plain": times(1e-2)},
    } | changes  # fmt: skip


def report(*records: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    machine = {"processor": "a chip", "threads": 2, "torch": "2", "when": "2026-01-02T03:04", "load": [0.5, 1, 1]}
    return {"format": 1, "device": device, "smoke": False, "machine": machine, "cases": list(records)}


def missing(name: str) -> dict[str, Any]:
    goal = {"metric": "ms", "must": 25, "reach": 12, "smaller": True, "value": None, "verdict": "not measured"}
    return record(name, "cuda", status="not measured", reason="needs a GPU", metrics={}, goals=[goal])


def test_a_row_says_time_spread_baseline_goal_and_verdict() -> None:
    (row,) = rows([report(record("cpu.head"))])
    assert row.cells() == (
        "cpu.head", "a step", "2 ms/step ±10%", "plain: 10 ms/step ±10%", "x plain >= 4 (reach 6)", "5", "must",
    )  # fmt: skip


def test_what_is_not_measured_is_listed_with_its_reason_and_goal() -> None:
    (row,) = rows([report(missing("head.step"))])
    assert row.verdict == "not measured: needs a GPU"
    assert row.goal == "ms <= 25 (reach 12)"
    assert row.got == row.ours == ""


def test_two_reports_make_one_table_with_the_numbers_that_either_has() -> None:
    gpu = report(
        record("head.step", "cuda"), record("cpu.head", status="not measured", reason="a CPU case"), device="cuda"
    )
    both = rows([report(record("cpu.head"), missing("head.step")), gpu])
    assert [(row.case, row.verdict) for row in both] == [("cpu.head", "must"), ("head.step", "must")]


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_markdown_block(path, "bench", markdown([report(record("cpu.head"))]))
    text = path.read_text()
    assert text.startswith(f"before\n{BEGIN}\nMeasured on a chip") and text.endswith(f"|\n{END}\nafter\n")
    assert "old" not in text and text.count("| cpu.head |") == 1


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"])
def test_a_file_without_its_markers_is_refused_and_left(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="results:bench:begin"):
        write_markdown_block(path, "bench", "table")
    assert path.read_text() == text


def test_metrics_beside_the_goals_are_told_too() -> None:
    """What no goal, no column and no baseline says already."""
    metrics = {"seconds": 2e-3, "x plain": 5.0, "share of matrix products": 0.3465}
    (row,) = rows([report(record("pass.b1", metrics=metrics))])
    assert row.ours == "2 ms/step ±10%; share of matrix products 0.3465"


def test_a_baseline_that_does_not_run_is_told_with_its_reason() -> None:
    (row,) = rows([report(record("pass.b1", shapes={"left out": {"compiled": "RuntimeError: no compiler"}}))])
    assert row.baselines == "plain: 10 ms/step ±10%; compiled: left out, RuntimeError: no compiler"


def test_a_merge_takes_the_last_number_of_a_case_and_tells_where_it_is_from() -> None:
    old, new = report(record("a", metrics={"x": 1.0}), record("b")), report(record("a", metrics={"x": 2.0}))
    new["machine"] = new["machine"] | {"when": "2026-01-03T00:00"}
    parts = {"runs/old.json": old, "runs/new.json": new, "runs/third.json": report(missing("a"), missing("c"))}
    made = merged(parts, {"b": "with the old kernel"})
    found = {case["name"]: case for case in made["cases"]}
    assert list(found) == ["a", "b", "c"] and found["a"]["metrics"] == {"x": 2.0}
    assert found["a"]["source"] == {"file": "new.json", "machine": new["machine"]}
    assert found["b"]["source"] == {"file": "old.json", "machine": old["machine"]}
    assert found["c"]["status"] == "not measured" and "source" not in found["c"]
    assert made["machine"]["when"] == "2026-01-03T00:00", "that of the newest run"
    assert found["b"]["note"] == "with the old kernel" and "note" not in found["a"]
    assert rows([made])[1].what == "a step (with the old kernel)"
    again = merged({"merged.json": made, "more.json": report(record("d"))})
    assert again["cases"][0] == found["a"], "merged again it keeps its first source"
    assert "source" not in old["cases"][0], "what was read is left as it was"


def test_a_number_is_never_replaced_by_none() -> None:
    measured, without = report(record("a")), report(missing("a"))
    for parts in ({"1": measured, "2": without}, {"1": without, "2": measured}):
        (case,) = merged(parts)["cases"]
        assert case["status"] == "measured"


def test_reports_that_do_not_belong_together_are_refused() -> None:
    here, gpu = report(record("a")), report(record("a", "cuda"), device="cuda")
    with pytest.raises(ValueError, match=r"^b\.json: device is cuda, that of a\.json is cpu; merge reports of one"):
        merged({"a.json": here, "b.json": gpu})
    other = report(record("a"))
    other["machine"] = other["machine"] | {"processor": "another chip"}
    with pytest.raises(ValueError, match=r"^b\.json: machine is another chip, that of a\.json is a chip"):
        merged({"a.json": here, "b.json": other})
    with pytest.raises(ValueError, match=r"^b\.json: a smoke test"):
        merged({"a.json": here, "b.json": here | {"smoke": True}})
    with pytest.raises(ValueError, match=r"--note b=\.\.\.: none of these reports has that case"):
        merged({"a.json": here}, {"b": "a note"})


def test_what_moved() -> None:
    old, new = report(record("a"), record("gone")), report(record("a", metrics={"x plain": 10.0, "ms": 1.0}))
    assert comparison(old, new) == [
        ("a", "x plain", "5", "10", "2.000"),
        ("a", "ms", "not measured", "1", ""),
        ("gone", "x plain", "5", "not measured", ""),
    ]


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"format": 2, "cases": []}), json.dumps({"format": 1})])
def test_another_file_is_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"report\.json: not a"):
        load_report(path)
