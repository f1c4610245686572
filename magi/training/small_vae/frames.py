"""Which frames the small autoencoder is trained and measured on: a pure function of (seed, step).

Frames of a step come from memory where a few of each video fit there, else from the files, read a few steps ahead in
threads. It knows videos and the config; no network.
"""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from magi.config import DataConfig, VaeTrainingConfig
from magi.data.clips import ClipDataset, evenly_spaced, read_clip
from magi.data.index.index import VideoIndex
from magi.training.log import readable_time

Log = Callable[[str], None]

HELD_OUT_EVERY = 50  # one video in fifty is never trained on and measures the result
CLIP_FRAMES = 4  # frames taken from one video a step where frames do not fit in memory
STEPS_AHEAD = 3
WIDEST_INTERVAL = 25  # frames decoded for a frame that is kept in memory, at most
MEASURED_FRAMES = 2000  # frames that mean and standard deviation are measured on, at most
_FRAME_KEY = 3  # keeps the draw of frames apart from other draws of (seed, step)


class FrameSource(Protocol):
    """Frames of a step, uint8 (batch, H, W, 3): a pure function of the step."""

    def of_step(self, step: int) -> np.ndarray: ...

    def close(self) -> None: ...


class PooledFrames:
    """Frames kept in memory: ``pool_frames`` of each video, evenly spread, read once."""

    def __init__(self, index: VideoIndex, config: VaeTrainingConfig, on_log: Log) -> None:
        began = time.monotonic()
        ends = np.cumsum([0, *(spread_count(record.frames, config.pool_frames)[0] for record in index.videos)])
        self.pool_NHWC = np.empty((ends[-1], config.height, config.width, 3), np.uint8)

        def read(number: int) -> None:
            self.pool_NHWC[ends[number] : ends[number + 1]] = spread_frames(index, number, config, config.pool_frames)

        with ThreadPoolExecutor(max(1, config.workers)) as executor:
            list(executor.map(read, range(len(index.videos))))
        self._config = config
        seconds = time.monotonic() - began
        on_log(f"read {len(self.pool_NHWC)} frames of {len(index.videos)} videos in {readable_time(seconds)}")

    def of_step(self, step: int) -> np.ndarray:
        """Frames drawn uniformly from the pool."""
        random = np.random.default_rng(np.random.SeedSequence([self._config.seed, step], spawn_key=(_FRAME_KEY,)))
        frames_NHWC: np.ndarray = self.pool_NHWC[random.integers(len(self.pool_NHWC), size=self._config.batch)]
        return frames_NHWC

    def close(self) -> None:
        """Nothing is open."""


class ReadFrames:
    """Frames read from the files for every step, in threads a few steps ahead; decoding frees the interpreter."""

    def __init__(self, index: VideoIndex, config: VaeTrainingConfig) -> None:
        shortest = min(record.frames for record in index.videos)
        self._clip = max(1, min(CLIP_FRAMES, shortest, config.batch))
        self._clips_per_step = math.ceil(config.batch / self._clip)
        data = _data_config(config).model_copy(update={"frames": self._clip, "interval_max": 25})
        self._clips, self._config = ClipDataset(index, data, config.seed), config
        self._executor = ThreadPoolExecutor(max(1, config.workers))
        self._ahead: deque[tuple[int, list[Future[np.ndarray]]]] = deque()

    def of_step(self, step: int) -> np.ndarray:
        """Frames of the step's clips, which ``ClipDataset`` draws."""
        if self._ahead and self._ahead[0][0] != step:
            self._ahead.clear()
        following = self._ahead[-1][0] + 1 if self._ahead else step
        for number in range(following, step + STEPS_AHEAD):
            self._ahead.append(
                (number, [self._executor.submit(self._read, sample) for sample in self._samples(number)])
            )
        _, clips = self._ahead.popleft()
        return np.concatenate([clip.result() for clip in clips])[: self._config.batch]

    def _samples(self, step: int) -> range:
        return range(step * self._clips_per_step, (step + 1) * self._clips_per_step)

    def _read(self, sample: int) -> np.ndarray:
        return self._clips[sample].video_THWC

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(cancel_futures=True)


def split_index(index: VideoIndex) -> tuple[VideoIndex, VideoIndex]:
    """(videos to train on, held-out videos): every fiftieth is held out, at least one where there are two or more."""
    held = set(range(HELD_OUT_EVERY // 2, len(index.videos), HELD_OUT_EVERY)) or {len(index.videos) - 1}
    if len(index.videos) == 1:
        return index, index
    training = tuple(record for number, record in enumerate(index.videos) if number not in held)
    held_out = tuple(record for number, record in enumerate(index.videos) if number in held)
    return dataclasses.replace(index, videos=training), dataclasses.replace(index, videos=held_out)


def spread_count(length: int, most: int) -> tuple[int, int]:
    """(frames, interval) of up to ``most`` frames that are evenly spread over a video of ``length`` frames.

    Frames between them are decoded too, so of a long video it is only the beginning.
    """
    interval = min(max(1, length // most), WIDEST_INTERVAL)
    return min(most, (length - 1) // interval + 1), interval


def spread_frames(index: VideoIndex, number: int, config: VaeTrainingConfig, most: int) -> np.ndarray:
    """Up to ``most`` frames of a video, evenly spread over it, uint8 (N, H, W, 3)."""
    frames, interval = spread_count(index.videos[number].frames, most)
    return read_clip(index, number, 0, frames, interval, _data_config(config)).video_THWC


def _data_config(config: VaeTrainingConfig) -> DataConfig:
    return DataConfig(height=config.height, width=config.width, frames=1, interval_min=1, interval_max=1)


def open_frames(index: VideoIndex, config: VaeTrainingConfig, on_log: Log) -> FrameSource:
    """Frames in memory where ``pool_frames`` a video fit in ``pool_megabytes`` and the videos are not long."""
    frames = sum(spread_count(record.frames, config.pool_frames)[0] for record in index.videos)
    megabytes = frames * config.height * config.width * 3 / 1e6
    if megabytes > config.pool_megabytes:
        on_log(f"{frames} frames would take {megabytes:.1f} MB of at most {config.pool_megabytes}: reading by clips")
    elif sum(record.frames for record in index.videos) > WIDEST_INTERVAL * frames:
        on_log("the videos are long: reading by clips")
    else:
        return PooledFrames(index, config, on_log)
    return ReadFrames(index, config)


def some_frames(index: VideoIndex, config: VaeTrainingConfig) -> Iterator[np.ndarray]:
    """Frames of up to 200 evenly chosen videos, ``MEASURED_FRAMES`` in all at most."""
    chosen = evenly_spaced(len(index.videos), 200)
    for number in chosen:
        yield spread_frames(index, number, config, max(1, MEASURED_FRAMES // len(chosen)))
