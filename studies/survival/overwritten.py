"""Random bytes over the middle of a video: what its codec and its container let the index notice."""

import random
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from magi.data.decoding.frames import read_frames
from magi.data.decoding.probe import VideoProbe
from magi.data.decoding.sandbox import DecodingSandbox
from studies.survival.commands import World
from studies.survival.hostile import KINDS, write_video
from studies.survival.report import Trial

CODECS = ("h264.mp4", "mpeg4.mp4", "vp9.webm", "av1.mp4", "hevc.mp4", "hevc.mkv")
SIZES = (16, 400)
FRAMES, HEIGHT, WIDTH = 48, 128, 160


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials: every codec with every number of bytes in turn."""
    draw, folder = random.Random(seed), world.folder / "codecs"
    folder.mkdir()
    paths = [write_video(folder / name, KINDS.get(name, "libx265"), FRAMES, HEIGHT, WIDTH) for name in CODECS]
    with DecodingSandbox() as sandbox:
        kinds = [
            Trial(f"{path.name}, {size} bytes", partial(_overwritten, sandbox, path, size, draw))
            for path in paths
            for size in SIZES
        ]
        yield from islice(cycle(kinds), count)


def _overwritten(sandbox: DecodingSandbox, whole: Path, size: int, draw: random.Random) -> str:
    held = bytearray(whole.read_bytes())
    begin = draw.randrange(len(held) // 5, len(held) * 4 // 5)
    held[begin : begin + size] = draw.randbytes(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / whole.name
        path.write_bytes(held)
        before, after = sandbox.probe(whole), sandbox.probe(path)
        assert isinstance(before, VideoProbe), before
        if not isinstance(after, VideoProbe):
            return ""
        was, now = (read_frames(one, range(probe.frames), probe) for one, probe in ((whole, before), (path, after)))
        return "" if np.array_equal(was, now) else "not noticed"
