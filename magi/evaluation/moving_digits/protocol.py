"""``magi evaluate digits``: continue held-out built-in videos and hold every frame against exact physics.

``evaluate_digits(models, videos, out)`` reads the first ``context`` frames of each clip of ``videos`` (written by
``magi data digits`` with a seed of its own), lets every model continue them to ``frames`` frames, measures the oracles
of magi.evaluation.moving_digits.ground_truth on the continuations, on the real clips and on the autoencoder's
reconstructions of them, and writes into ``out``:

    digits.json        figures per range and per frame, targets, settings, versions
    report.html        everything below on one page that loads nothing from elsewhere
    curves.png, contact_sheet.png, comparison.mp4, comparison.gif
    clips/             the continuations, lossless; a second call with the same settings reuses them

Frame numbers count from 1. The oracles are described in magi.evaluation.moving_digits.ground_truth, the pictures and
the page in
magi.evaluation.plots and magi.evaluation.moving_digits.report. Knows no options of the command line and no training.
"""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import magi
from magi.data.decoding.frames import VideoProbe, read_frames
from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import held_out_accuracy, load_classifier
from magi.evaluation.moving_digits.ground_truth import (
    ORACLES,
    Curves,
    Interval,
    RealClip,
    frame_ranges,
    measure,
    per_frame,
    range_mean,
    worst_bin,
)
from magi.evaluation.moving_digits.intensity import FLOOR
from magi.evaluation.moving_digits.predictions import RECONSTRUCTED, Progress, continuations, describe, reconstructions
from magi.evaluation.moving_digits.report import write_report
from magi.sampling.pipeline import MagiPipeline

PROTOCOL = "digits-1"
REAL = "real"
_CLASSIFIER_CLIPS = 500  # of the classifier's held-out digits, classified anew with every evaluation


