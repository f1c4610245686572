"""The captions of all videos of a data set, held for training: read once, and small enough for every process.

Knows no models and no tokens; what a caption is says ``magi.data.captions``.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from magi.data.captions import read_caption
from magi.data.index.index import VideoIndex
from magi.errors import DataError


@dataclass(frozen=True, eq=False)
class CaptionTable:
    """The captions of V videos by number, None for none; in two pieces of memory, which loader processes share."""

    _text: bytes
    _ends_V: NDArray[np.int64]

    @classmethod
    def of(cls, captions: Iterable[str | None]) -> Self:
        """From captions in the order of their videos."""
        parts = [(caption or "").encode() for caption in captions]
        return cls(b"".join(parts), np.cumsum([len(part) for part in parts], dtype=np.int64))

    @classmethod
    def beside(cls, index: VideoIndex, max_bad_fraction: float) -> tuple[Self, list[str]]:
        """Those beside the videos of an index, and a line about each that cannot be read and is none therefore.

        ``DataError`` if these are more than ``max_bad_fraction`` of the videos.
        """
        captions: list[str | None] = []
        reasons = []
        for record in index.videos:
            try:
                captions.append(read_caption(index.root / record.path))
            except DataError as error:
                captions.append(None)
                reasons.append(str(error))
        if len(reasons) > max_bad_fraction * len(captions):
            raise DataError(
                f"{index.root}: {len(reasons)} of {len(captions)} captions cannot be read, more than max_bad_fraction "
                f"{max_bad_fraction:g}; the first: {reasons[0]}"
            )
        return cls.of(captions), reasons

    def __len__(self) -> int:
        """V."""
        return len(self._ends_V)

    def __getitem__(self, video: int) -> str | None:
        first = int(self._ends_V[video - 1]) if video else 0
        return self._text[first : int(self._ends_V[video])].decode() or None

    @property
    def count(self) -> int:
        """Videos that have a caption."""
        return int(np.count_nonzero(np.diff(self._ends_V, prepend=0)))

    @property
    def digest(self) -> str:
        """Names the captions of all videos, in 16 hexadecimal digits."""
        return hashlib.sha256(self._ends_V.tobytes() + self._text).hexdigest()[:16]
