"""Real clips by the rows of a clip table, and what a protocol does to clips before they are scored.

A frame is cut and resized in one resampling by the filter that the protocol names; every resize rounds to uint8 (half
to even), and real and generated clips go through the same resize to the size at which they are scored. Knows no
networks.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from magi.data.clips import clip_span
from magi.data.decoding.frames import stream_frames
from magi.data.index.index import VideoIndex, VideoRecord
from magi.evaluation.metrics.resize import resize_bilinear
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.protocols import EvaluationProtocol
from magi.seeding import torch_generator

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class RealClips:
    """Reads the clips of rows, at the protocol's size or at another one."""

    def __init__(self, protocol: EvaluationProtocol, index: VideoIndex) -> None:
        self.protocol, self.index = protocol, index
        self._numbers = {record.path: number for number, record in enumerate(index.videos)}
        self.lengths = {record.path: record.frames for record in index.videos}
        """Frames of every video by its path."""

    def read(self, row: ClipRow, size: tuple[int, int] | None = None, frames: int = 0, interval: int = 0) -> Tensor:
        """Video_THWC uint8 of a row; ``frames`` and ``interval`` other than the row's where they are given.

        ``ValueError`` where the video does not hold them.
        """
        protocol, record = self.protocol, self.index.videos[self._numbers[row.video]]
        frames, interval = frames or row.frames, interval or row.interval
        height, width = size or (protocol.read_size, protocol.read_size)
        start = min(row.start, record.frames - clip_span(frames, interval))  # a longer clip may have to begin earlier
        if start < 0:
            raise ValueError(f"{row.video}: has no {frames} frames at interval {interval}; use longer videos")
        numbers = range(start, start + clip_span(frames, interval), interval)
        video_THWC = np.empty((frames, height, width, 3), np.uint8)
        for slot, frame_HWC in enumerate(self._frames(record, numbers)):
            video_THWC[slot] = self._fitted(frame_HWC, height, width, row)
        return torch.from_numpy(video_THWC)

    def batches(self, rows: Sequence[ClipRow], batch: int, frames: int = 0, interval: int = 0) -> Iterator[Tensor]:
        """Video_BTHWC of rows as they are scored, ``batch`` at a time."""
        for start in range(0, len(rows), batch):
            clips = [self.read(row, frames=frames, interval=interval) for row in rows[start : start + batch]]
            yield to_score_size(torch.stack(clips), self.protocol)

    def _frames(self, record: VideoRecord, numbers: range) -> Iterator[NDArray[np.uint8]]:
        return stream_frames(self.index.root / record.path, numbers, record)

    def _fitted(self, frame_HWC: NDArray[np.uint8], height: int, width: int, row: ClipRow) -> NDArray[np.uint8]:
        old_height, old_width = frame_HWC.shape[:2]
        image = Image.fromarray(frame_HWC)
        if (old_height, old_width) != (height, width):
            scale_x, scale_y = width / old_width, height / old_height
            if self.protocol.crop != "squash":
                scale_x = scale_y = max(scale_x, scale_y)
            slack_x, slack_y = max(0.0, old_width - width / scale_x), max(0.0, old_height - height / scale_y)
            left, top = slack_x * row.crop_x, slack_y * row.crop_y
            box = (left, top, left + old_width - slack_x, top + old_height - slack_y)
            image = image.resize((width, height), _FILTERS[self.protocol.read_filter], box=box)
        if self.protocol.jpeg_quality:
            image = _through_jpeg(image, self.protocol.jpeg_quality)
        return np.asarray(image)


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def to_score_size(video_BTHWC: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """Clips at the size and by the kernel that the protocol scores at, uint8; ``ValueError`` for smaller clips."""
    size = protocol.score_size
    height, width = video_BTHWC.shape[2:4]
    if (height, width) == (size, size):
        return video_BTHWC
    if min(height, width) < size:
        raise ValueError(
            f"clips of {height} x {width} pixels, {protocol.name} scores at {size} x {size}: enlarging would flatter "
            "them; use a model of that size, or override with --size, which the name of the score then says"
        )
    frames_NCHW = video_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float()
    small_NCHW = resize_bilinear(frames_NCHW, size, size, protocol.score_kernel)
    return quantised(small_NCHW.permute(0, 2, 3, 1)).unflatten(0, video_BTHWC.shape[:2])


def quantised(frames: Tensor) -> Tensor:
    """Grey levels 0..255 as uint8: rounded half to even, clamped."""
    return frames.round().clamp(0, 255).to(torch.uint8)


def shuffled(video_BTHWC: Tensor, first: int) -> Tensor:
    """Each clip with its frames in a random order of its own, drawn from the clip's number, from ``first`` on."""
    generators = [torch_generator("shuffled", first + number) for number in range(len(video_BTHWC))]
    return torch.stack(
        [clip[torch.randperm(len(clip), generator=g)] for clip, g in zip(video_BTHWC, generators, strict=True)]
    )


def frozen(video_BTHWC: Tensor) -> Tensor:
    """Each clip's first frame, as long as the clip."""
    return video_BTHWC[:, :1].expand_as(video_BTHWC).contiguous()
