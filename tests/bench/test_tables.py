"""The speed tables of README and docs are what ``runs/tables.py`` writes from the committed reports."""

import re
import shutil
from pathlib import Path

import pytest

from runs import tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("README.md", "speed"),
        ("docs/performance.md", "bench"),
        ("docs/performance.md", "state"),
        ("docs/performance.md", "few_steps"),
        ("docs/reliability.md", "survival"),
        ("docs/worlds.md", "game"),
        ("README.md", "latency"),
        ("docs/play.md", "play"),
        ("docs/play.md", "play_load"),
    ],
)
def test_a_page_holds_what_its_writer_writes(page: str, name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("studies"))
    (tmp_path / page).parent.mkdir(exist_ok=True)
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = re.split(f"(<!-- results:{name}:(?:begin|end) -->\n)", text)
    parts[2] = "old\n"
    (tmp_path / page).write_text("".join(parts), encoding="utf-8")
    tables.TABLES[name](tmp_path)
    assert (tmp_path / page).read_text(encoding="utf-8") == text, f"python runs/tables.py {name}"


def test_three_numbers_say_on_what_and_against_what() -> None:
    """Figures that are easy to divide by hand; a run of the small model is two frames."""

    def record(name: str, **metrics: float) -> dict[str, object]:
        return {"name": name, "shapes": {"parameters": 5_000_000, "frames": 2}, "metrics": metrics}

    machine = {"processor": "a chip", "threads": 2, "gpu": "a card"}
    small = record("cpu.e2e", **{"seconds": 0.3, "x eager": 2.5})
    late = record("cpu.long", **{"seconds": 0.06, "late over early": 1.01})
    paper = record("sample.b1", **{"seconds": 1.5, "x eager": 9.0})
    cpu, gpu = ({"machine": machine, "cases": cases} for cases in ([small, late], [paper]))
    rows = tables.speed_table(cpu, gpu).splitlines()[2:5]
    assert [row.split(" | ")[1:] for row in rows] == [
        ["150 ms", "2.5 times as fast as the plain sampler |"],
        ["60 ms", "1.01 times as long as after 10 frames |"],
        ["1.50 s", "9.0 times as fast as the plain sampler |"],
    ]
    assert "2 CPU cores (a chip)" in rows[0] and rows[2].startswith(
        "| the paper's model (5 M parameters), one a card |"
    )
    gpu["cases"][0]["note"] = "without a kernel"  # type: ignore[index]
    assert "one a card, measured with an older version |" in tables.speed_table(cpu, gpu)


def test_the_table_of_few_steps_has_what_a_row_costs_and_scores() -> None:
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75, "std": 0.1}
    metrics = dict.fromkeys(("class_accuracy", "position_error_px", "intensity_ratio"), estimate)
    row = {"name": "vae", "sampling": None, "ms": None, "figures": {"5-16": metrics, "17-104": metrics}}
    made = {"name": "fast", "sampling": {"steps": 3, "iterations": 2}, "ms": {"p50": 6.04, "p95": 9.96}}
    machine = {"processor": "a chip", "threads": 2, "load": [0.1]}
    lines = tables.few_steps_table({"clips": 7, "machine": machine, "rows": [row, row | made]}).splitlines()
    cells = " | ".join(["0.50 (0.25 to 0.75)"] * 4)
    assert lines[2:4] == [f"| vae |  |  | {cells} |  |", f"| fast | 3 | 3 | {cells} | 6.0 (10.0) |"]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    shares = {"1": 0.031, "8": 0.84}
    table = tables.first_frames_table({"first_frames": {"count": 64, "in_one_piece": shares}}).splitlines()
    assert table[0] == "| iterations | 1 | 8 |" and table[2] == "| first frames in one piece | 0.03 | 0.84 |"
    assert "Times wait" in tables.few_steps_table({"clips": 7, "machine": machine, "rows": [row]})
    assert "7 held-out clips" in lines[-1] and "2 threads (a chip), load 0.1" in lines[-1]


