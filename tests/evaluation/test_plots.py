"""The pictures show the pixels that were measured, in their places."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from magi.data.sample_grid import CONTEXT_COLOUR
from magi.evaluation import plots
from magi.evaluation.plots import (
    COLOURS,
    REAL_COLOUR,
    draw_contact_sheet,
    draw_frechet,
    draw_ground_truth,
    draw_training,
    side_by_side,
)
from magi.evaluation.protocol.result import read_result

FRAMES, SIZE = 6, 64


@pytest.fixture(scope="module")
def series() -> dict[str, NDArray[np.uint8]]:
    """Plain grey videos: the grey level tells series, clip and frame."""
    levels = {"real": 0, "one": 60, "two": 120}
    return {
        name: np.broadcast_to(
            (level + 10 * np.arange(3)[:, None] + np.arange(FRAMES))[:, :, None, None, None],
            (3, FRAMES, SIZE, SIZE, 3),
        ).astype(np.uint8)
        for name, level in levels.items()
    }


def test_side_by_side_shows_every_clip_of_every_series(
    series: dict[str, NDArray[np.uint8]],
) -> None:
    video_THWC = side_by_side(series, context=2)
    assert len(video_THWC) == FRAMES and video_THWC.shape[1] % 2 == video_THWC.shape[2] % 2 == 0
    for frame in range(FRAMES):
        for name in series:
            for clip in range(3):
                level = series[name][clip, frame, 0, 0, 0]
                pixels = (video_THWC[frame] == level).all(-1).sum()
                assert pixels >= (2 * SIZE) ** 2, (frame, name, clip)
    real, model = (np.median(np.argwhere((video_THWC[5] == level + 5).all(-1)), axis=0) for level in (0, 60))
    # Real on top, the model below it; the smooth edges of captions hold a few pixels of any grey level.
    assert abs(real[1] - model[1]) < 2 and real[0] + SIZE < model[0]


def test_context_frames_alone_are_framed(series: dict[str, NDArray[np.uint8]]) -> None:
    video_THWC = side_by_side(series, context=2)
    framed_T = (video_THWC == np.array(CONTEXT_COLOUR)).all(-1).any((1, 2))
    assert framed_T.tolist() == [True, True, False, False, False, False]


def test_contact_sheet_has_a_row_for_each_clip_and_series(series: dict[str, NDArray[np.uint8]]) -> None:
    sheet = np.asarray(draw_contact_sheet(series, 2))
    for name in series:
        for clip in range(3):
            assert (sheet == series[name][clip, 3, 0, 0, 0]).all(-1).sum() >= SIZE**2


def test_training_curve_needs_metrics(tmp_path: Path) -> None:
    assert draw_training({}) is None
    assert draw_training({"empty": tmp_path}) is None
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    picture = draw_training({"run": tmp_path})
    assert picture is not None and np.asarray(picture).std() > 5


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they are pixels."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_image", lambda figure: drawn.append(figure))
    return drawn


def drawn(line: Line2D) -> tuple[list[float], list[float]]:
    """The points of a line."""
    return [float(x) for x in np.asarray(line.get_xdata())], [float(y) for y in np.asarray(line.get_ydata())]


def test_curves_are_drawn_at_their_frames_by_their_names(figures: list[Figure]) -> None:
    """A change is drawn at the frame that it leads to; real clips are grey, models are told apart by colour."""
    scores = read_result(Path(__file__).parents[2] / "results" / "digits3d.json").frechet
    assert scores is not None
    (model,) = scores.models.values()
    draw_frechet(replace(scores, models={"one": model, "two": model}))
    (figure,) = figures
    panels = {axes.get_title(): axes for axes in figure.axes}
    first = {"change": 2, "brightness": 1, "sharpness": 1, "motion": 2}
    for title, axes in panels.items():
        lines = {str(line.get_label()): line for line in axes.lines}
        if (word := title.split()[0]) in first:
            number = first[word]
            for name in ("one", "two"):
                assert drawn(lines[name])[0] == list(range(number, 17))
            colours = {lines[name].get_color() for name in ("one", "two")}
            assert len(colours) == 2 and REAL_COLOUR not in colours
            assert lines["real" if word != "change" else "real, interval 1"].get_color() == REAL_COLOUR
    assert {line.get_linestyle() for line in panels["motion (pixels a frame)"].lines} == {"-"}
    psnr = panels["PSNR of predicted frames (dB)"].lines[0]
    assert drawn(psnr)[0] == list(range(5, 17)), "of the predicted frames alone"


def test_ground_truth_is_drawn_with_its_intervals_targets_and_context(figures: list[Figure]) -> None:
    found = read_result(Path(__file__).parents[2] / "results" / "digits.json")
    assert found.ground_truth is not None
    draw_ground_truth(found.ground_truth, 4, 104)
    axes = {axes.get_title(): axes for axes in figures[0].axes}["position error (px)"]
    lines = {str(line.get_label()): line for line in axes.lines}
    for name, series in found.ground_truth.series.items():
        curve = series.per_frame["position_error_px"]
        assert drawn(lines[name]) == (list(range(1, 105)), list(curve.mean))
    assert [lines[name].get_linestyle() for name in ("real", "vae")] == ["--", ":"]
    assert [lines[name].get_color() for name in found.models] == list(COLOURS[: len(found.models)])
    bounds = [drawn(line)[0] for line in axes.lines if line.get_color() == "black"]
    assert bounds == [[4.5, 16.5]], "the target of at most 3 px in frames 5 to 16"


def test_a_training_curve_is_smoothed_over_what_came_before(figures: list[Figure], tmp_path: Path) -> None:
    losses = [1.0] * 60 + [3.0] * 40
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    draw_training({"run": tmp_path})
    faint, solid = figures[0].axes[0].lines
    assert drawn(faint) == (list(range(1, 101)), losses)
    smooth = drawn(solid)[1]  # over a twentieth of the 100 lines
    assert smooth[:60] == [1.0] * 60 and smooth[64:] == [3.0] * 36
    assert smooth[60:64] == pytest.approx([1.4, 1.8, 2.2, 2.6])
