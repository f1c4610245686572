"""(seed, sample number) -> clip: which video, from where, at which interval, at which size.

Everything random is a pure function of the seed and the sample number, so the order of clips is the same for any
number of loader processes or ranks, and a run resumes from one integer. Dynamic interval: paper section 4 ("uniform in
1..25"); a clip's interval is drawn uniformly from those that its video is long enough for.

This module knows no files' insides, latents, batches or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magi.config import DataConfig
from magi.data.actions import actions_between, video_track
from magi.data.caption_table import CaptionStates, CaptionTable
from magi.data.decoding.frames import stream_frames
from magi.data.index.index import VideoIndex
from magi.data.index.records import VideoRecord
from magi.data.index.sources import ListedFile
from magi.errors import DataError
from magi.seeding import EPOCH_KEY, INTERVAL_KEY, START_KEY, integer, permutation


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one video, ``interval`` frames apart."""

    video_THWC: np.ndarray
    """uint8 RGB."""
    interval: int
    label: int | None
    """Number of the class; None for a video outside class folders."""
    sample: int
    """Sample number that it was drawn with; -1 for a clip that was chosen, not drawn."""
    actions_TA: np.ndarray | None = None
    """Of a data set with actions: float32, row t led from frame t - 1 to frame t; NaN is no action."""
    caption: str | None = None
    text_LE: NDArray[np.float32] | None = None
    """Its caption as the states of a frozen encoder, (0, E) for none."""


@dataclass(frozen=True)
class ClipDraw:
    """Where a clip lies: video number in the index, first frame, interval."""

    video: int
    start: int
    interval: int


class ClipSampler:
    """Draws clips from videos of known lengths; clips and latents share it, so both train on the same frames.

    Sample numbers count on from epoch to epoch: sample ``s`` lies in epoch ``s // len(draws)``, and every epoch visits
    every long enough video once, in a new order.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], config: DataConfig, seed: int) -> None:
        """``lengths``: frames of each video of an index; ``DataError`` if every video is too short for a clip."""
        lengths_V = np.asarray(lengths, np.int64)
        needed = clip_span(config.frames, config.interval_min)
        self._usable_V = np.flatnonzero(lengths_V >= needed)
        self._lengths_V = lengths_V
        self._config, self._seed = config, seed
        self.too_short = len(lengths_V) - len(self._usable_V)
        """Videos left out because no clip fits."""
        if not len(self._usable_V):
            raise DataError(
                f"every video is too short: a clip of {config.frames} frames at interval {config.interval_min} needs "
                f"{needed} frames, the longest of {len(lengths_V)} videos has {lengths_V.max(initial=0)}; "
                f"lower data.frames or data.interval_min"
            )

    def __len__(self) -> int:
        """Samples of an epoch: one a usable video."""
        return len(self._usable_V)

    def draw(self, sample: int) -> ClipDraw:
        """The clip of a sample number >= 0, a pure function of (seed, sample, lengths, config)."""
        epoch, place = divmod(sample, len(self))
        video = int(self._usable_V[epoch_order(self._seed, epoch, len(self))[place]])
        return draw_clip(self._seed, sample, video, int(self._lengths_V[video]), self._config)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of 0..count-1, read-only; cached, because it costs O(count) and every sample of an epoch asks."""
    order_V = permutation(count, seed, epoch, EPOCH_KEY)
    order_V.setflags(write=False)
    return order_V


def draw_clip(seed: int, sample: int, video: int, length: int, config: DataConfig) -> ClipDraw:
    """Interval uniform in what fits into ``length`` frames, then a start uniform in what is left."""
    fits = (length - 1) // max(1, config.frames - 1)
    largest = max(config.interval_min, min(config.interval_max, fits))
    interval = integer(config.interval_min, largest, seed, sample, INTERVAL_KEY)
    start = integer(0, length - clip_span(config.frames, interval), seed, sample, START_KEY)
    return ClipDraw(video, start, interval)


def clip_span(frames: int, interval: int) -> int:
    """Frames of a video that a clip stretches over, first to last."""
    return (frames - 1) * interval + 1


