"""Ground truth of built-in videos as scores of a protocol: class, position and brightness of the digit in every frame.

The real clips, the autoencoder's reconstructions of them and every model's samples are measured alike
(magi.evaluation.moving_digits.ground_truth) and held against targets. Knows no command line and no pictures.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magi.data.decoding.frames import VideoProbe, read_frames
from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import held_out_accuracy
from magi.evaluation.moving_digits.ground_truth import BADNESS, NEAR_FRAMES, RealClip, measure
from magi.evaluation.protocol.clip_table import by_number
from magi.evaluation.protocol.evaluation import REAL, Evaluation
from magi.evaluation.protocol.ground_truth import frame_ranges, judge, made_videos, score_series
from magi.evaluation.protocol.result import GroundTruthScores, Target

CLASSIFIER_CLIPS = 500  # of the classifier's held-out digits, classified again with every evaluation


TARGETS = (
    Target("5-16", "class_accuracy", 0.90, None),
    Target("5-16", "position_error_px", None, 3.0),
    Target("17-104", "class_accuracy", 0.60, None),
    Target("17-104", "intensity_ratio", 0.7, 1.3),
)
"""For 4 context frames and 104 frames in all. "Up to frame 104" is judged on 17-104, which is harder than 5-104."""


def score_digits(evaluation: Evaluation) -> GroundTruthScores:
    """Measure real, reconstructed and generated clips; ``DataError`` where samples or sidecars are missing."""
    protocol, classifier = evaluation.protocol, evaluation.metrics.classifier
    assert classifier is not None, "a protocol of ground truth is measured with the digit classifier"
    root, rows = evaluation.clips.index.root, evaluation.predicted
    clips = [read_clip(root / row.video, protocol.frames, protocol.score_size) for row in rows]
    evaluation.on_progress("checking the classifier", 0, 1)
    accuracy = held_out_accuracy(classifier, CLASSIFIER_CLIPS, protocol.score_size)
    evaluation.on_progress("checking the classifier", 1, 1)
    curves = {}
    series = {REAL: iter([torch.from_numpy(np.stack([clip.video_THWC for clip in clips]))])} | made_videos(evaluation)
    for number, (name, videos) in enumerate(series.items()):
        evaluation.on_progress("measuring", number, len(series))
        curves[name] = measure(torch.cat(list(videos)).numpy(), clips, classifier)
    evaluation.on_progress("measuring", len(series), len(series))
    ranges = frame_ranges(protocol.context_frames, protocol.frames, NEAR_FRAMES)
    return GroundTruthScores(
        series={name: score_series(values, BADNESS, ranges) for name, values in curves.items()},
        targets={name: judge(curves[name], TARGETS, ranges) for name in evaluation.models},
        classifier_accuracy=round(accuracy, 4),
        classifier_clips=CLASSIFIER_CLIPS,
    )


def read_real_clips(videos: Path, count: int, frames: int) -> list[RealClip]:
    """The first ``frames`` frames of the first ``count`` clips of ``videos``, in the order of their numbers.

    Clip numbers go round the classes, so that the first clips hold all of them. ``ValueError`` where the folder does
    not hold what is asked for.
    """
    paths = sorted(videos.glob("[0-9]/[0-9]_*.mp4"), key=by_number)
    if len(paths) < count:
        raise ValueError(f"{videos}: holds {len(paths)} built-in videos, asked {count}; ask fewer or write more")
    return [read_clip(path, frames) for path in paths[:count]]


def read_clip(path: Path, frames: int, size: int | None = None) -> RealClip:
    """The first ``frames`` frames of a built-in video with its ground truth, of ``size`` where one is given.

    ``ValueError`` for another size, too few frames or several digits; ``DataError`` where video or sidecar is damaged.
    """
    sidecar = _read_sidecar(path.with_suffix(".json"))
    if len(sidecar["glyphs"]) != 1:
        raise ValueError(f"{path}: {len(sidecar['glyphs'])} glyphs; ground truth needs videos of one glyph")
    if sidecar["frames"] < frames:
        raise ValueError(f"{path}: a clip of {sidecar['frames']} frames, asked {frames}; ask fewer frames")
    if size not in (None, sidecar["size"]):
        raise ValueError(f"{path}: {sidecar['size']} pixels high and wide, expected {size}; give --size of the videos")
    probe = VideoProbe(sidecar["frames"], sidecar["size"], sidecar["size"], sidecar["fps"], pts=None)
    path_T2 = np.array(sidecar["glyphs"][0]["positions"], dtype=np.float64)[:frames]
    return RealClip(path.stem, read_frames(path, range(frames), probe), sidecar["class"], path_T2)


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; ground truth needs built-in videos: magi data digits OUT --seed 1")
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("size", "fps", "frames", "class"):
            sidecar[key] = int(sidecar[key])
        positions_T2 = np.array(sidecar["glyphs"][0]["positions"], dtype=np.float64)
        if positions_T2.shape != (sidecar["frames"], 2):
            raise ValueError(f"positions of shape {positions_T2.shape}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a sidecar of built-in digits ({error}); write the videos again") from None
    return sidecar
