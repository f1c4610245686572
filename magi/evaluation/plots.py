"""Pictures of an evaluation: curves over frame numbers, training curves, and videos side by side.

Clips are shown in the order of their numbers, the first ones, never picked. Colours are those of Okabe and Ito, which
colour-blind people tell apart. Knows no files but the metrics of a run, and no HTML.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magi.data.video_writer import CONTEXT_COLOUR, contact_sheet
from magi.evaluation.moving_digits.ground_truth import RealClip
from magi.training.log import read_metrics

_LABELS = {
    "class_kept": "class kept (share of clips)",
    "path_error_px": "distance from exact path (px)",
    "energy_ratio": "ink / real ink",
}
_BASELINES = {"real": ("#444444", "--"), "vae": ("#999999", ":")}
_MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHEET_CLIPS, _SHEET_COLUMNS = 4, 16
_VIDEO_CLIPS, _PER_ROW, _VIDEO_HEIGHT, _GAP, _CAPTION = 6, 2, 128, 6, 22
_INK = (40, 40, 40)

Series = Mapping[str, NDArray[np.uint8]]
"""Name -> video_BTHWC; 'real' first."""


def draw_curves(results: dict[str, Any]) -> Image.Image:
    """Each oracle over frame numbers, mean over clips with its 95% interval; context shaded, targets as black lines."""
    figure = _figure(13.5, 4.2)
    panels = figure.subplots(1, 3)
    for oracle, axes in zip(_LABELS, panels, strict=True):
        for name, (colour, style) in _styles(results["series"]).items():
            curve = results["series"][name]["per_frame"][oracle]
            numbers = np.arange(1, len(curve["mean"]) + 1)
            axes.plot(numbers, curve["mean"], style, color=colour, linewidth=1.6, label=name)
            axes.fill_between(numbers, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        _draw_targets(axes, results["targets"], oracle)
        axes.axvspan(0.5, results["settings"]["context"] + 0.5, color="#FFAA00", alpha=0.25, linewidth=0)
        axes.set_xlim(0.5, results["settings"]["frames"] + 0.5)
        axes.set_xlabel("frame number (context shaded)")
        axes.set_title(_LABELS[oracle], fontsize=11)
        axes.set_ylim(bottom=0)
    panels[0].set_ylim(0, 1.03)
    _, high = panels[2].get_ylim()
    panels[2].set_ylim(0, max(1.5, min(high, 3.0)))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return _image(figure)


def draw_training(runs: Mapping[str, Path]) -> Image.Image | None:
    """Training losses of ``runs`` (name -> run folder) over steps; None where no run has any."""
    figure = _figure(9, 3.6)
    axes, drawn = figure.subplots(), False
    for (name, run), colour in zip(runs.items(), _MODEL_COLOURS * len(runs), strict=False):
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


def draw_contact_sheet(series: Series, clips: Sequence[RealClip], context: int) -> Image.Image:
    """Rows: for the first clips, the real video and each model's; columns: frame numbers; context frames framed."""
    rows, labels = [], []
    for number, clip in enumerate(clips[:_SHEET_CLIPS]):
        for name in _shown(series):
            rows.append(series[name][number])
            labels.append(f"{clip.label}  {name}")
    return contact_sheet(rows, context, _SHEET_COLUMNS, labels)


def side_by_side(series: Series, context: int) -> NDArray[np.uint8]:
    """Video_THWC of the first clips, two clips a row: the real video, then each model's, with captions on top."""
    names = _shown(series)
    zoom = max(1, round(_VIDEO_HEIGHT / series[names[0]].shape[2]))
    frames, height, width = len(series[names[0]][0]), *(zoom * side for side in series[names[0]].shape[2:4])
    clips = min(_VIDEO_CLIPS, len(series[names[0]]))
    cells: dict[tuple[int, int], NDArray[np.uint8]] = {}  # place (x, y) -> enlarged video_THWC
    captions: dict[int, str] = {}
    group = len(names) * (width + _GAP) + 3 * _GAP
    for clip in range(clips):
        for column, name in enumerate(names):
            x = _GAP + (clip % _PER_ROW) * group + column * (width + _GAP)
            y = _CAPTION + _GAP + (clip // _PER_ROW) * (height + _GAP)
            cells[x, y] = series[name][clip].repeat(zoom, 1).repeat(zoom, 2)
            captions[x] = name
    rows = -(-clips // _PER_ROW)
    size = (min(clips, _PER_ROW) * group, rows * (height + _GAP) + _GAP + 2 * _CAPTION)
    blank = _captioned(size, captions, width)
    return np.stack([_page(blank, cells, frame, frame < context) for frame in range(frames)])


def _captioned(size: tuple[int, int], captions: Mapping[int, str], width: int) -> Image.Image:
    """A white page of ``size`` made even, as H.264 needs it, with a caption over each column."""
    page, font = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), (255, 255, 255)), _font(15)
    draw = ImageDraw.Draw(page)
    for x, name in captions.items():
        draw.text((x + width / 2, _CAPTION / 2 + 2), _fitted(name, font, width), fill=_INK, font=font, anchor="mm")
    return page


def _page(
    blank: Image.Image, cells: Mapping[tuple[int, int], NDArray[np.uint8]], frame: int, given: bool
) -> NDArray[np.uint8]:
    """One frame of the side-by-side video; context frames are framed and named."""
    page = blank.copy()
    draw = ImageDraw.Draw(page)
    for (x, y), video_THWC in cells.items():
        image = Image.fromarray(video_THWC[frame])
        if given:
            draw.rectangle((x - 3, y - 3, x + image.width + 2, y + image.height + 2), fill=CONTEXT_COLOUR)
        page.paste(image, (x, y))
    text = f"frame {frame + 1}" + (", context" if given else "")
    draw.text((_GAP, page.height - _CAPTION / 2 - 1), text, fill=_INK, font=_font(13), anchor="lm")
    return np.asarray(page)


def png_bytes(image: Image.Image) -> bytes:
    """``image`` as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _shown(series: Series) -> list[str]:
    """The real video and the models; reconstructions would only widen the pictures."""
    return [name for name in series if name.split(" ")[0] != "vae"]


def _styles(names: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each series; models are solid."""
    colours = iter(_MODEL_COLOURS * len(names))
    return {name: _BASELINES.get(name.split(" ")[0]) or (next(colours), "-") for name in names}


def _draw_targets(axes: Axes, targets: dict[str, list[dict[str, Any]]], oracle: str) -> None:
    for target in next(iter(targets.values()), []):
        first, last = (int(number) for number in target["frames"].split("-"))
        for bound in (target["low"], target["high"]):
            if target["oracle"] == oracle and bound is not None:
                axes.plot([first - 0.5, last + 0.5], [bound, bound], color="black", linewidth=1)


def _smooth(values: list[float]) -> NDArray[np.float64]:
    """Mean over the last 5% of the values before each."""
    span = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - span)
    smoothed: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return smoothed


def _fitted(text: str, font: Any, width: float) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…" if text.endswith("…") else text[:-1] + "…"
    return text


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file).convert("RGB")
