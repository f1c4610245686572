"""The measurement of few steps: its rows are what their names say, and whole digits are told from fragments."""

import numpy as np

from magi.config import SamplingConfig
from runs.few_steps import in_one_piece, settings_of


def test_rows_differ_in_what_their_names_say_alone() -> None:
    own = SamplingConfig(
        iterations=2, steps=12, first_timestep=899, fast_steps=3, fast_first_timestep=949, fast_last_timestep=80
    )
    rows = settings_of(own)
    found = {name: (one.iterations, one.steps, one.first_timestep, one.last_timestep) for name, one in rows.items()}
    assert found == {
        "full": (2, 12, 899, 0), "whole-schedule-3": (2, 3, 0, 0), "placed-1": (2, 1, 0, 0), "placed-2": (2, 2, 0, 0),
        "fast": (2, 3, 949, 80), "fast-1-iteration": (1, 3, 949, 80), "fast-4-iterations": (4, 3, 949, 80),
    }  # fmt: skip


def test_a_digit_in_pieces_is_told_from_a_whole_one() -> None:
    frames_BHWC = np.zeros((4, 9, 9, 3), dtype=np.uint8)
    frames_BHWC[0, [1, 2, 3, 4], [1, 2, 3, 2]] = 200  # corners touch
    frames_BHWC[1, [1, 2, 5], [1, 2, 5]] = 200  # a gap
    frames_BHWC[2, 2:5, 2:5], frames_BHWC[2, 7, 7] = 200, 40  # a faint spot is none of it
    assert in_one_piece(frames_BHWC) == 0.5  # the last is black
