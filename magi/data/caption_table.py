"""The captions of all videos of a data set, held for training: read once, and small enough for every process.

Knows no models and no tokens; what a caption is says ``magi.data.captions``.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from magi.data.captions import read_caption, read_segments
from magi.data.index.index import VideoIndex
from magi.data.index.records import VideoRecord
from magi.errors import DataError

Span = tuple[int, int, str]
"""The caption of some frames of a video, with the numbers of the first and the last of them."""
_OPEN = 2**31 - 1
_WHOLE = (0, _OPEN)
_ROUNDING = 0.01
"""Of a frame: rates are rounded, and times in annotations have milliseconds."""


def whole_caption(text: str) -> Span:
    """The caption of a whole video, as one of all its frames."""
    return *_WHOLE, text


class CaptionStates(Protocol):
    """Captions to the states of a frozen encoder, as ``magi.text.states.TextStates`` has them."""

    @property
    def id(self) -> str:
        """Names the encoder."""
        ...

    def __getitem__(self, caption: str | None) -> NDArray[np.float32]:
        """states_LE, (0, E) for no caption."""
        ...


@dataclass(frozen=True, eq=False)
class CaptionTable:
    """The captions of V videos by number, of the whole of them or of parts; loader processes share its memory."""

    _text: bytes
    _ends_S: NDArray[np.int64]
    """Where each caption ends in the text."""
    _frames_S2: NDArray[np.int32]
    _first_V: NDArray[np.int64]
    """Where the captions of each video begin, and at the end their number."""

    @classmethod
    def of(cls, captions: Iterable[str | Sequence[Span] | None]) -> Self:
        """From what each video has, in their order: a caption, None, or captions of some frames."""
        texts, frames, first = list[bytes](), list[tuple[int, int]](), [0]
        for entry in captions:
            for one, last, text in [whole_caption(entry or "")] if entry is None or isinstance(entry, str) else entry:
                if text:
                    texts.append(text.encode())
                    frames.append((one, min(last, _OPEN)))
            first.append(len(texts))
        ends_S = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(b"".join(texts), ends_S, np.array(frames, np.int32).reshape(-1, 2), np.array(first, np.int64))

    @classmethod
    def beside(cls, index: VideoIndex, max_bad_fraction: float) -> tuple[Self, list[str]]:
        """Those beside the videos of an index, and a line about each that cannot be read and is none therefore.

        ``DataError`` if these are more than ``max_bad_fraction`` of the videos.
        """
        captions: list[list[Span]] = []
        reasons = []
        for record in index.videos:
            try:
                captions.append(_spans_beside(index, record))
            except DataError as error:
                captions.append([])
                reasons.append(str(error))
        if len(reasons) > max_bad_fraction * len(captions):
            raise DataError(
                f"{index.root}: {len(reasons)} of {len(captions)} captions cannot be read, more than max_bad_fraction "
                f"{max_bad_fraction:g}; the first: {reasons[0]}"
            )
        return cls.of(captions), reasons

    def __len__(self) -> int:
        """V."""
        return len(self._first_V) - 1

    def __getitem__(self, video: int) -> str | None:
        """The caption of a whole video, None for none."""
        return next((text for *frames, text in self._spans(video) if tuple(frames) == _WHOLE), None)

    def segments(self, video: int) -> list[Span]:
        """The captions of parts of a video."""
        return [span for span in self._spans(video) if span[:2] != _WHOLE]

    def of_clip(self, video: int, first: int, last: int) -> str | None:
        """The caption of the frames ``first`` to ``last``: of the shortest part of the video that holds them all."""
        holding = [span for span in self._spans(video) if span[0] <= first and last <= span[1]]
        return min(holding, key=lambda span: span[1] - span[0])[2] if holding else None

    def texts(self) -> Iterator[str]:
        """All captions, one video after another."""
        return (text for video in range(len(self)) for *_, text in self._spans(video))

    def _spans(self, video: int) -> list[Span]:
        found = []
        for number in range(int(self._first_V[video]), int(self._first_V[video + 1])):
            begin = int(self._ends_S[number - 1]) if number else 0
            first, last = self._frames_S2[number].tolist()
            found.append((first, last, self._text[begin : int(self._ends_S[number])].decode()))
        return found

    @property
    def count(self) -> int:
        """Videos that have a caption."""
        return int(np.count_nonzero(np.diff(self._first_V)))

    @property
    def digest(self) -> str:
        """Names the captions of all videos, in 16 hexadecimal digits."""
        ends_V = np.concatenate([[0], self._ends_S])[self._first_V[1:]]
        digest = hashlib.sha256(ends_V.tobytes() + self._text)
        if (self._frames_S2 != _WHOLE).any():
            digest.update(self._frames_S2.tobytes() + self._ends_S.tobytes())
        return digest.hexdigest()[:16]


def _spans_beside(index: VideoIndex, record: VideoRecord) -> list[Span]:
    """The captions beside a video; times become the frames that are shown then, at the rate that it is read at."""
    video = index.root / record.path
    whole, segments = read_caption(video), read_segments(video)
    if segments and not record.fps > 0:
        raise DataError(f"{video}: captions of segments need a frame rate, and it has none")
    spans: list[Span] = [whole_caption(whole)] if whole else []
    for segment in segments:
        first = math.ceil(segment.start * record.fps - _ROUNDING)
        last = _OPEN if math.isinf(segment.end) else math.floor(segment.end * record.fps + _ROUNDING)
        spans.append((first, last, segment.caption))
    return spans
