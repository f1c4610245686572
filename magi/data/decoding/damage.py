"""Damage in the middle of a stream, by what FFmpeg says of it: a frame marked corrupt, or an error in its log.

Decoders conceal damage and go on, and what they show then is made up. How much they notice depends on the codec: most
in MPEG-4, MPEG-2, H.264, AV1 and VP9 (by libvpx), and in HEVC hardly anything that stays within a picture.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import av
import av.logging

_HARMLESS = (
    "mmco: unref short failure",  # H.264 that was cut or spliced: an order to forget a frame that is not there
    "number of reference frames",  # H.264 whose header promises too few; all are kept
    "File ended prematurely",  # Matroska of unknown length: magi.data.decoding.containers says what is truncated
)


class DamageWatch:
    """What FFmpeg has said against a stream since its first frame.

    Before, there may be frames that refer to others from before a cut, which no player shows; and what is said of the
    very first frame is how the file was written (odd headers), so it means nothing later on either.
    """

    def __init__(self, log: list[tuple[int, str, str]]) -> None:
        self._log = log
        self._usual: set[str] | None = None

    def fault(self, corrupt: bool) -> str:
        """What is wrong with what was decoded since the last call, or with a frame that is marked; empty if nothing."""
        said = [(_kind(text), f"{name}: {' '.join(text.split())}") for _, name, text in self._log]
        self._log.clear()
        if self._usual is None:
            self._usual = {kind for kind, _ in said}
        for kind, text in said:
            if kind not in self._usual and not kind.startswith(_HARMLESS):
                return text
        return "the decoder marks it as corrupt" if corrupt else ""


def _kind(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "", text)


@contextmanager
def watched_decoding() -> Iterator[DamageWatch]:
    """Context in which this thread's FFmpeg errors are heard; not for a process in which others decode."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log:
            yield DamageWatch(log)
    finally:
        av.logging.set_level(level)
