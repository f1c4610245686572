"""Files hold the frames they were given, and appear whole or not at all."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from magi.data.video_writer import write_gif, write_mp4, write_png
from magi.files import atomic_write


def colourful(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * x // width, 255 * y // height, 255 - 255 * x // width], axis=-1)
    return np.stack([np.roll(image, 2 * frame, axis=1) for frame in range(frames)]).astype(np.uint8)


def decode(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_mp4_is_h264_with_every_frame_in_its_colours(tmp_path: Path) -> None:
    video_THWC = colourful(30, 64, 48)
    write_mp4(tmp_path / "new" / "a.mp4", video_THWC, fps=25)
    read_THWC = decode(tmp_path / "new" / "a.mp4").astype(float)
    assert read_THWC.shape == video_THWC.shape
    assert np.abs(read_THWC - video_THWC).mean((1, 2, 3)).max() < 4
    assert np.abs((read_THWC - video_THWC).mean((0, 1, 2))).max() < 2  # another colour matrix shifts by more
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25


def test_mp4_of_the_same_frames_is_the_same_bytes_on_any_number_of_cores(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, colourful(60, 128, 128), fps=25)
    written = (tmp_path / "a.mp4").read_bytes()
    assert written == (tmp_path / "b.mp4").read_bytes()
    # x264 notes its settings in the stream; what mbtree does to the bytes depends on what was in memory before.
    assert b" threads=1 " in written and b" mbtree=0 " in written


@pytest.mark.parametrize(
    ("video_THWC", "message"),
    [
        (np.zeros((2, 63, 64, 3), np.uint8), r"even height and width, got 63x64"),
        (np.zeros((2, 64, 33, 3), np.uint8), r"even height and width, got 64x33"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"uint8 frames"),
        (np.zeros((2, 64, 64, 3), np.float32), r"got float32"),
        (np.zeros((2, 64, 64), np.uint8), r"uint8 frames \(T, H, W, 3\)"),
    ],
)
def test_what_mp4_cannot_hold_is_refused_by_name(tmp_path: Path, video_THWC: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.mp4: .*" + message):
        write_mp4(tmp_path / "a.mp4", video_THWC, fps=25)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as beside:
        beside.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise RuntimeError("disk full")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(("fps", "frames"), [(25, 30), (30, 31), (60, 61), (7, 9)])
def test_gif_lasts_as_long_as_the_video(tmp_path: Path, fps: float, frames: int) -> None:
    write_gif(tmp_path / "a.gif", colourful(frames, 32, 32), fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert min(durations) >= 20
    assert abs(sum(durations) / 1000 - frames / fps) <= 0.01 + (1 / fps if fps > 50 else 0)


def test_png_keeps_the_pixels(tmp_path: Path) -> None:
    image_HWC = colourful(1, 20, 30)[0]
    write_png(tmp_path / "a.png", image_HWC)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image_HWC)
