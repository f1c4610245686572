"""Pictures of an evaluation: curves over frame numbers, training curves, and videos side by side.

Clips are shown in the order of their numbers, the first ones, never picked. Curves are drawn with their bootstrap
intervals. Colours are those of Okabe and Ito, which colour-blind people tell apart. Knows no files but the metrics of a
run, and no HTML.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magi.data.sample_grid import contact_sheet
from magi.evaluation.metrics.bootstrap import Curve
from magi.evaluation.protocol.result import FrechetScores, GroundTruthScores, JudgedTarget
from magi.training.log import read_metrics

METRIC_TITLES = {
    "class_accuracy": "class accuracy",
    "position_error_px": "position error (px)",
    "intensity_ratio": "intensity / real",
    "control": "actions obeyed",
    "control_shuffled": "another clip's actions obeyed",
    "position_error": "position error (px)",
    "things_right": "things right",
    "violation": "violations",
    "alive": "alive",
    "psnr": "PSNR (dB)",
}
_SHARES = ("class_accuracy", "control", "control_shuffled", "things_right", "alive")
_CURVE_TITLES = {
    "adjacent_l2": "change between adjacent frames (RMS, 0..1)",
    "brightness": "brightness (0..1)",
    "sharpness": "sharpness (RMS of the Laplacian)",
    "motion": "motion (pixels a frame)",
}
INTERVAL_STYLES = {"1": "-", "2": "--", "4": "-.", "8": ":"}
REAL_COLOUR = "#444444"
_BASELINES = {"real": (REAL_COLOUR, "--"), "vae": ("#999999", ":"), "last": ("#BBBBBB", "-.")}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHEET_CLIPS, _SHEET_COLUMNS = 4, 16
VIDEO_CLIPS = 6
_TEXT_COLOUR = (40, 40, 40)

Series = Mapping[str, NDArray[np.uint8]]
"""Name -> video_BTHWC of the first clips; 'real' first, then the models."""


def draw_ground_truth(scores: GroundTruthScores, context: int, frames: int) -> Image.Image:
    """Each metric over frame numbers, mean over clips with its 95% interval; context shaded, targets as black lines."""
    metrics = list(next(iter(scores.series.values())).per_frame)
    rows = -(-len(metrics) // 3)
    figure = figure_of(13.5, 4.2 * rows)
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for unused in panels[len(metrics) :]:
        unused.set_axis_off()
    for metric, axes in zip(metrics, panels, strict=False):
        for name, (colour, style) in _styles(scores.series):
            draw_curve(axes, scores.series[name].per_frame[metric], colour, style, name)
        _draw_targets(axes, next(iter(scores.targets.values()), ()), metric)
        axes.axvspan(0.5, context + 0.5, color="#FFAA00", alpha=0.25, linewidth=0)
        axes.set_xlim(0.5, frames + 0.5)
        axes.set_xlabel("frame number (context shaded)")
        axes.set_title(METRIC_TITLES[metric], fontsize=11)
        axes.set_ylim(0, 1.03 if metric in _SHARES else None)
        if metric == "intensity_ratio":
            axes.set_ylim(0, max(1.5, min(axes.get_ylim()[1], 3.0)))
    return _with_legend(figure, panels[0])


def draw_frechet(scores: FrechetScores) -> Image.Image:
    """Change between adjacent frames against real clips at several intervals, the other curves, and frame metrics."""
    figure = figure_of(13.5, 8.4)
    panels = figure.subplots(2, 3).ravel()
    for name, axes in zip(_CURVE_TITLES, panels, strict=False):
        _draw_temporal_curve(axes, name, scores)
    _draw_psnr(panels[4], scores)
    _draw_frame_fid(panels[5], scores)
    return _with_legend(figure, panels[0])


def _draw_temporal_curve(axes: Axes, name: str, scores: FrechetScores) -> None:
    first = 2 if name in ("adjacent_l2", "motion") else 1  # the frame that a change leads to
    if name == "adjacent_l2":
        for interval, curve in scores.real.adjacent_l2.items():
            draw_curve(axes, curve, REAL_COLOUR, INTERVAL_STYLES[interval], f"real, interval {interval}", first)
    else:
        draw_curve(axes, scores.real.curves[name], REAL_COLOUR, "-", "real", first)
    for model, (colour, style) in _styles(scores.models):
        draw_curve(axes, scores.models[model].curves[name], colour, style, model, first)
    _label(axes, _CURVE_TITLES[name])
    axes.set_ylim(bottom=0)


def _draw_psnr(axes: Axes, scores: FrechetScores) -> None:
    _label(axes, "PSNR of predicted frames (dB)")
    for model, (colour, _) in _styles(scores.models):
        metric = scores.models[model].frames.get("psnr")
        if metric is not None:
            numbers = np.arange(metric.first_frame, metric.first_frame + len(metric.per_frame))
            axes.plot(numbers, _numbers(metric.per_frame), color=colour)
    if not axes.lines:
        _write(axes, "no predicted frames to compare")


def _draw_frame_fid(axes: Axes, scores: FrechetScores) -> None:
    _label(axes, "FID of every frame")
    floor = scores.real.frame_fid_floor
    if not floor:
        _write(axes, "no Inception weights were given")
        return
    axes.plot(np.arange(1, len(floor) + 1), floor, "--", color=REAL_COLOUR)
    for model, (colour, _) in _styles(scores.models):
        axes.plot(np.arange(1, len(floor) + 1), scores.models[model].frame_fid, color=colour)


def draw_curve(axes: Axes, curve: Curve, colour: str, style: str, label: str, first: int = 1) -> None:
    """A mean with its interval, at frame numbers from ``first`` on."""
    numbers = np.arange(first, first + len(curve.mean))
    axes.plot(numbers, _numbers(curve.mean), style, color=colour, linewidth=1.6, label=label)
    axes.fill_between(numbers, _numbers(curve.low), _numbers(curve.high), color=colour, alpha=0.15, linewidth=0)


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]


def _draw_targets(axes: Axes, targets: Iterable[JudgedTarget], metric: str) -> None:
    for target in targets:
        first, last = (int(number) for number in target.frames.split("-"))
        for bound in (target.low, target.high):
            if target.metric == metric and bound is not None:
                axes.plot([first - 0.5, last + 0.5], [bound, bound], color="black", linewidth=1)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("frame number")


def _write(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#777777")


def _with_legend(figure: Figure, axes: Axes) -> Image.Image:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return _image(figure)


def _styles(names: Iterable[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each series with its colour and line style; models are solid."""
    number = 0
    for name in names:
        baseline = _BASELINES.get(name.split(" ")[0])
        yield name, baseline or (COLOURS[number % len(COLOURS)], "-")
        number += baseline is None


