"""A recording as a zip of a video and its action track, which ``magi train`` reads once it is unpacked."""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magi.app.protocol import Picture
from magi.data.video_writer import write_mp4

VIDEO, TRACK = "dream.mp4", "dream.actions.npy"


def recording_zip(frames: Sequence[tuple[Picture, int]], fps: float, actions: bool) -> bytes:
    """``VIDEO`` at full colour and, with ``actions``, ``TRACK``: (T,) numbers, entry t led into frame t, -1 is none."""
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w") as file:
        video, track = Path(folder, VIDEO), Path(folder, TRACK)
        write_mp4(video, np.stack([picture for picture, _ in frames]), fps, "yuv444p")
        file.write(video, VIDEO)
        if actions:
            np.save(track, np.array([action for _, action in frames], np.int64))
            file.write(track, TRACK)
    return archive.getvalue()
