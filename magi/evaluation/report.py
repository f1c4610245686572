"""What a person looks at after an evaluation: figures as rows of text, pictures, a video, and one page with all of it.

The page loads nothing from elsewhere: pictures and the video are inside it. Its layout is report.html, a Jinja
template, in the frame of page.html. Knows results (magi.evaluation.protocol.result) and pictures
(magi.evaluation.plots).
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from magi.data.video_writer import write_gif, write_mp4, write_png
from magi.evaluation.metrics.bootstrap import Estimate
from magi.evaluation.plots import (
    METRIC_TITLES,
    VIDEO_CLIPS,
    Series,
    draw_contact_sheet,
    draw_frechet,
    draw_ground_truth,
    draw_training,
    side_by_side,
)
from magi.evaluation.protocol.evaluation import REAL, Evaluation
from magi.evaluation.protocol.result import (
    EvaluationResult,
    FrechetScores,
    GroundTruthScores,
    JudgedTarget,
    ModelDescription,
    MotionControl,
)
from magi.evaluation.protocol.samples import read_samples, sample_plan
from magi.files import write_text

FILES = ("comparison.mp4", "comparison.gif", "contact_sheet.png", "curves.png", "report.html")
_FPS = 12.5  # half the speed of the built-in videos, so that one can follow
_TEMPLATES = (Path(__file__).parent, Path(__file__).parent / "text")


def write_report(evaluation: Evaluation, result: EvaluationResult, runs: Mapping[str, Path]) -> None:
    """Write the files of ``FILES`` into the folder of the evaluation.

    ``runs`` are the run folders, by name, whose training curves join the page.
    """
    out, protocol, series = evaluation.out, evaluation.protocol, shown_clips(evaluation)
    curves, sheet = _curves(result), draw_contact_sheet(series, protocol.context_frames)
    comparison_THWC, training = side_by_side(series, protocol.context_frames), draw_training(runs)
    write_png(out / "contact_sheet.png", sheet)
    write_png(out / "curves.png", curves)
    write_mp4(out / "comparison.mp4", comparison_THWC, _FPS)
    write_gif(out / "comparison.gif", comparison_THWC[::2], _FPS)  # every other frame, at full speed: GIFs are large
    pictures = {"Curves": curves, "Contact sheet": sheet} | ({} if training is None else {"Training": training})
    write_text(out / "report.html", report_html(result, pictures, (out / "comparison.mp4").read_bytes()))


def shown_clips(evaluation: Evaluation) -> Series:
    """The first clips, at most ``VIDEO_CLIPS``: the real ones, then each model's."""
    count = min(VIDEO_CLIPS, evaluation.protocol.count)
    videos = {REAL: evaluation.real(evaluation.protocol.context_set, 0, count)}
    for name in evaluation.models:
        videos[name] = read_samples(evaluation, sample_plan(evaluation, name), 0, count)
    return {name: torch.cat(list(parts)).numpy() for name, parts in videos.items()}


def report_html(result: EvaluationResult, pictures: Mapping[str, Image.Image], video: bytes) -> str:
    """The page: figures, video, pictures (title -> picture), how it was measured."""
    scores, truth = result.frechet, result.ground_truth
    return render_page(
        "report.html",
        result=result,
        protocol=result.protocol,
        score_rows=[] if scores is None else score_rows(result),
        drift_rows=[] if scores is None else drift_rows(scores),
        frame_rows=[] if scores is None else frame_rows(scores),
        metrics=metric_titles(truth) if truth else {},
        targets=[target_text(target) for target in next(iter(truth.targets.values()), ())] if truth else [],
        ranges=list(next(iter(truth.series.values())).ranges) if truth else [],
        pictures={title: png_base64(picture) for title, picture in pictures.items()},
        video=base64.b64encode(video).decode("ascii"),
        model_rows=model_rows(result.models),
        card=json.dumps(result.card, indent=1),
    )


def _curves(result: EvaluationResult) -> Image.Image:
    if result.frechet is not None:
        return draw_frechet(result.frechet)
    assert result.ground_truth is not None, "a result has scores of one kind"
    return draw_ground_truth(result.ground_truth, result.protocol["context_frames"], result.protocol["frames"])


def text_rows(result: EvaluationResult) -> list[tuple[str, str]]:
    """What was measured and its figures, for the terminal."""
    if result.frechet is not None:
        return score_rows(result) + drift_rows(result.frechet) + frame_rows(result.frechet)
    return ground_truth_rows(result.ground_truth) if result.ground_truth is not None else []


