"""Frames to files: H.264 mp4, GIF and PNG, each written atomically (``magi.files.atomic_write``)."""

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from magi.files import atomic_write

Chroma = Literal["yuv420p", "yuv444p"]
"""How colour is stored: at half the resolution, which every player shows, or at all of it, for exact measurement."""

# Without mbtree: it reads memory that it did not write, and a frame of few blocks then has other bytes now and then.
_H264 = {"crf": "12", "preset": "veryfast", "g": "25", "mbtree": "0"}


def write_mp4(path: Path, video_THWC: NDArray[np.uint8], fps: float, chroma: Chroma = "yuv420p") -> None:
    """Write RGB uint8 frames as visually lossless H.264; the same frames give the same bytes.

    Raises ``ValueError`` for odd heights or widths, which H.264 here cannot hold, and for empty videos.
    """
    _check_video(path, video_THWC)
    height, width = video_THWC.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs even height and width, got {height}x{width}; crop or pad by one pixel")
    with atomic_write(path) as temporary:
        temporary.write_bytes(mp4_bytes(video_THWC, fps, chroma))


def mp4_bytes(video_THWC: NDArray[np.uint8], fps: float, chroma: Chroma = "yuv420p") -> bytes:
    """What ``write_mp4`` writes, of frames with even sides."""
    height, width = video_THWC.shape[1:3]
    file, rate = io.BytesIO(), Fraction(fps).limit_denominator(1001)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_H264)
        stream.height, stream.width, stream.pix_fmt = height, width, chroma
        # Written into the file, because players guess another colour matrix for large frames.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        stream.thread_count = 1  # NOTE: with more, x264's rate control and so the bytes depend on the machine
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def even_image(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An image scaled to ``size`` pixels at the short side (0: as it is), with even sides, as ``write_mp4`` needs."""
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    scale = size / min(image.size) if size else 1.0
    width, height = (max(2, 2 * round(side * scale / 2)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def write_gif(path: Path, video_THWC: NDArray[np.uint8], fps: float) -> None:
    """Write an endless GIF of RGB uint8 frames; durations are whole 1/100 s and do not drift from ``fps``."""
    _check_video(path, video_THWC)
    # NOTE: browsers slow a frame shorter than 2/100 s down to 10 a second, so fast videos are thinned out.
    step = max(1, int(np.ceil(fps / 50)))
    images = [Image.fromarray(image_HWC).quantize(256, dither=Image.Dither.NONE) for image_HWC in video_THWC[::step]]
    ends = [round(100 * step * number / fps) for number in range(len(images) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    with atomic_write(path) as temporary:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def write_png(path: Path, image: Image.Image | NDArray[np.uint8]) -> None:
    """Write an image, or an (H, W, C) uint8 array, as PNG."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


def _check_video(path: Path, video_THWC: NDArray[Any]) -> None:
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not len(video_THWC):
        raise ValueError(f"{path}: expected uint8 frames (T, H, W, 3), got {video_THWC.dtype} {video_THWC.shape}")
