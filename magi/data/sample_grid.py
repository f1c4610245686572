"""Grids of frames that people look at: a row a video, a column a frame, the context in a coloured box."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magi.data.clips import evenly_spaced

CONTEXT_COLOUR = (255, 170, 0)
_PAPER, _INK, _GAP, _LINE = (255, 255, 255), (40, 40, 40), 4, 2
_SHEET_FRAME = 96  # small frames are enlarged to about this many pixels on a contact sheet
_LABEL_WIDTH, _LABEL_LINES = 36, 4  # characters and lines of a prompt beside its row


def contact_sheet(
    rows: Sequence[NDArray[np.uint8]],
    context_frames: int = 0,
    columns: int = 16,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Lay out videos (T, H, W, C) of one frame size, a row each; context frames are framed in colour.

    Up to half of the columns show context frames, the rest is evenly spaced over what follows, the last frame
    included. Frame numbers on top count from 1; a label may have several lines. Raises ``ValueError`` for unequal frame
    sizes or label counts.
    """
    if not rows or (labels and len(labels) != len(rows)):
        raise ValueError(f"a contact sheet needs videos and a label for each, got {len(rows)} and {len(labels)}")
    if len({row.shape[1:] for row in rows}) > 1:
        raise ValueError(f"videos of a contact sheet must share one frame size, got {[row.shape[1:3] for row in rows]}")
    shown = sheet_frames(max(len(row) for row in rows), context_frames, columns)
    height, width = (side * _enlargement(rows[0]) for side in rows[0].shape[1:3])
    font = ImageFont.load_default(size=14)
    left = max([0, *(int(font.getlength(line)) + 2 * _GAP for label in labels for line in label.split("\n"))]) + _GAP
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


def prompt_label(prompt: str) -> str:
    """A prompt as the label of a row, in lines; what is longer is cut."""
    return "\n".join(textwrap.wrap(prompt, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder=" ..."))


def sheet_frames(frames: int, context_frames: int, columns: int) -> list[int]:
    """Frame numbers (from 0) that a contact sheet of at most ``columns`` columns shows."""
    if frames <= columns:
        return list(range(frames))
    context = evenly_spaced(min(context_frames, frames), min(context_frames, max(1, columns // 2)))
    first = min(context_frames, frames - 1)
    rest = evenly_spaced(frames - first, columns - len(context))
    return sorted({*context, *(first + number for number in rest)})


def _enlargement(video_THWC: NDArray[np.uint8]) -> int:
    height, width = video_THWC.shape[1:3]
    return int(max(1, round(_SHEET_FRAME / max(height, width))))


def _blank(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", size, _PAPER)
    return sheet, ImageDraw.Draw(sheet)
