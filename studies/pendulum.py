"""Videos of real motion that is not ours: recorded episodes of Gymnasium's Pendulum-v1 (``magi.data.record``).

The pendulum swings without torque, from any angle at up to half of the largest speed: a rod moved by gravity alone, so
that what comes next follows from what was seen. This module knows no models.
"""

from pathlib import Path

import numpy as np

from magi.data.record import Recording, record
from magi.progress import progress

FRAMES = 120


def record_pendulum(folder: Path, episodes: int, seed: int, size: int) -> None:
    """Write the episodes that are missing, of ``size`` pixels; ``ValueError`` where Gymnasium is missing."""
    start = {"x_init": np.pi, "y_init": 4.0}  # the environment itself starts slow, and its bounds mean plus and minus
    recording = Recording(episodes, FRAMES, FRAMES, size, seed=seed, options=start)
    with progress("recording", "episodes") as on_progress:
        record("Pendulum-v1", folder, recording, lambda _: np.zeros(1, np.float32), on_progress)
