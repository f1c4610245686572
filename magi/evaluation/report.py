"""The files that a person looks at after an evaluation by a protocol: pictures and one page that loads nothing.

Real and made clips stand side by side in the order of their numbers, the first ones, never picked. Curves are drawn
with their bootstrap bands. Knows result.json (magi.evaluation.protocol.score says what is in it) and no models.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from magi.data.video_writer import contact_sheet, write_png
from magi.evaluation.plots import png_bytes
from magi.files import atomic_write, replace_markdown_block

SHOWN = 4
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INTERVAL_STYLES = {"1": "-", "2": "--", "4": "-.", "8": ":"}
_CURVE_TITLES = {
    "adjacent_l2": "change between adjacent frames (RMS, 0..1)",
    "brightness": "brightness (0..1)",
    "sharpness": "sharpness (RMS of the Laplacian)",
    "motion": "motion (pixels a frame)",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff; max-width: 1120px; margin: 2.5rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.note { color: #555; font-size: .9rem; max-width: 75ch; margin: .3rem 0 .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e3e3e6; }
th:first-child, td:first-child { text-align: left; } thead th { font-weight: 600; background: #f6f6f8; }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f8; padding: .8rem; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
"""


def write_protocol_report(
    out: Path, result: Mapping[str, Any], real: NDArray[np.uint8], made: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Write side_by_side.png, curves.png and report.html into ``out``; videos are video_BTHWC, the first clips."""
    sheet = side_by_side_sheet(real, made, result["card"]["protocol"]["context_frames"])
    curves = draw_protocol_curves(result)
    write_png(out / "side_by_side.png", sheet)
    write_png(out / "curves.png", curves)
    with atomic_write(out / "report.html") as beside:
        beside.write_text(_page(result, png_bytes(sheet), png_bytes(curves)), encoding="utf-8")


def side_by_side_sheet(
    real_BTHWC: NDArray[np.uint8], made: Mapping[str, NDArray[np.uint8]], context: int
) -> Image.Image:
    """Rows: each of the first real clips, and below it each model's sample of the same number."""
    rows, labels = [], []
    for number, clip_THWC in enumerate(real_BTHWC[:SHOWN]):
        rows.append(clip_THWC)
        labels.append(f"{number}  real")
        for name, video_BTHWC in made.items():
            rows.append(video_BTHWC[number])
            labels.append(f"{number}  {name}")
    return contact_sheet(rows, context, 16, labels)


def draw_protocol_curves(result: Mapping[str, Any]) -> Image.Image:
    """Change between adjacent frames against real clips at several intervals, the other curves, and frame metrics."""
    figure = Figure(figsize=(13.5, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).ravel()
    for name, axes in zip(_CURVE_TITLES, panels[:4], strict=True):
        _draw_curves(axes, name, result)
    _draw_metric(panels[4], "psnr", "PSNR of predicted frames (dB)", result)
    _draw_frame_distance(panels[5], result)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def _draw_curves(axes: Axes, name: str, result: Mapping[str, Any]) -> None:
    first = 2 if name in ("adjacent_l2", "motion") else 1  # the frame that a change leads to
    if name == "adjacent_l2":
        for interval, curve in result["real"]["drift"].items():
            _band(axes, curve, "#444444", _INTERVAL_STYLES[interval], f"real, interval {interval}", first)
    else:
        _band(axes, result["real"]["curves"][name], "#444444", "-", "real", first)
    for (model, values), colour in zip(result["models"].items(), _COLOURS * len(result["models"]), strict=False):
        _band(axes, values["curves"][name], colour, "-", model, first)
    axes.set_title(_CURVE_TITLES[name], fontsize=11)
    axes.set_xlabel("frame number")
    axes.set_ylim(bottom=0)


def _band(axes: Axes, curve: Mapping[str, list[float]], colour: str, style: str, label: str, first: int) -> None:
    numbers = np.arange(first, first + len(curve["mean"]))
    axes.plot(numbers, curve["mean"], style, color=colour, linewidth=1.6, label=label)
    axes.fill_between(numbers, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)


def _draw_metric(axes: Axes, metric: str, title: str, result: Mapping[str, Any]) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("frame number")
    for (_, values), colour in zip(result["models"].items(), _COLOURS * len(result["models"]), strict=False):
        figures = values["frames"].get(metric)
        if figures is not None:
            found = [np.nan if value is None else value for value in figures["per_frame"]]
            axes.plot(np.arange(figures["first_frame"], figures["first_frame"] + len(found)), found, color=colour)
    if not axes.lines:
        _say(axes, "no predicted frames to compare")


def _draw_frame_distance(axes: Axes, result: Mapping[str, Any]) -> None:
    axes.set_title("FID of every frame", fontsize=11)
    axes.set_xlabel("frame number")
    floor = result["real"].get("frame_fid_floor")
    if floor is None:
        _say(axes, "no Inception weights were given")
        return
    axes.plot(np.arange(1, len(floor) + 1), floor, "--", color="#444444")
    for (_, values), colour in zip(result["models"].items(), _COLOURS * len(result["models"]), strict=False):
        axes.plot(np.arange(1, len(floor) + 1), values["frame_fid"], color=colour)


def _say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#777777")


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What and number of every score, models first: for the terminal and the page."""
    rows = []
    for name, values in result["models"].items():
        rows.append((name, _told(values["score"])))
        if "score_at_infinity" in values:
            rows.append((f"{name}, at infinitely many clips", f"{values['score_at_infinity']:.3f}"))
        rows.append((f"autoencoder of {name} alone", _told(values["vae_reconstruction"])))
    shared = result["card"]["data"].get("floor_clips_of_real_videos", 0)
    note = f"; {shared} of its clips are of the real set's videos: too low" if shared else ""
    rows.append(("real against real (the floor)", _told(result["real"]["floor"]) + note))
    if "floor_expected" in result["real"]:
        rows.append(("the floor to expect of Gaussian features", f"{result['real']['floor_expected']:.3f}"))
    for name, values in result["real"]["battery"].items():
        rows.append((f"real, {name.replace('_', ' ')}", _told_spoilt(values, result["card"]["protocol"])))
    return rows


def _told_spoilt(values: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """One fault of the battery: its number, the floor of its clips where they are not all, and the verdict."""
    if "not_run" in values:
        return f"not run: {values['not_run']}"
    told = _told(values)
    if protocol["folds"] > 1 or values.get("clips", protocol["count"]) != protocol["count"]:
        told += f"; {values['clips']} clips, whose floor is {values['floor']['value']:.3f}"
    return told + ("; BLIND TO MOTION: no worse than the floor" if values.get("blind") else "")


def drift_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Model, and change between its frames over that of the real clips: over all frames, and at the last one."""
    rows = []
    for model, values in result["models"].items():
        ratio = values["drift_ratio"]
        means = [mean for mean in ratio["mean"] if mean is not None]
        if ratio["mean"][-1] is None:
            told = "no change between real frames to compare with"
        else:
            told = f"{sum(means) / len(means):.3f}; last frame {ratio['mean'][-1]:.3f}"
            if ratio["low"][-1] is not None and ratio["high"][-1] is not None:
                told += f" ({ratio['low'][-1]:.3f} to {ratio['high'][-1]:.3f})"
        rows.append((f"{model}, change between frames over real", told))
    return rows


def frame_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Model, metric and mean over the predicted frames."""
    rows = []
    for model, values in result["models"].items():
        for metric, figures in values["frames"].items():
            mean = "every frame is exact" if figures["mean"] is None else f"{figures['mean']:.4f}"
            rows.append((model, metric, mean))
    return rows


def score_table(result: Mapping[str, Any]) -> str:
    """The scores as Markdown, with how they were made below."""
    protocol, versions = result["card"]["protocol"], result["card"]["versions"]
    lines = [
        f"| | {result['score_name']} |",
        "|---|---:|",
        *(f"| {what} | {told} |" for what, told in score_rows(result)),
    ]
    how = (
        f"Protocol {protocol['name']}: {protocol['count']} clips a side, {protocol['frames']} frames, "
        f"{protocol['context_frames']} of them given; 95% intervals; lower is better, and the floor is as low as a "
        f"model can be expected to come. Card {result['card_sha256'][:16]}, torch {versions['torch']}."
    )
    return "\n".join([*lines, "", how])


def write_score_table(result: Path, readme: Path) -> Path:
    """Rewrite the block of ``readme`` between the markers ``results:PROTOCOL:begin`` and ``end`` from a result.json.

    The result itself goes to results/PROTOCOL.json beside ``readme``, so that the table can be held against it: returns
    that file. Raises ``ValueError`` where the markers are not there, once each and in order.
    """
    kept = result.read_text(encoding="utf-8")
    values = json.loads(kept)
    name = values["card"]["protocol"]["name"]
    page = replace_markdown_block(readme, name, score_table(values))
    copy = readme.parent / "results" / f"{name}.json"
    with atomic_write(copy) as beside:
        beside.write_text(kept, encoding="utf-8")
    with atomic_write(readme) as beside:
        beside.write_text(page, encoding="utf-8")
    return copy


def _told(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f}; sd {estimate['spread']:.3f})"


def _page(result: Mapping[str, Any], sheet: bytes, curves: bytes) -> str:
    card, protocol = result["card"], result["card"]["protocol"]
    title = html.escape(f"{result['score_name']} by {protocol['name']}")
    folds = f", {protocol['folds']} folds" if protocol["folds"] > 1 else ""
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="note">{html.escape(protocol["source"])}. {protocol["count"]} clips a side{folds}. '
        f"Card {result['card_sha256'][:16]}.</p>",
        "<h2>Scores</h2>",
        '<p class="note">Lower is better; with 95% intervals. A score means something only against the floor: real '
        "clips against other real clips, the same number. Real clips that were spoilt on purpose must score worse than "
        "the floor (above its interval), or the measure does not see motion.</p>",
        _table(("", result["score_name"]), score_rows(result)),
    ]
    parts += [
        '<h2>Drift</h2><p class="note">Mean change between adjacent frames over that of the real clips: 1 where the '
        "model neither drifts nor freezes.</p>",
        _table(("", "made / real"), drift_rows(result)),
    ]
    if frames := frame_rows(result):
        parts += ["<h2>Predicted frames against the true ones</h2>", _table(("model", "metric", "mean"), frames)]
    parts += [
        '<h2>Side by side</h2><p class="note">The first clips, not picked. Context frames have an orange frame.</p>',
        _picture("real and made clips", sheet),
        '<h2>Frame by frame</h2><p class="note">Means over clips with 95% bootstrap bands.</p>',
        _picture("curves", curves),
        "<h2>Protocol card</h2>",
        f"<pre>{html.escape(json.dumps(card, indent=1))}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<div class="wide"><img alt="{name}" src="data:image/png;base64,{data}"></div>'