def draw_training(runs: Mapping[str, Path]) -> Image.Image | None:
    """Training losses of ``runs`` (name -> run folder) over steps; None where no run has any."""
    figure = figure_of(9, 3.6)
    axes, drawn = figure.subplots(), False
    for (name, run), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        lines = [line for line in read_metrics(run) if "step" in line and "loss" in line]
        if lines:
            steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
            axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(losses), color=colour, linewidth=1.6, label=name)
            drawn = True
    if not drawn:
        return None
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title("training loss", fontsize=11)
    axes.legend(frameon=False)
    return _image(figure)


def draw_contact_sheet(series: Series, context: int) -> Image.Image:
    """Rows: for the first clips, the real video and each model's; columns: frame numbers; context frames framed."""
    clips = min(SHEET_CLIPS, len(next(iter(series.values()))))
    rows = [(f"{number}  {name}", series[name][number]) for number in range(clips) for name in series]
    return contact_sheet([video_THWC for _, video_THWC in rows], context, _SHEET_COLUMNS, [label for label, _ in rows])


def side_by_side(series: Series, context: int) -> NDArray[np.uint8]:
    """Video_THWC of the first clips: each frame is a contact sheet, a row for the real clips and one for each model."""
    clips = min(VIDEO_CLIPS, len(next(iter(series.values()))))
    frames = []
    for frame in range(len(next(iter(series.values()))[0])):
        rows = [video_BTHWC[:clips, frame] for video_BTHWC in series.values()]
        sheet = contact_sheet(rows, clips if frame < context else 0, labels=list(series))
        ImageDraw.Draw(sheet).text((4, 4), str(frame + 1), fill=_TEXT_COLOUR, font=ImageFont.load_default(size=13))
        frames.append(np.asarray(sheet)[: sheet.height // 2 * 2, : sheet.width // 2 * 2])  # H.264 needs even sizes
    return np.stack(frames)


def _smooth(values: list[float]) -> NDArray[np.float64]:
    """Mean over the last 5% of the values before each."""
    span = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - span)
    smoothed: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return smoothed


def figure_of(width: float, height: float) -> Figure:
    """An empty picture in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def _image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file).convert("RGB")