def score_rows(result: EvaluationResult) -> list[tuple[str, str]]:
    """Every score by a Frechet distance, models first."""
    scores, rows = result.frechet, []
    assert scores is not None, "a result without a Frechet distance has no such rows"
    for name, model in scores.models.items():
        rows.append((name, _estimate(model.score)))
        if model.score_at_infinity is not None:
            rows.append((f"{name}, at infinitely many clips", f"{model.score_at_infinity:.3f}"))
        rows.append((f"autoencoder of {name} alone", _estimate(model.vae_reconstruction)))
    shared = result.card["data"].get("floor_clips_of_real_videos", 0)
    note = f"; {shared} of its clips are of the real set's videos: too low" if shared else ""
    rows.append(("real against real (the floor)", _estimate(scores.real.floor) + note))
    if scores.real.floor_expected is not None:
        rows.append(("the floor to expect of Gaussian features", f"{scores.real.floor_expected:.3f}"))
    for name, control in scores.real.motion_controls.items():
        whole = result.protocol["folds"] == 1 and control.clips == result.protocol["count"]
        rows.append((f"real, {name.replace('_', ' ')}", _control(control, whole)))
    return rows


def _control(control: MotionControl, whole: bool) -> str:
    """The score of a motion sanity check, the floor of its clips where they are not ``whole`` set, and the verdict."""
    if control.score is None or control.floor is None:
        return f"not run: {control.not_run}"
    text = _estimate(control.score)
    if not whole:
        text += f"; {control.clips} clips, whose floor is {control.floor.value:.3f}"
    return text + ("; INSENSITIVE TO MOTION: no worse than the floor" if control.insensitive_to_motion else "")


def drift_rows(scores: FrechetScores) -> list[tuple[str, str]]:
    """Change between a model's frames over that of the real clips: over all frames, and at the last one."""
    rows = []
    for name, model in scores.models.items():
        ratio = model.drift_ratio
        means = [mean for mean in ratio.mean if mean is not None]
        if ratio.mean[-1] is None:
            text = "no change between real frames to compare with"
        else:
            text = f"{sum(means) / len(means):.3f}; last frame {ratio.mean[-1]:.3f}"
            if ratio.low[-1] is not None and ratio.high[-1] is not None:
                text += f" ({ratio.low[-1]:.3f} to {ratio.high[-1]:.3f})"
        rows.append((f"{name}, change between frames over real", text))
    return rows


def frame_rows(scores: FrechetScores) -> list[tuple[str, str]]:
    """The mean of every metric over the predicted frames."""
    return [
        (f"{name}, {metric}", "every frame is exact" if found.mean is None else f"{found.mean:.4f}")
        for name, model in scores.models.items()
        for metric, found in model.frames.items()
    ]


def ground_truth_rows(scores: GroundTruthScores) -> list[tuple[str, str]]:
    """The means of the ground-truth metrics by series and range, and how many targets each model meets."""
    rows = []
    for name, series in scores.series.items():
        for frames, metrics in series.ranges.items():
            text = "  ".join(f"{metric} {found.value.value:.3f}" for metric, found in metrics.items())
            rows.append((f"{name}, frames {frames}", text))
    for name, survived in scores.median_survival.items():
        rows.append((f"{name}, median survival", f"{survived:g} generated frames"))
    for name, counts in scores.reactions.items():
        shares = ", ".join(f"{count / max(1, sum(counts)):.3f}" for count in counts)
        rows.append((f"{name}, changes of action obeyed after 0, 1, 2, 3 frames or not", shares))
    for name, judged in scores.targets.items():
        if judged:
            rows.append((name, f"{sum(target.met for target in judged)} of {len(judged)} targets met"))
    return rows


def metric_titles(scores: GroundTruthScores) -> dict[str, str]:
    """Title of each metric that was measured."""
    return {metric: METRIC_TITLES[metric] for metric in next(iter(scores.series.values())).per_frame}


def target_text(target: JudgedTarget) -> str:
    """A target in words."""
    return f"{METRIC_TITLES[target.metric]} of frames {target.frames} {bounds_text(target.low, target.high)}"


def bounds_text(low: float | None, high: float | None) -> str:
    """The bounds of a target in words; one of them is there."""
    if low is not None and high is not None:
        return f"within {low:g} to {high:g}"
    return f"at most {high:g}" if low is None else f"at least {low:g}"


def model_rows(models: Mapping[str, ModelDescription]) -> list[tuple[str, str]]:
    """What the samples of every model depend on."""
    rows: list[tuple[str, str]] = []
    for name, model in models.items():
        sampling = ", ".join(f"{key} {value}" for key, value in model.sampling.items())
        rows += [(f"{name}: model", model.id), (f"{name}: autoencoder", model.vae), (f"{name}: sampling", sampling)]
    return rows


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}; std {found.std:.3f})"


def render_page(template: str, **values: Any) -> str:
    """A page from its Jinja template, by the name of the file; all text in ``values`` is escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(**values)


def png_base64(image: Image.Image) -> str:
    """A picture as a page holds it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
