"""What a video shows, in words: the caption beside it.

Beside ``NAME.mp4`` lies ``NAME.txt``, UTF-8; the whole file is one caption, its lines and spaces joined by single
spaces. A video without the file, or with an empty one, has no caption. Knows no models and no tokens.
"""

import unicodedata
from pathlib import Path

from magi.errors import DataError
from magi.files import read_text

SUFFIX = ".txt"
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
