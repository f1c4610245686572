"""A recorded game as a protocol: what a model dreams under recorded actions, read by inverse dynamics.

A recording has no simulator to ask. The network that reads the actions (magi.evaluation.worlds.inverse_dynamics) is
trained on real videos of the same folder that no clip is of, as they are and as the autoencoders of the models leave
them, or it would take what an autoencoder loses for another action. How often it is right on the real clips, and on
their reconstructions, is as much as a model can reach. Beside it stand the same under another clip's actions, and PSNR.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from magi.data.actions import video_track
from magi.errors import DataError
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.evaluation import RECONSTRUCTED, Evaluation
from magi.evaluation.protocol.ground_truth import Curves, FrameRange, judge, range_mean, score_series
from magi.evaluation.protocol.result import GroundTruthScores, Target
from magi.evaluation.worlds.ground_truth import BADNESS, psnr
from magi.evaluation.worlds.inverse_dynamics import train_inverse_dynamics
from magi.evaluation.worlds.protocol import compared_videos

MOST_VIDEOS = 64
"""Videos that the network is trained on at most, so that they fit in memory."""
BELOW_FLOOR = 0.05
"""What a model may obey less than the autoencoder's reconstructions of the real clips."""


def score_game(evaluation: Evaluation) -> GroundTruthScores:
    """Measure real, reconstructed and dreamed clips.

    ``ValueError`` for models of different actions; ``DataError`` for bad tracks and for actions that are no kinds.
    """
    protocol, rows = evaluation.protocol, evaluation.predicted
    actions = {model.config.model.actions for model in evaluation.models.values()}
    if len(actions) != 1:
        raise ValueError(
            f"{protocol.name}: models of {sorted(actions)} actions are not of one game; evaluate each alone"
        )
    (kinds,) = actions
    others = _other_rows(evaluation)
    training = [
        evaluation.clips.batches(others, evaluation.batch),
        *(evaluation.reconstructed_rows(model, others) for model in evaluation.by_autoencoder.values()),
    ]
    reader = train_inverse_dynamics(
        torch.cat([part for parts in training for part in parts]).numpy(),
        np.tile(_tracks(evaluation, [row.video for row in others], kinds), (len(training), 1)),
        kinds,
        on_step=lambda done, total: evaluation.on_progress("training inverse dynamics", done, total),
    )
    real_BTHWC = torch.cat(list(evaluation.real(protocol.context_set, 0, len(rows)))).numpy()
    action_BT = _tracks(evaluation, [row.video for row in rows], kinds)
    videos = compared_videos(evaluation, real_BTHWC)
    curves: dict[str, Curves] = {}
    for name, video_BTHWC in videos.items():
        read_BT = reader.read(video_BTHWC)
        curves[name] = {
            "control": _equal(read_BT, action_BT),
            "control_shuffled": _equal(read_BT, np.roll(action_BT, 1, axis=0)),
            "psnr": psnr(video_BTHWC, real_BTHWC),
        }
    generated = FrameRange(protocol.context_frames + 1, protocol.frames)
    floor = next(curves[name] for name in videos if name.startswith(RECONSTRUCTED))
    least = round(range_mean(floor["control"], generated).value - BELOW_FLOOR, 3)
    badness = {metric: BADNESS[metric] for metric in floor}
    targets = [Target(generated.name, "control", least, None)]
    return GroundTruthScores(
        series={name: score_series(values, badness, [generated]) for name, values in curves.items()},
        targets={name: judge(curves[name], targets, [generated]) for name in evaluation.models},
        inverse_dynamics_videos=len(others),
    )


def _other_rows(evaluation: Evaluation) -> list[ClipRow]:
    """The first frames of videos that no clip is of."""
    return [replace(evaluation.predicted[0], video=video) for video in evaluation.unused_videos[:MOST_VIDEOS]]


def _tracks(evaluation: Evaluation, videos: Sequence[str], kinds: int) -> NDArray[np.int64]:
    """Action_BT, the number of what led to each frame; 0 at the first."""
    protocol, root = evaluation.protocol, evaluation.clips.index.root
    tracks = []
    for video in videos:
        rows_TA = video_track(root / video, kinds, protocol.frames)[1:]
        if not np.isin(rows_TA, (0, 1)).all() or not (rows_TA.sum(1) == 1).all():
            raise DataError(f"{root / video}: {protocol.name} needs one of {kinds} kinds of action at every frame")
        tracks.append(np.concatenate([[0], rows_TA.argmax(1)]))
    return np.stack(tracks)


def _equal(read_BT: NDArray[np.int64], action_BT: NDArray[np.int64]) -> NDArray[np.float64]:
    return (read_BT == action_BT).astype(np.float64)
