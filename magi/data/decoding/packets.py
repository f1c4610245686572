"""All packets of a stream, decoded once: the frames, what is wrong with them, and the longest stretch without damage.

Damage spreads from where it is to the next keyframe, and a decoder may complain of it late, so what counts as clean is
a run of whole groups of pictures of which nothing was heard.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import av
import av.container
import av.error
import av.video.codeccontext
import av.video.stream

from magi.data.decoding.containers import unsound_clusters
from magi.data.decoding.damage import watched_decoding
from magi.data.decoding.frames import Orientation, one_line, orientation_of

_STRICT = {"vp9": "libvpx-vp9"}
"""Codec -> a decoder that notices more than FFmpeg's own: it looks whether a picture reads beyond its data."""


class DecodedPackets:
    """Iterates over the frames of a stream, and knows the faults then. Not for a process in which others decode."""

    def __init__(self, path: Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> None:
        self.fault = ""
        """What was heard first; empty for a sound file."""
        self.fault_at = 0
        """How many frames had come before."""
        self.error: Exception | None = None
        """What ended the decoding of a packet, or the reading of the file, first."""
        self._container, self._stream = container, stream
        self._strict = _strict_decoder(stream)
        self._orientation: Orientation | None = None
        self._unsound = unsound_clusters(path)
        self._pts: list[int | None] = []
        self._positions: list[int] = []
        self._keys: list[int] = []
        self._bad: set[int] = set()

    def __iter__(self) -> Iterator[av.VideoFrame]:
        count = 0
        with watched_decoding() as watch:
            for packet in self._packets():
                number = len(self._pts)
                place = number - 1 if packet.size == 0 else number
                if packet.size:
                    self._pts.append(packet.pts)
                    self._positions.append(packet.pos or 0)
                    if packet.is_keyframe:
                        self._keys.append(number)
                frames = self._decoded(packet, place, count)
                marked = {frame.pts for frame in frames if frame.is_corrupt}
                # Until the first frame, what is said is collected.
                if (count or frames) and (fault := watch.fault(packet.is_corrupt or bool(marked))):
                    self._note(place, count, fault)
                    self._bad.add(place - 1)  # the reader may be ahead
                    self._bad |= {earlier for earlier, pts in enumerate(self._pts) if pts in marked}
                yield from frames
                count += len(frames)
            if fault := watch.fault(False):
                self._note(len(self._pts) - 1, count, fault)
        for cluster in self._unsound:
            self._reject_cluster(cluster)

    def _packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self.error = self.error or error
                self._note(len(self._pts) - 1, len(self._pts), _said(error))
                return
            if packet is None:
                return
            yield packet

    def _decoded(self, packet: av.Packet, place: int, count: int) -> list[av.VideoFrame]:
        if self._strict is not None and self._orientation is None and packet.size:
            # The strict decoder is told nothing of the container's display matrix.
            with suppress(av.error.FFmpegError):
                self._orientation = next((orientation_of(frame) for frame in packet.decode()), None)
        try:
            return (self._strict or self._stream.codec_context).decode(packet if packet.size else None)
        except av.error.FFmpegError as error:
            self.error = self.error or error
            self._note(place, count, _said(error))
            return []

    def orientation_of(self, frame: av.VideoFrame) -> Orientation:
        """As ``magi.data.decoding.frames.orientation_of``, of a frame from here."""
        return orientation_of(frame) if self._strict is None else self._orientation or Orientation()

    def _note(self, place: int, count: int, fault: str) -> None:
        self._bad.add(place)
        if not self.fault:
            self.fault, self.fault_at = fault, count

    def _reject_cluster(self, cluster: range) -> None:
        """Its packets, and those beside it: some of its own may have been lost."""
        inside = [place for place, position in enumerate(self._positions) if position in cluster]
        before = [place for place, position in enumerate(self._positions) if position < cluster.start][-1:]
        after = [place for place, position in enumerate(self._positions) if position >= cluster.stop][:1]
        first = (inside or after or before or [0])[0]
        self._note(first, first, f"the checksum of bytes {cluster.start} to {cluster.stop} is that of others")
        self._bad |= {*inside, *before, *after}

    def reject_last(self, fault: str) -> None:
        """The file ends before it should: what came last counts as damaged."""
        self._note(len(self._pts) - 1, len(self._pts), fault)

    def clean_stretch(self, times: Sequence[int | None]) -> range:
        """Which of the frames with these time stamps lie in the longest stretch without damage; may be empty."""
        longest = range(0)
        for packets in self._clean_runs():
            first = self._pts[packets.start]
            # Pictures before the first keyframe in time refer to what was before it.
            shown = {pts for pts in self._pts[packets.start : packets.stop] if pts is not None and pts >= (first or 0)}
            numbers = [number for number, time in enumerate(times) if time in shown]
            whole = bool(numbers) and len(numbers) == numbers[-1] + 1 - numbers[0] == len({times[n] for n in numbers})
            if first is not None and whole and len(numbers) > len(longest):
                longest = range(numbers[0], numbers[-1] + 1)
        return longest

    def _clean_runs(self) -> Iterator[range]:
        """Packets of runs of groups of pictures without a fault."""
        begin: int | None = None
        for key, after in pairwise([*self._keys, len(self._pts)]):
            if any(place in self._bad for place in range(key, after)):
                if begin is not None:
                    yield range(begin, key)
                begin = None
            elif begin is None:
                begin = key
        if begin is not None:
            yield range(begin, len(self._pts))


def _said(error: Exception) -> str:
    """What the decoder has logged of its failure, or the failure itself."""
    _, name, text = getattr(error, "log", None) or (0, "", "")
    return f"{name}: {' '.join(text.split())}" if name else one_line(error)


def _strict_decoder(stream: av.video.stream.VideoStream) -> av.video.codeccontext.VideoCodecContext | None:
    """A decoder of the same pictures that notices more, where there is one here; of 8 bits, which all builds have."""
    name = _STRICT.get(stream.codec_context.name)
    deep = stream.format is None or any(component.bits > 8 for component in stream.format.components)
    if name is None or deep or name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.video.codeccontext.VideoCodecContext)
    decoder.thread_count = 1
    decoder.extradata = stream.codec_context.extradata
    return decoder
