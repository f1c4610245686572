"""A contact sheet shows the frames it names, and marks those of the context."""

import numpy as np
import pytest

from magi.data.sample_grid import CONTEXT_COLOUR, contact_sheet, sheet_frames


def test_sheet_shows_the_context_and_the_last_frame() -> None:
    assert sheet_frames(104, 4, 16)[:4] == [0, 1, 2, 3] and sheet_frames(104, 4, 16)[-1] == 103
    assert len(sheet_frames(104, 4, 16)) == 16 and 4 in sheet_frames(104, 4, 16)
    assert sheet_frames(5, 1, 16) == [0, 1, 2, 3, 4]
    assert sheet_frames(100, 100, 6)[-1] == 99 and len(sheet_frames(100, 100, 6)) <= 6
    assert sheet_frames(50, 0, 2) == [0, 49] and sheet_frames(50, 3, 1) == [0]


def test_sheet_holds_the_frames_and_marks_only_context() -> None:
    rows = [np.full((6, 96, 96, 3), 10 * number, np.uint8) for number in (1, 2)]
    rows[1][3] = (7, 77, 200)
    sheet = np.asarray(contact_sheet(rows, context_frames=2, columns=6, labels=["real", "model"]))
    marked = np.all(sheet == CONTEXT_COLOUR, axis=-1)
    assert marked.sum() == 2 * 2 * (100 * 100 - 96 * 96)
    cells = np.all(sheet == (7, 77, 200), axis=-1)
    assert cells.sum() == 96 * 96
    assert marked.nonzero()[1].max() < cells.nonzero()[1].min()


def test_sheet_leaves_a_shorter_video_blank_and_refuses_unlike_ones() -> None:
    long, short = np.zeros((4, 96, 96, 3), np.uint8), np.zeros((2, 96, 96, 3), np.uint8)
    black = np.all(np.asarray(contact_sheet([long, short])) == 0, axis=-1)
    assert black.sum() == 6 * 96 * 96
    with pytest.raises(ValueError, match="one frame size"):
        contact_sheet([long, np.zeros((4, 48, 96, 3), np.uint8)])
    with pytest.raises(ValueError, match="label"):
        contact_sheet([long], labels=["a", "b"])


def test_a_label_of_several_lines_is_as_wide_as_its_longest() -> None:
    row = np.zeros((4, 96, 96, 3), np.uint8)
    one, two, long = (contact_sheet([row], labels=[label]).width for label in ("abcd", "ab\nabcd", "ab abcd"))
    assert one == two < long
