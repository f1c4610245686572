"""The files a person looks at: one self-contained HTML page, pictures, videos, and the table of the README.

The page loads nothing from elsewhere: pictures and the video are inside it. Knows digits.json
(magi.evaluation.moving_digits.protocol says what is in it) and pictures (magi.evaluation.plots); no models.
"""

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magi.data.video_writer import write_gif, write_mp4, write_png
from magi.evaluation.moving_digits.ground_truth import ORACLES, RealClip
from magi.evaluation.plots import Series, draw_contact_sheet, draw_curves, draw_training, png_bytes, side_by_side
from magi.files import write_markdown_block

_FPS = 12.5  # half the speed of the built-in videos, so that one can follow
_HEADINGS = {"class_kept": "class kept", "path_error_px": "path error (px)", "energy_ratio": "ink / real ink"}
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff; max-width: 1120px; margin: 2.5rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.note, figcaption { color: #555; font-size: .9rem; max-width: 75ch; } p.note { margin: .3rem 0 .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e3e3e6; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { font-weight: 600; background: #f6f6f8; }
tr.range th { text-align: left; padding-top: .9rem; font-weight: 600; }
td small { color: #777; margin-left: .35em; } .met { color: #0a7a3d; } .missed { color: #b3261e; }
.wide { overflow-x: auto; } img, video { max-width: 100%; height: auto; } figure { margin: 0; }
table.settings th { font-weight: 400; color: #555; text-align: left; background: none; }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
"""


def write_report(
    out: Path, results: dict[str, Any], series: Series, clips: Sequence[RealClip], runs: Mapping[str, Path]
) -> None:
    """Write curves.png, contact_sheet.png, comparison.mp4, comparison.gif and report.html into ``out``."""
    context = results["settings"]["context"]
    curves, sheet = draw_curves(results), draw_contact_sheet(series, clips, context)
    write_png(out / "curves.png", curves)
    write_png(out / "contact_sheet.png", sheet)
    comparison_THWC = side_by_side(series, context)
    write_mp4(out / "comparison.mp4", comparison_THWC, _FPS)
    write_gif(out / "comparison.gif", comparison_THWC[::2], _FPS)  # every other frame, at full speed: GIFs are large
    pictures = {"curves": png_bytes(curves), "sheet": png_bytes(sheet)}
    training = draw_training(runs)
    if training is not None:
        pictures["training"] = png_bytes(training)
    page = report_html(results, pictures, (out / "comparison.mp4").read_bytes())
    _write_text(out / "report.html", page)


def report_html(results: dict[str, Any], pictures: Mapping[str, bytes], video: bytes) -> str:
    """The page: verdict, figures, video, curves, contact sheet, training, how it was measured."""
    settings, classifier = results["settings"], results["classifier"]
    first = settings["context"] + 1
    parts = [
        "<h1>Continued digits</h1>",
        f'<p class="note">{settings["count"]} held-out clips of {settings["videos"]["size"]} x '
        f"{settings['videos']['size']} pixels: {settings['context']} context frames are given, frames {first} to "
        f"{settings['frames']} are generated, one after another"
        f"{', with the class told' if settings['labels'] else ', without being told the class'}.</p>",
        _targets_section(results),
        "<h2>Figures</h2>",
        '<p class="note">Means over clips and frames, with 95% bootstrap intervals over clips. <b>real</b> and '
        "<b>vae</b> are the real clips and their reconstructions by the autoencoder, through the same oracles: what "
        "can be reached at most.</p>",
        _figures_table(results),
        "<h2>Side by side</h2>",
        f'<p class="note">The first clips, not picked; at half speed. Context frames have an orange frame.</p>'
        f'<video src="{_data("video/mp4", video)}" controls loop muted autoplay playsinline></video>',
        _picture(
            "Frame by frame",
            pictures["curves"],
            "Mean over clips, 95% interval. Black lines: targets. Ink is drawn up to 3.",
        ),
        _picture("Contact sheet", pictures["sheet"], "The digit's class and the source of each row on the left."),
    ]
    if "training" in pictures:
        parts.append(_picture("Training", pictures["training"], "Faint: each log line; solid: running mean."))
    parts += [
        "<h2>How it was measured</h2>",
        f"<ul><li><b>class kept</b>: share of frames whose glyph a small classifier still calls the clip's class. The "
        f"classifier was trained on clean digits; it is right on {classifier['accuracy_now']:.2%} of clean held-out "
        f"digits. A frame without ink counts as wrong.</li>"
        "<li><b>path error</b>: distance of the ink's centroid from the exact path, in pixels. A frame without ink "
        "counts as half the frame's width.</li>"
        f"<li><b>ink / real ink</b>: sum of grey levels over that of the real frame. Levels below "
        f"{settings['ink_floor']} of 255 count as black, here and for the centroid.</li>"
        "<li><b>worst bin</b>: the worst mean over ten consecutive frames of the range.</li></ul>",
        _settings_table(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Continued digits</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def results_table(results: dict[str, Any]) -> str:
    """The figures as Markdown: a row a series, for the near and the far frames; below, how they were measured."""
    ranges = list(next(iter(results["series"].values()))["ranges"])[:2]
    columns = [(frames, oracle) for frames in ranges for oracle in ORACLES]
    lines = ["| frames " + "".join(f"| {frames}: {_HEADINGS[oracle]} " for frames, oracle in columns) + "|"]
    lines.append("|---" + "|---:" * len(columns) + "|")
    for name, series in results["series"].items():
        figures = "".join(f"| {series['ranges'][frames][oracle]['mean']:.2f} " for frames, oracle in columns)
        lines.append(f"| {name} {figures}|")
    return "\n".join(lines) + "\n\n" + _how(results)


def _how(results: dict[str, Any]) -> str:
    settings, classifier, targets = results["settings"], results["classifier"], results["targets"]
    missed = [f"{name} ({_missed(judged)})" for name, judged in targets.items() if _missed(judged)]
    sentences = [
        f"{settings['count']} held-out clips of seed {settings['videos']['seed']},",
        f"{settings['context']} context frames, class {'told' if settings['labels'] else 'not told'}.",
        f"The classifier behind *class kept* is right on {classifier['accuracy_now']:.2%} of "
        f"{classifier['clips_now']} clean held-out digits.",
    ]
    if any(targets.values()):
        sentences.append(f"Targets missed: {'; '.join(missed)}." if missed else "All targets are met.")
    return " ".join(sentences)


def _missed(judged: Sequence[dict[str, Any]]) -> str:
    """The targets that are not met, in words; "all" where none is, and there are several."""
    missed = [_target_text(one) for one in judged if not one["met"]]
    return "all" if len(missed) == len(judged) > 1 else ", ".join(missed)


def write_results_table(results: Path, readme: Path) -> None:
    """Rewrite the block of ``readme`` between the markers of results:digits from a digits.json.

    Raises ``ValueError`` where the markers are not there, once each and in order.
    """
    write_markdown_block(readme, "digits", results_table(json.loads(results.read_text(encoding="utf-8"))))


def _targets_section(results: dict[str, Any]) -> str:
    """A row a target, a column a model; nothing where no target is for these frames."""
    judged = results["targets"]
    rows = []
    for number, target in enumerate(next(iter(judged.values()))):
        cells = [
            f'<td class="{"met" if one[number]["met"] else "missed"}">{one[number]["value"]:.2f} '
            f"{'met' if one[number]['met'] else 'missed'}</td>"
            for one in judged.values()
        ]
        rows.append(f"<tr><td>{html.escape(_target_text(target))}</td>{''.join(cells)}</tr>")
    if not rows:
        return ""
    models = "".join(f"<th>{html.escape(name)}</th>" for name in judged)
    head = f"<thead><tr><th>mean over clips and frames</th>{models}</tr></thead>"
    return f'<h2>Targets</h2><div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _target_text(target: dict[str, Any]) -> str:
    bounds = [f"at least {target['low']:g}"] if target["high"] is None else [f"at most {target['high']:g}"]
    if target["low"] is not None and target["high"] is not None:
        bounds = [f"within {target['low']:g} to {target['high']:g}"]
    return f"{_HEADINGS[target['oracle']]} of frames {target['frames']} {bounds[0]}"


def _figures_table(results: dict[str, Any]) -> str:
    """For each range of frames a row a series; for each oracle the mean with its interval, and the worst bin."""
    head = "".join(f"<th>{_HEADINGS[oracle]}</th><th>worst bin</th>" for oracle in ORACLES)
    bodies = []
    for frames in next(iter(results["series"].values()))["ranges"]:
        rows = [f'<tr class="range"><th colspan="{1 + 2 * len(ORACLES)}">frames {frames}</th></tr>']
        for name, series in results["series"].items():
            cells = "".join(_figure_cells(series["ranges"][frames][oracle]) for oracle in ORACLES)
            rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>{"".join(bodies)}</table></div>'


def _figure_cells(figure: dict[str, Any]) -> str:
    worst = figure["worst_bin"]
    return (
        f"<td>{figure['mean']:.2f}<small>{figure['low']:.2f}–{figure['high']:.2f}</small></td>"
        f"<td>{worst['mean']:.2f}<small>{worst['frames']}</small></td>"
    )


def _settings_table(results: dict[str, Any]) -> str:
    rows: dict[str, Any] = {"protocol": results["protocol"]}
    rows |= {key: value for key, value in results["settings"].items() if key != "videos"}
    rows |= {f"videos: {key}": value for key, value in results["settings"]["videos"].items()}
    for name, model in results["models"].items():
        rows |= {f"{name}: model": model["id"], f"{name}: autoencoder": model["vae"]}
        rows[f"{name}: sampling"] = ", ".join(f"{key} {value}" for key, value in model["sampling"].items())
    rows |= {f"{key} version": value for key, value in results["versions"].items()}
    body = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items()
    )
    return f'<table class="settings"><tbody>{body}</tbody></table>'


def _picture(title: str, png: bytes, caption: str) -> str:
    return (
        f'<h2>{title}</h2><p class="note">{caption}</p><div class="wide">'
        f'<img alt="{title}" src="{_data("image/png", png)}"></div>'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