def test_the_table_of_cache_and_state_has_a_row_for_each_number_of_frames_in_view() -> None:
    names = ("ours", "cache of 16 frames", "cache of 1024 frames")
    record = {
        "name": "cpu.state",
        "status": "measured",
        "candidates": {name: {"median_seconds": 0.002 * number} for number, name in enumerate(names, 1)},
        "metrics": {f"layer us, {name}": 100.0 * number for number, name in enumerate(names, 1)},
        "shapes": {
            "frames in view": [16, 1024], "bytes": {name: 1e6 * number for number, name in enumerate(names, 1)},
            "blocks": 4, "width": 192, "positions": 18, "dtype": "float32", "passes a frame": 4,
        },
    }  # fmt: skip
    machine = {"processor": "a chip", "threads": 2, "torch": "2", "when": "2026-01-01", "load": [0.1]}
    report = {"machine": machine, "smoke": False, "cases": [record, record | {"status": "skipped"}]}
    lines = tables.state_table([report]).splitlines()
    assert lines[0].startswith("a chip, 2 threads") and "4 blocks of width 192" in lines[0] and len(lines) == 7
    assert lines[4:] == [
        "| gated_linear, any number | 1.0 MB | 2 ms | 100 µs |",
        "| softmax, 16 frames in view | 2.0 MB | 4 ms | 200 µs |",
        "| softmax, 1,024 frames in view | 3.0 MB | 6 ms | 300 µs |",
    ]
    assert tables.state_table([report | {"cases": []}]) == "Not measured yet."


def test_a_key_is_followed_from_the_hand_to_the_pixels() -> None:
    def case(busy: int, wanted: float, whole: float) -> dict[str, object]:
        parts = {part: {"p50": 4.0, "p95": 9.4} for part in ("wait", "making", "network", "draw")}
        latency = {"p50": 40.0, "p95": whole}
        return {"busy_cores": busy, "wanted_p95_ms": wanted, "keys": 200, "frames_a_second": 29.96, "parts_ms": parts,
                "latency_ms": latency}  # fmt: skip

    report = {
        "model": "platform", "fps": 30.0, "machine": {"cores": 2, "threads": 1, "processor": "a chip"},
        "cases": [case(0, 100.0, 80.4), case(1, 150.0, 151.0)], "frame_parts_ms": {"passes": 5.04, "decode": 2.0},
    }  # fmt: skip
    rows = tables.play_table(report).splitlines()
    assert (
        rows[0]
        == "| within ms | half, cores busy: 0 | 95 %, cores busy: 0 | half, cores busy: 1 | 95 %, cores busy: 1 |"
    )
    assert rows[2] == "| wait | 4 | 9 | 4 | 9 |" and rows[6] == "| **key to pixels** | 40 | 80 | 40 | 151 |"
    assert "95 % within 80 of 100 ms wanted, 151 of 150 ms wanted (missed)." in rows[-1]
    assert rows[-1].endswith("(threads: 1): passes 5.0 ms, decode 2.0 ms.") and "(30.0 and 30.0 shown)" in rows[-1]
    assert "2 CPU cores (a chip): 40 ms, 95 % within 80; with one of the cores busy 40, 95 % within 151." in (
        tables.latency_line(report)
    )


def test_shares_of_many_players_and_their_memory_are_said() -> None:
    report = {
        "players": 2, "fps": 10, "took_s": 601.0, "machine": {"cores": 4, "processor": "a chip", "load": [1.2, 1.0]},
        "frames": [4500, 6000], "fewest_over_most": 0.75, "memory_bytes": [90e6, 100e6, 101.5e6],
        "memory_grew_bytes": 1.5e6,
    }  # fmt: skip
    line = tables.load_line(report)
    assert line.startswith("2 players for 10 minutes on 4 cores (a chip, load 1 when it began), asked for 10 frames")
    assert (
        "4,500 to 6,000 frames each, so the fewest are 75 % of the most; 102 MB of memory" in line and "1.5 MB" in line
    )
