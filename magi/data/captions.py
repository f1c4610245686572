"""What a video shows, in words: the caption beside it.

Beside ``NAME.mp4`` lies ``NAME.txt``, UTF-8; the whole file is one caption, its lines and spaces joined by single
spaces. A video without the file, or with an empty one, has no caption. A video with captions of its parts has them in
``NAME.captions.jsonl``, a line a segment: ``{"start": 1.5, "end": 4.25, "caption": "..."}``, in seconds from its first
frame; ``end`` may be null. A clip gets the caption of the segment that holds it, else that of the whole video. Knows no
models and no tokens.
"""

import json
import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi.errors import DataError
from magi.files import read_text

SUFFIX = ".txt"
SEGMENTS_SUFFIX = ".captions.jsonl"
MOST_BYTES = 2**20
"""A larger file is no caption."""


def caption_path(video: Path) -> Path:
    """Where the caption of a video is; the file need not be there."""
    return video.with_name(video.stem + SUFFIX)


def read_caption(video: Path) -> str | None:
    """The caption of a video; None if it has none.

    ``DataError`` naming the file if that is no regular file, above 1 MB, no UTF-8 or has control characters.
    """
    path = caption_path(video)
    if not path.exists():
        return None
    try:
        return one_line(read_text(path, MOST_BYTES).removeprefix("\ufeff")) or None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no caption ({' '.join(str(error).split())[:160]})") from None


def one_line(text: str) -> str:
    """Text with every run of whitespace as one space; ``ValueError`` for a control character or a lone surrogate."""
    line = " ".join(text.split())
    for place, character in enumerate(line):
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"character {place} is U+{ord(character):04X}, which is no text; remove it")
    return line


@dataclass(frozen=True)
class CaptionSegment:
    """The caption of a part of a video, between two times in seconds; the end may be infinite."""

    start: float
    end: float
    caption: str


def segments_path(video: Path) -> Path:
    """Where the captions of the parts of a video are; the file need not be there."""
    return video.with_name(video.stem + SEGMENTS_SUFFIX)


def read_segments(video: Path) -> list[CaptionSegment]:
    """The captions of the parts of a video, in the order of the file; none if it has none.

    ``DataError`` naming the file and the segment if that is no such list.
    """
    path, segments = segments_path(video), list[CaptionSegment]()
    if not path.exists():
        return []
    try:
        for line in read_text(path, MOST_BYTES).split("\n"):
            if line.strip():
                segments.append(_segment(json.loads(line)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"caption of segment {len(segments) + 1}"
        raise DataError(f"{path}: no {what} ({' '.join(str(error).split())[:160]})") from None
    return segments


def _segment(values: dict[str, Any]) -> CaptionSegment:
    start, end, caption = float(values["start"]), values.get("end"), values["caption"]
    end = math.inf if end is None else float(end)
    if not 0 <= start < end or not isinstance(caption, str):
        raise ValueError(f"from {start:g} to {end:g} seconds: {caption!a:.40}")
    return CaptionSegment(start, end, one_line(caption))


def segments_text(segments: Iterable[CaptionSegment]) -> str:
    """What a file of segments says."""
    lines = (
        {"start": segment.start, "end": None if math.isinf(segment.end) else segment.end, "caption": segment.caption}
        for segment in segments
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
