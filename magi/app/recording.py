"""A recording as a zip of a video and its action track, which ``magi train`` reads once it is unpacked."""

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from magi.app.protocol import Picture
from magi.data.video_writer import mp4_bytes

VIDEO, TRACK = "dream.mp4", "dream.actions.npy"


def recording_zip(frames: Sequence[tuple[Picture, int]], fps: float, actions: bool) -> bytes:
    """``VIDEO`` at full colour and, with ``actions``, ``TRACK``: (T,) numbers, entry t led into frame t, -1 is none.

    All of it in memory, so that a server that is stopped leaves nothing on the disk.
    """
    archive, track = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(VIDEO, mp4_bytes(np.stack([picture for picture, _ in frames]), fps, "yuv444p"))
        if actions:
            np.save(track, np.array([action for _, action in frames], np.int64))
            file.writestr(TRACK, track.getvalue())
    return archive.getvalue()
