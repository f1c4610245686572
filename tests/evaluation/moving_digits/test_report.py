"""The page loads nothing from elsewhere and shows what was measured; the README's table comes from the JSON alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from magi.evaluation.moving_digits.report import report_html, results_table, write_results_table
from magi.evaluation.report import score_table, write_score_table

README = "# Title\n\n<!-- results:digits:begin -->\nold\n<!-- results:digits:end -->\n\nrest\n"


def figure(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "worst_bin": {"frames": "15-16", "mean": mean / 2}}


def results(name: str = "demo") -> dict[str, Any]:
    def ranges(scale: float) -> dict[str, Any]:
        near = {oracle: figure(scale * mean) for oracle, mean in zip(ORACLES, (0.91, 2.31, 1.11), strict=True)}
        far = {oracle: figure(scale * mean) for oracle, mean in zip(ORACLES, (0.61, 5.41, 0.81), strict=True)}
        return {"ranges": {"5-16": near, "17-104": far, "5-104": near}}

    target = {"frames": "5-16", "oracle": "class_kept", "low": 0.9, "high": None, "value": 0.91, "met": True}
    return {
        "protocol": "digits-1",
        "settings": {
            "frames": 104,
            "context": 4,
            "count": 32,
            "seed": 0,
            "labels": False,
            "ink_floor": 16,
            "videos": {"size": 64, "fps": 25, "seed": 1},
        },
        "versions": {"magi": "0.1.0"},
        "classifier": {"accuracy_now": 0.998, "clips_now": 500},
        "models": {name: {"id": "magi-123", "vae": "small-456", "sampling": {"steps": 50}}},
        "series": {"real": ranges(1.0), name: ranges(0.9)},
        "targets": {name: [target, target | {"oracle": "energy_ratio", "high": 1.3, "value": 1.4, "met": False}]},
    }


ORACLES = ("class_kept", "path_error_px", "energy_ratio")
PICTURES = {"curves": b"curves", "sheet": b"sheet", "training": b"training"}


def test_page_is_self_contained() -> None:
    page = report_html(results(), PICTURES, b"video")
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<iframe", re.sub(r'src="data:[^"]*"', "", page))
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4 and all(re.match(r"data:(image/png|video/mp4);base64,", source) for source in sources)


def test_page_shows_figures_targets_and_settings() -> None:
    page = report_html(results(), PICTURES, b"video")
    for text in ("2.31<small>2.30–2.32</small>", "99.80%", "small-456", "0.91 met", "1.40 missed", "frames 17-104"):
        assert text in page
    assert "Training" not in report_html(results(), {"curves": b"", "sheet": b""}, b"")


def test_names_of_models_are_text_not_markup() -> None:
    page = report_html(results("<script>alert(1)</script>"), PICTURES, b"video")
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_table_holds_near_and_far_figures_of_every_series() -> None:
    lines = results_table(results()).splitlines()
    assert lines[2] == "| real | 0.91 | 2.31 | 1.11 | 0.61 | 5.41 | 0.81 |"
    assert lines[3] == "| demo | 0.82 | 2.08 | 1.00 | 0.55 | 4.87 | 0.73 |"
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert (
        "99.80%" in lines[-1] and "Targets missed: demo (ink / real ink of frames 5-16 within 0.9 to 1.3" in lines[-1]
    )


def test_readme_changes_between_the_markers_only(tmp_path: Path) -> None:
    readme, source = tmp_path / "README.md", tmp_path / "digits.json"
    readme.write_text(README)
    source.write_text(json.dumps(results()))
    write_results_table(source, readme)
    once = readme.read_text()
    before, block, after = re.split("<!-- results:digits:(?:begin|end) -->", once)
    assert (before, after) == ("# Title\n\n", "\n\nrest\n")
    assert block.strip() == results_table(results())
    write_results_table(source, readme)
    assert readme.read_text() == once


@pytest.mark.parametrize("damaged", ["no markers", README.replace("begin", "end"), README + README])
def test_readme_without_its_markers_is_left_alone(tmp_path: Path, damaged: str) -> None:
    readme, source = tmp_path / "README.md", tmp_path / "digits.json"
    readme.write_text(damaged)
    source.write_text(json.dumps(results()))
    with pytest.raises(ValueError, match="results:digits:begin"):
        write_results_table(source, readme)
    assert readme.read_text() == damaged


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("name", "table"), [("digits", results_table), ("digits3d", score_table)])
def test_tables_of_the_readme_are_those_of_the_results(name: str, table: Callable[[Any], str]) -> None:
    """Every number there is written by a command (--readme) from a file in results/; none is typed."""
    kept = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, block, _ = re.split(f"<!-- results:{name}:(?:begin|end) -->", readme)
    assert block == f"\n{table(kept)}\n"


def test_scores_are_written_to_the_readme_and_kept_beside_it(tmp_path: Path) -> None:
    source, readme = ROOT / "results" / "digits3d.json", tmp_path / "README.md"
    readme.write_text(README.replace("results:digits", "results:digits3d"))
    assert write_score_table(source, readme) == tmp_path / "results" / "digits3d.json"
    assert (tmp_path / "results" / "digits3d.json").read_bytes() == source.read_bytes()
    assert score_table(json.loads(source.read_text())) in readme.read_text()
    readme.write_text("no markers")
    (tmp_path / "results" / "digits3d.json").unlink()
    with pytest.raises(ValueError, match="results:digits3d:begin"):
        write_score_table(source, readme)
    assert readme.read_text() == "no markers" and not any((tmp_path / "results").iterdir())