@dataclass(frozen=True)
class Target:
    """The mean of an oracle over a range of frames must lie within [low, high]."""

    frames: str
    oracle: str
    low: float | None
    high: float | None

    def met(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


TARGETS = (
    Target("5-16", "class_kept", 0.90, None),
    Target("5-16", "path_error_px", None, 3.0),
    Target("17-104", "class_kept", 0.60, None),
    Target("17-104", "energy_ratio", 0.7, 1.3),
)
"""For 4 context frames and 104 frames in all. "Up to frame 104" is judged on 17-104, which is harder than 5-104."""


def evaluate_digits(
    models: Mapping[str, MagiPipeline],
    videos: Path,
    out: Path,
    frames: int = 104,
    context: int = 4,
    count: int = 32,
    seed: int = 0,
    batch: int = 8,
    labels: bool = False,
    runs: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate ``models`` (name -> pipeline) on ``count`` clips of ``videos``; returns what digits.json holds.

    ``labels`` tells the models the class; by default they see it in the context only. ``runs`` names the run folders
    whose training curves join the report. Raises ``ValueError`` for settings or videos that do not fit, ``DataError``
    for videos that cannot be read.
    """
    tell: Progress = progress or (lambda what, done, total: None)
    _check(models, frames, context, count, batch)
    clips, source = read_real_clips(videos, count, frames)
    classifier, card = load_classifier()
    tell("checking the classifier", 0, 1)
    accuracy = held_out_accuracy(classifier, _CLASSIFIER_CLIPS, source["size"])
    tell(f"classifier: {accuracy:.4f} of clean held-out digits", 1, 1)
    settings = {"frames": frames, "context": context, "count": count, "seed": seed, "labels": labels}
    series = {REAL: np.stack([clip.video_THWC for clip in clips])} | reconstructions(models, clips, batch, tell)
    for name, model in models.items():
        series[name] = continuations(name, model, clips, out / "clips", settings, batch, tell)
    curves = {}
    for number, (name, video_BTHWC) in enumerate(series.items()):
        tell("measuring", number, len(series))
        curves[name] = measure(video_BTHWC, clips, classifier)
    tell("measuring", len(series), len(series))
    results = {
        "protocol": PROTOCOL,
        "settings": settings | {"ink_floor": FLOOR, "videos": source},
        "versions": {"magi": magi.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "classifier": asdict(card) | {"accuracy_now": round(accuracy, 4), "clips_now": _CLASSIFIER_CLIPS},
        "models": {name: describe(model) for name, model in models.items()},
        "series": {name: _figures(values, context, frames) for name, values in curves.items()},
        "targets": {name: _judge(curves[name], context, frames) for name in models},
    }
    out.mkdir(parents=True, exist_ok=True)
    _write_text(out / "digits.json", json.dumps(results, indent=1) + "\n")
    tell("writing the report", 0, 1)
    write_report(out, results, series, clips, dict(runs or {}))
    tell("writing the report", 1, 1)
    return results


def read_real_clips(videos: Path, count: int, frames: int) -> tuple[list[RealClip], dict[str, Any]]:
    """The first ``frames`` frames of the first ``count`` clips of ``videos``, in the order of their numbers.

    Also returns what the sidecars say of the folder: size, fps, seed. Clip numbers go round the classes, so that the
    first clips hold all of them. ``ValueError`` where the folder does not fit what is asked.
    """
    sidecars = sorted(videos.glob("[0-9]/[0-9]_*.json"), key=lambda path: (path.stem[2:].zfill(12), path.stem))
    if not sidecars:
        raise ValueError(f"{videos}: no built-in videos with sidecars; write them: magi data digits {videos} --seed 1")
    if len(sidecars) < count:
        raise ValueError(f"{videos}: holds {len(sidecars)} clips, asked {count}; ask fewer or write more")
    clips = []
    for path in sidecars[:count]:
        sidecar = _read_sidecar(path)
        if sidecar["glyph_count"] != 1:
            raise ValueError(f"{path}: {sidecar['glyph_count']} glyphs; the oracles need videos of one glyph")
        if sidecar["frames"] < frames:
            raise ValueError(f"{path}: a clip of {sidecar['frames']} frames, asked {frames}; ask fewer frames")
        probe = VideoProbe(sidecar["frames"], sidecar["size"], sidecar["size"], sidecar["fps"], pts=None)
        video_THWC = read_frames(path.with_suffix(".mp4"), range(frames), probe)
        path_T2 = np.array(sidecar["glyphs"][0]["positions"], dtype=np.float64)[:frames]
        clips.append(RealClip(path.stem, video_THWC, int(sidecar["class"]), path_T2))
    return clips, {key: sidecar[key] for key in ("size", "fps", "seed")}


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("size", "fps", "seed", "frames", "class"):
            sidecar[key] = int(sidecar[key])
        sidecar["glyph_count"] = len(sidecar["glyphs"])
        positions_T2 = np.array(sidecar["glyphs"][0]["positions"], dtype=np.float64)
        if positions_T2.shape != (sidecar["frames"], 2):
            raise ValueError(f"positions of shape {positions_T2.shape}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a sidecar of built-in digits ({error}); write the videos again") from None
    return sidecar


def _check(models: Mapping[str, MagiPipeline], frames: int, context: int, count: int, batch: int) -> None:
    if not models:
        raise ValueError("no model to evaluate")
    for name in models:
        if name in (REAL, RECONSTRUCTED) or name.startswith(f"{RECONSTRUCTED} "):
            raise ValueError(f"a model cannot be called '{name}': the report uses that name")
    if context < 1 or context >= frames:
        raise ValueError(f"context {context} must be at least 1 and below the {frames} frames in all")
    if count < 1 or batch < 1:
        raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")


def _figures(curves: Curves, context: int, frames: int) -> dict[str, Any]:
    """What digits.json holds of one series: means, intervals and worst bins per range, and the per-frame curves."""
    ranges: dict[str, Any] = {}
    for part in frame_ranges(context, frames):
        ranges[part.name] = {}
        for oracle in ORACLES:
            bin_of, value = worst_bin(oracle, curves[oracle], part)
            figure = _rounded(range_mean(curves[oracle], part))
            ranges[part.name][oracle] = figure | {"worst_bin": {"frames": bin_of.name, "mean": round(value, 4)}}
    frame_figures = {oracle: [_rounded(interval) for interval in per_frame(curves[oracle])] for oracle in ORACLES}
    return {
        "ranges": ranges,
        "per_frame": {
            oracle: {key: [figure[key] for figure in figures] for key in ("mean", "low", "high")}
            for oracle, figures in frame_figures.items()
        },
    }


def _rounded(interval: Interval) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(interval).items()}


def _judge(curves: Curves, context: int, frames: int) -> list[dict[str, Any]]:
    """Each target whose range is among those evaluated, the value reached and whether that meets it."""
    ranges = {part.name: part for part in frame_ranges(context, frames)}
    judged = []
    for target in TARGETS:
        if target.frames in ranges:
            value = range_mean(curves[target.oracle], ranges[target.frames]).mean
            judged.append(asdict(target) | {"value": round(value, 4), "met": target.met(value)})
    return judged


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
