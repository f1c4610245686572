"""The page loads nothing from elsewhere and shows what was measured; the README's tables come from the JSON alone."""

import copy
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from magi.evaluation.metrics.bootstrap import Curve, Estimate
from magi.evaluation.protocol.card import NetworkDescription, make_card
from magi.evaluation.protocol.protocols import protocol
from magi.evaluation.protocol.result import (
    EvaluationResult,
    FrameMetric,
    GroundTruthScores,
    GroundTruthSeries,
    JudgedTarget,
    ModelDescription,
    RangeScore,
    read_result,
)
from magi.evaluation.report import drift_rows, frame_rows, report_html, score_rows
from magi.evaluation.text.report import swap_table, text_table
from magi.evaluation.text.result import TextResult, read_text_result
from runs import tables

ROOT = Path(__file__).parents[2]
PAGE = "# Title\n\n<!-- results:digits:begin -->\nold\n<!-- results:digits:end -->\n\nrest\n"
METRICS = ("class_accuracy", "position_error_px", "intensity_ratio")
PICTURE = Image.new("RGB", (4, 4))
PICTURES = {"Curves": PICTURE, "Contact sheet": PICTURE, "Training": PICTURE}


def result(name: str = "demo") -> EvaluationResult:
    def score(mean: float) -> RangeScore:
        return RangeScore(Estimate(mean, mean - 0.01, mean + 0.01, 0.005), mean / 2, "15-16")

    def series(scale: float) -> GroundTruthSeries:
        near = {metric: score(scale * mean) for metric, mean in zip(METRICS, (0.91, 2.31, 1.11), strict=True)}
        far = {metric: score(scale * mean) for metric, mean in zip(METRICS, (0.61, 5.41, 0.81), strict=True)}
        curve = Curve((1.0,), (0.9,), (1.1,))
        return GroundTruthSeries({"5-16": near, "17-104": far, "5-104": near}, dict.fromkeys(METRICS, curve))

    targets = (
        JudgedTarget("5-16", "class_accuracy", 0.9, None, 0.91, True),
        JudgedTarget("5-16", "intensity_ratio", 0.9, 1.3, 1.4, False),
    )
    card = make_card(protocol("digits"), {}, NetworkDescription("digit-classifier", "0" * 64, 10), {}, 0)
    scores = GroundTruthScores({"real": series(1.0), name: series(0.9)}, {name: targets}, 0.998, 500)
    models = {name: ModelDescription("magi-123", "small-456", {"steps": 50})}
    return EvaluationResult("ground truth", card.values, card.hash, {}, models, ground_truth=scores)


