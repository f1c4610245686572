"""The pictures show the pixels that were measured, in their places."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magi.data.sample_grid import CONTEXT_COLOUR
from magi.evaluation.plots import draw_contact_sheet, draw_training, side_by_side

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
