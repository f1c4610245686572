"""Videos to files: H.264 mp4, GIF, and the contact sheets that people look at.

Files appear whole or not at all (``magi.files.atomic_write``). This module does not know where the
frames come from.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magi.files import atomic_write

CONTEXT_COLOUR = (255, 170, 0)
_PAPER, _INK, _GAP, _LINE = (255, 255, 255), (40, 40, 40), 4, 2
_SHEET_FRAME = 96  # small frames are enlarged to about this many pixels on a contact sheet
_H264 = {"crf": "12", "preset": "veryfast", "g": "25"}


def write_mp4(path: Path, video_THWC: NDArray[np.uint8], fps: float) -> None:
    """Write RGB uint8 frames as visually lossless H.264 (yuv420p); the same frames give the same bytes.

    Raises ``ValueError`` for odd heights or widths, which 4:2:0 colour cannot hold, and for empty videos.
    """
    _check_video(path, video_THWC)
    height, width = video_THWC.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs even height and width, got {height}x{width}; crop or pad by one pixel")
    rate = Fraction(fps).limit_denominator(1001)
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_H264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # Said in the file, because players guess another colour matrix for large frames.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        stream.thread_count = 1  # NOTE: with more, x264's rate control and so the bytes depend on the machine
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


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


def contact_sheet(
    rows: Sequence[NDArray[np.uint8]],
    context_frames: int = 0,
    columns: int = 16,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Lay out videos (T, H, W, C) of one frame size, a row each; context frames are framed in colour.

    Up to half of the columns show context frames, the rest is spread evenly over what follows, the last frame
    included. Frame numbers on top count from 1. Raises ``ValueError`` for unequal frame sizes or label counts.
    """
    if not rows or (labels and len(labels) != len(rows)):
        raise ValueError(f"a contact sheet needs videos and a label for each, got {len(rows)} and {len(labels)}")
    if len({row.shape[1:] for row in rows}) > 1:
        raise ValueError(f"videos of a contact sheet must share one frame size, got {[row.shape[1:3] for row in rows]}")
    shown = sheet_frames(max(len(row) for row in rows), context_frames, columns)
    height, width = (side * _enlargement(rows[0]) for side in rows[0].shape[1:3])
    font = ImageFont.load_default(size=14)
    left = max([0, *(int(font.getlength(label)) + 2 * _GAP for label in labels)]) + _GAP
    top = 22
    size = (left + len(shown) * (width + _GAP), top + len(rows) * (height + _GAP))
    sheet, draw = _blank(size)
    for column, frame in enumerate(shown):
        x = left + column * (width + _GAP)
        draw.text((x + width / 2, top / 2), str(frame + 1), fill=_INK, font=font, anchor="mm")
        for number, row in enumerate(rows):
            y = top + number * (height + _GAP)
            if frame < len(row):
                sheet.paste(Image.fromarray(row[frame]).resize((width, height), Image.Resampling.NEAREST), (x, y))
            if frame < min(context_frames, len(row)):
                box = (x - _LINE, y - _LINE, x + width + _LINE - 1, y + height + _LINE - 1)
                draw.rectangle(box, outline=CONTEXT_COLOUR, width=_LINE)
    for number, label in enumerate(labels):
        y = top + number * (height + _GAP) + height / 2
        draw.text((left - 2 * _GAP, y), label, fill=_INK, font=font, anchor="rm")
    return sheet


def sheet_frames(frames: int, context_frames: int, columns: int) -> list[int]:
    """Frame numbers (from 0) that a contact sheet of at most ``columns`` columns shows."""
    if frames <= columns:
        return list(range(frames))
    context = _spread(0, min(context_frames, frames) - 1, min(context_frames, max(1, columns // 2)))
    rest = _spread(min(context_frames, frames - 1), frames - 1, columns - len(context))
    return sorted({*context, *rest})


def _spread(first: int, last: int, count: int) -> list[int]:
    return [int(number) for number in np.linspace(first, last, min(count, last - first + 1)).round()]


def _enlargement(video_THWC: NDArray[np.uint8]) -> int:
    height, width = video_THWC.shape[1:3]
    return int(max(1, round(_SHEET_FRAME / max(height, width))))


def _blank(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", size, _PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _check_video(path: Path, video_THWC: NDArray[Any]) -> None:
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not len(video_THWC):
        raise ValueError(f"{path}: expected uint8 frames (T, H, W, 3), got {video_THWC.dtype} {video_THWC.shape}")
