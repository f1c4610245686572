"""Interlaced frames made whole by FFmpeg's bwdif, so that moving edges are no combs.

bwdif builds a frame from its own two fields, those before and those after, so what it returns depends on the frame and
its two neighbours alone: a frame that was reached by a seek is the one that reading from the start gives.
"""

from collections.abc import Container, Iterator
from fractions import Fraction
from typing import TypeVar

import av
import av.filter

Other = TypeVar("Other")


def deinterlaced(
    frames: Iterator[tuple[int, av.VideoFrame, Other]], wanted: Container[int]
) -> Iterator[tuple[int, av.VideoFrame, Other]]:
    """The same numbered frames; of the wanted ones, those that say they are interlaced come deinterlaced.

    The first of ``frames`` is the video's first or lies before the first wanted one. ``FFmpegError`` for frames that
    bwdif does not take (fewer than 3 columns or 4 rows).
    """
    bwdif = _Bwdif()
    before: tuple[int, av.VideoFrame] | None = None
    held: tuple[int, av.VideoFrame, Other] | None = None
    for number, frame, other in frames:
        if held is not None:
            yield held[0], bwdif.between(before, held[:2], (number, frame)), held[2]
            before, held = held[:2], None
        if frame.interlaced_frame and number in wanted:
            held = number, frame, other
        else:
            yield number, frame, other
            before = number, frame
    if held is not None:
        yield held[0], bwdif.between(before, held[:2], None), held[2]


class _Bwdif:
    """A filter graph that is fed with each frame once."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._last = -1

    def between(
        self,
        before: tuple[int, av.VideoFrame] | None,
        frame: tuple[int, av.VideoFrame],
        after: tuple[int, av.VideoFrame] | None,
    ) -> av.VideoFrame:
        """The frame deinterlaced, from its numbered neighbours; None before the first and after the last of a video."""
        graph = self._graph = self._graph or _graph_for(frame[1])
        for neighbour in (before, frame, after):
            if neighbour is not None and neighbour[0] > self._last:
                self._last, picture = neighbour
                graph.vpush(picture)
                # It answers a push with the frame before, if it has one.
                answer = _pulled(graph)
        if after is None:
            graph.vpush(None)
            answer = _pulled(graph)
        assert answer is not None, "bwdif answers a frame with the one before"
        return answer


def _pulled(graph: av.filter.Graph) -> av.VideoFrame | None:
    try:
        return graph.vpull()
    except BlockingIOError:
        return None


def _graph_for(frame: av.VideoFrame) -> av.filter.Graph:
    """Every frame that is fed is taken as interlaced: the filter must not decide by what came long before."""
    graph = av.filter.Graph()
    graph.threads = 1
    tick = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=tick)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=all"), graph.add("buffersink")).configure()
    return graph