def test_page_is_self_contained() -> None:
    page = report_html(result(), PICTURES, b"video")
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<iframe", re.sub(r'src="data:[^"]*"', "", page))
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4 and all(re.match(r"data:(image/png|video/mp4);base64,", source) for source in sources)


def test_page_shows_figures_targets_and_settings() -> None:
    page = report_html(result(), PICTURES, b"video")
    shown = ("2.31<small>2.30–2.32</small>", "99.80%", "small-456", "0.91 met", "1.40 missed", "frames 17-104")
    for text in (*shown, '<td class="met">0.91 met</td>', "&#34;table_seed&#34;: 0"):
        assert text in page, text
    assert "<h2>Training" in page
    assert "<h2>Training" not in report_html(result(), {"Curves": PICTURE, "Contact sheet": PICTURE}, b"")


def test_page_of_a_distance_shows_every_score_against_the_floor() -> None:
    found = read_result(ROOT / "results" / "digits3d.json")
    assert found.frechet is not None
    page = report_html(found, PICTURES, b"video")
    for what, figures in (*score_rows(found), *drift_rows(found.frechet), *frame_rows(found.frechet)):
        assert f"<td>{html.escape(what)}</td><td>{html.escape(figures)}</td>" in page, what
    assert "<h2>Targets" not in page and "floor" in page


def test_names_of_models_are_text_not_markup() -> None:
    page = report_html(result("<script>alert(1)</script>"), PICTURES, b"video")
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_table_holds_near_and_far_figures_of_every_series() -> None:
    lines = tables.ground_truth_table(result()).splitlines()
    assert lines[2] == "| real | 0.91 | 2.31 | 1.11 | 0.61 | 5.41 | 0.81 |"
    assert lines[3] == "| demo | 0.82 | 2.08 | 1.00 | 0.55 | 4.87 | 0.73 |"
    assert len({line.count("|") for line in lines[:4]}) == 1
    missed = "Targets missed: demo (intensity / real of frames 5-16 within 0.9 to 1.3)"
    assert "99.80%" in lines[-1] and missed in lines[-1]


@pytest.mark.parametrize(
    ("page", "name", "table"),
    [
        ("docs/evaluation.md", "digits", tables.ground_truth_table),
        ("docs/evaluation.md", "digits3d", tables.score_table),
        ("docs/worlds.md", "world", tables.world_table),
        ("docs/worlds.md", "world_long", tables.world_table),
    ],
)
def test_tables_of_pages_are_those_of_the_results(
    page: str, name: str, table: Callable[[EvaluationResult], str]
) -> None:
    """Every number there is written by runs/tables.py from a file in results/; none is typed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    _, block, _ = re.split(f"<!-- results:{name}:(?:begin|end) -->", text)
    assert block == f"\n{table(read_result(ROOT / 'results' / f'{name}.json'))}\n"


def test_a_table_is_written_between_its_markers_alone(tmp_path: Path) -> None:
    page, source = tmp_path / "docs" / "evaluation.md", ROOT / "results" / "digits.json"
    page.parent.mkdir()
    page.write_text(PAGE)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits.json").write_bytes(source.read_bytes())
    tables.digits(tmp_path)
    once = page.read_text()
    before, block, after = re.split("<!-- results:digits:(?:begin|end) -->", once)
    assert (before, after) == ("# Title\n\n", "\n\nrest\n")
    assert block.strip() == tables.ground_truth_table(read_result(source))
    tables.digits(tmp_path)
    assert page.read_text() == once


@pytest.mark.parametrize("damaged", ["no markers", PAGE.replace("begin", "end"), PAGE + PAGE])
def test_a_page_without_its_markers_is_left_alone(tmp_path: Path, damaged: str) -> None:
    page = tmp_path / "docs" / "evaluation.md"
    page.parent.mkdir()
    page.write_text(damaged)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits.json").write_bytes((ROOT / "results" / "digits.json").read_bytes())
    with pytest.raises(ValueError, match="results:digits:begin"):
        tables.digits(tmp_path)
    assert page.read_text() == damaged


def measured_text() -> TextResult | None:
    """Of the shipped model of text, where runs/text.sh has been run."""
    return read_text_result(ROOT / tables.TEXT) if (ROOT / tables.TEXT).is_file() else None


def test_tables_of_text_are_those_of_the_result() -> None:
    page, result = (ROOT / "docs/text.md").read_text(encoding="utf-8"), measured_text()
    for name in ("text", "text-swaps"):
        _, block, _ = re.split(f"<!-- results:{name}:(?:begin|end) -->", page)
        if result is None:
            assert block == "\nNot measured yet: `bash runs/text.sh`.\n"
        else:
            (scores,) = result.scores.values()
            assert block == f"\n{text_table(result) if name == 'text' else swap_table(scores)}\n"


def test_every_target_of_a_shipped_model_is_in_the_readme() -> None:
    results = [read_result(ROOT / "results" / f"{name}.json") for name in ("digits", "world")]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, block, _ = re.split("<!-- results:targets:(?:begin|end) -->", text)
    assert block == f"\n{tables.targets_table(results, measured_text())}\n"
    assert results[0].ground_truth is not None
    series = results[0].ground_truth.series
    floor, model = (series[name].ranges["5-16"]["position_error_px"] for name in ("vae", "demo"))
    row = f"| {floor.value.value:.3g} | {model.value.value:.3g} | at most 3 |"
    assert f"| `demo` | position error (px), frames 5 to 16 {row}\n" in block


def test_results_in_the_repository_have_whole_cards() -> None:
    """A card whose values were changed by hand no longer has its hash."""
    for name in ("digits", "digits3d"):
        path = ROOT / "results" / f"{name}.json"
        assert read_result(path).protocol["name"] == name
        changed = copy.deepcopy(json.loads(path.read_text()))
        assert set(changed["models"]) == set((changed["frechet"] or changed["ground_truth"])[_scored(changed)])


def _scored(values: dict[str, object]) -> str:
    return "models" if values["frechet"] else "targets"


def test_drift_is_the_mean_over_frames_and_that_of_the_last() -> None:
    """Frames at which the real clips do not change have no ratio and no part in the mean."""
    found = read_result(ROOT / "results" / "digits3d.json").frechet
    assert found is not None
    (name, model), *_ = found.models.items()

    def row(mean: tuple[float | None, ...], low: float | None = 1.5) -> str:
        drift = Curve(mean, (0.5, 0.5, low), (3.0, 3.0, 2.5))
        ((what, text),) = drift_rows(replace(found, models={name: replace(model, drift_ratio=drift)}))
        assert what == f"{name}, change between frames over real"
        return text

    assert row((1.0, None, 2.0)) == "1.500; last frame 2.000 (1.500 to 2.500)"
    assert row((1.0, 3.0, 2.0), low=None) == "2.000; last frame 2.000"
    assert row((1.0, 1.0, None)) == "no change between real frames to compare with"


def test_frame_metrics_say_where_all_frames_are_exact() -> None:
    found = read_result(ROOT / "results" / "digits3d.json").frechet
    assert found is not None
    (name, model), *_ = found.models.items()
    metrics = {"psnr": FrameMetric(None, 5, (None,), 1), "ssim": FrameMetric(0.25, 5, (0.25,), 0)}
    rows = frame_rows(replace(found, models={name: replace(model, frames=metrics)}))
    assert rows == [(f"{name}, psnr", "every frame is exact"), (f"{name}, ssim", "0.2500")]