def evenly_spaced(count: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers 0..count-1, evenly spaced, the first and the last among them where two or more."""
    return [int(number) for number in np.linspace(0, count - 1, min(count, most)).round()]


class ClipDataset:
    """Map-style dataset of drawn clips for a plain ``DataLoader``; takes any sample number >= 0 and holds no state.

    With ``actions`` above 0 each clip has rows of so many numbers, from the track beside its video; with ``captions``
    of the videos of ``index`` that of its video.
    """

    def __init__(
        self, index: VideoIndex, config: DataConfig, seed: int, actions: int = 0, captions: CaptionTable | None = None
    ) -> None:
        self.index, self.config, self.actions, self.captions = index, config, actions, captions
        self.states: CaptionStates | None = None
        """Where the states of a frozen encoder come from, of a model that reads these."""
        self.draws = ClipSampler(index.frame_counts(), config, seed)

    @property
    def too_short(self) -> int:
        """Videos left out because no clip fits."""
        return self.draws.too_short

    def __len__(self) -> int:
        """Clips of an epoch; sample numbers go on beyond it."""
        return len(self.draws)

    def __getitem__(self, sample: int) -> Clip:
        draw = self.draws.draw(sample)
        clip = read_clip(self.index, draw.video, draw.start, self.config.frames, draw.interval, self.config, sample)
        if self.captions is not None:
            last = draw.start + clip_span(self.config.frames, draw.interval) - 1
            caption = self.captions.of_clip(draw.video, draw.start, last)
            clip = replace(clip, caption=caption, text_LE=self.states[caption] if self.states is not None else None)
        if not self.actions:
            return clip
        record = self.index.videos[draw.video]
        track_FA = video_track(self.index.root / record.path, self.actions, record.frames)
        return replace(clip, actions_TA=actions_between(track_FA, draw.start, self.config.frames, draw.interval))


def read_clip(
    index: VideoIndex, video: int, start: int, frames: int, interval: int, config: DataConfig, sample: int = -1
) -> Clip:
    """A chosen clip, resized and cropped to ``config.height`` x ``config.width``.

    ``ValueError`` where the video does not hold it, ``DataError`` where the file no longer matches the index.
    """
    if not 0 <= video < len(index.videos):
        raise ValueError(f"video number {video} is not within the {len(index.videos)} videos of {index.root}")
    record = index.videos[video]
    if min(start, frames - 1, interval - 1) < 0 or start + clip_span(frames, interval) > record.frames:
        raise ValueError(
            f"{record.path}: has {record.frames} frames, but {frames} frames at interval {interval} from frame {start} "
            f"were asked for; ask for fewer, or choose a longer video"
        )
    check_unchanged(index, record)
    video_THWC = np.empty((frames, config.height, config.width, 3), np.uint8)
    numbers = range(start, start + clip_span(frames, interval), interval)
    for slot, frame_HWC in enumerate(stream_frames(index.root / record.path, numbers, record)):
        video_THWC[slot] = fit_frames(frame_HWC[None], config.height, config.width)[0]
    return Clip(video_THWC, interval, record.label, sample)


def check_unchanged(index: VideoIndex, record: VideoRecord) -> None:
    """A ``DataError`` naming the video unless it is the file that was indexed.

    A damaged file can kill the process that decodes it. Indexing has decoded every file once in a process of its own,
    so one that is still the same may be opened in the caller's, and no other.
    """
    now = ListedFile.of(index.root, record.path)
    if (now.bytes, now.mtime_ns) != (record.bytes, record.mtime_ns):
        what = "has changed" if now.bytes else "is gone or empty"
        raise DataError(f"{index.root / record.path}: {what} since it was indexed; run 'magi data index' on its folder")


def fit_frames(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames of exactly ``height`` x ``width``: scaled to cover the target with their shape kept, then centre-cropped.

    Scaling and cropping are one resampling of the largest centred rectangle that has the target's proportions, with
    Pillow's antialiased bicubic filter, so nothing is stretched by a rounded size. Frames that have the size already
    are returned as they are. uint8 in, uint8 out.
    """
    old_height, old_width = video_THWC.shape[1:3]
    if (old_height, old_width) == (height, width):
        return video_THWC
    scale = max(height / old_height, width / old_width)
    left, top = (old_width - width / scale) / 2, (old_height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(old_width, old_width - left), min(old_height, old_height - top))
    images = (Image.fromarray(frame_HWC) for frame_HWC in video_THWC)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)) for image in images])
