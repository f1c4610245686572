"""A built-in world as a protocol: what a model dreams under recorded actions against the exact simulator.

The real clips, the autoencoder's reconstructions of them, every model's dream under the same actions and the last
context frame repeated are measured alike (magi.evaluation.worlds.ground_truth) and held against targets.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magi.data.decoding.frames import VideoProbe, read_frames
from magi.data.worlds.contract import World
from magi.data.worlds.worlds import find_world
from magi.errors import DataError
from magi.evaluation.protocol.evaluation import REAL, RECONSTRUCTED, Evaluation
from magi.evaluation.protocol.ground_truth import Curves, FrameRange, judge, made_videos, range_mean, score_series
from magi.evaluation.protocol.result import GroundTruthScores, Target
from magi.evaluation.worlds.ground_truth import (
    BADNESS,
    PlayedClip,
    Readings,
    measure,
    reactions,
    read_videos,
    residual_limit,
)
from magi.files import read_text

REPEATED = "last frame repeated"
_NEAR = 32  # generated frames


def score_world(evaluation: Evaluation) -> GroundTruthScores:
    """Measure real, reconstructed and dreamed clips; ``DataError`` where samples or sidecars are missing."""
    protocol = evaluation.protocol
    root, context = evaluation.clips.index.root, protocol.context_frames
    clips = [read_clip(root / row.video, protocol.frames) for row in evaluation.predicted]
    world = find_world(clips[0].world)
    real_BTHWC = np.stack([clip.video_THWC for clip in clips])
    videos = compared_videos(evaluation, real_BTHWC)
    readings: dict[str, Readings] = {}
    for number, (name, video_BTHWC) in enumerate(videos.items()):
        evaluation.on_progress("reading states", number, len(videos))
        readings[name] = read_videos(world, video_BTHWC)
    evaluation.on_progress("reading states", len(videos), len(videos))
    floor = next(name for name in videos if name.startswith(RECONSTRUCTED))
    limit = residual_limit(readings[floor])
    curves = {name: measure(world, videos[name], readings[name], clips, limit) for name in videos}
    ranges = _ranges(context, protocol.frames)
    targets = _targets(curves[floor], context, protocol.frames)
    return GroundTruthScores(
        series={name: score_series(values, BADNESS, ranges) for name, values in curves.items()},
        targets={name: judge(curves[name], targets, ranges) for name in evaluation.models},
        reactions={name: reactions(world, curves[name]["control"], clips, context) for name in videos},
        median_survival={name: _median_survival(curves[name]["alive"], context) for name in videos},
    )


def compared_videos(evaluation: Evaluation, real_BTHWC: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Video_BTHWC of each series: the real clips, their last context frame repeated, reconstructions and dreams."""
    context = evaluation.protocol.context_frames
    last_B1HWC = real_BTHWC[:, context - 1 : context]
    videos = {REAL: real_BTHWC, REPEATED: np.repeat(last_B1HWC, evaluation.protocol.frames, axis=1)}
    return videos | {name: torch.cat(list(parts)).numpy() for name, parts in made_videos(evaluation).items()}


def _ranges(context: int, frames: int) -> list[FrameRange]:
    """Near, all and far generated frames, and the frames that targets name alone."""
    near, all_frames = FrameRange(context + 1, context + _NEAR), FrameRange(context + 1, frames)
    if frames <= near.last:
        return [all_frames]
    far = FrameRange(near.last + 1, frames)
    return [near, all_frames, far, FrameRange(near.last, near.last), FrameRange(frames, frames)]


def _targets(floor: Curves, context: int, frames: int) -> list[Target]:
    """The targets; a position may be 1 pixel (after 32 frames) and 3 (at the last one) off beyond the autoencoder's."""
    all_frames, near, last = (FrameRange(*one) for one in (
        (context + 1, frames), (context + _NEAR, context + _NEAR), (frames, frames)
    ))  # fmt: skip

    def beyond(part: FrameRange, pixels: float) -> float:
        return round(range_mean(floor["position_error"], part).value + pixels, 2)

    targets = [
        Target(all_frames.name, "control", 0.95, None),
        Target(all_frames.name, "things_right", 0.99, None),
        Target(all_frames.name, "violation", None, 0.01),
        Target(last.name, "position_error", None, beyond(last, 3)),
    ]
    return [*targets, Target(near.name, "position_error", None, beyond(near, 1))] if near.last < frames else targets


def _median_survival(alive_BT: NDArray[np.float64], context: int) -> float:
    """Generated frames up to the first bad one, the median over clips; all of them where none is bad."""
    return float(np.median(alive_BT[:, context:].sum(1)))


def read_clip(path: Path, frames: int) -> PlayedClip:
    """The first ``frames`` frames of a world's video with its actions and states.

    ``ValueError`` without a sidecar or for too few frames; ``DataError`` where the sidecar is damaged.
    """
    sidecar_path = path.with_suffix(".json")
    if not sidecar_path.is_file():
        raise ValueError(
            f"{sidecar_path}: no such file; a world is measured on its own videos: magi data world NAME OUT"
        )
    try:
        sidecar: dict[str, Any] = json.loads(read_text(sidecar_path))
        world: World[Any] = find_world(sidecar["world"])
        actions = (0, *(int(action) for action in sidecar["actions"][1:frames]))
        states = tuple(world.state.from_json(values) for values in sidecar["states"][:frames])
        whole = VideoProbe(int(sidecar["frames"]), world.size, world.size, world.fps, pts=None)
        if max(actions) >= len(world.actions) or min(actions) < 0:
            raise ValueError(f"an action is not one of 0..{len(world.actions) - 1}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{sidecar_path}: not a sidecar of a world ({error}); write the videos again") from None
    if min(len(actions), len(states), whole.frames) < frames:
        raise ValueError(f"{path}: a clip of {whole.frames} frames, asked {frames}; ask fewer frames")
    return PlayedClip(sidecar["world"], read_frames(path, range(frames), whole), actions, states)
