"""Stand-ins for evaluations: small coloured videos in class folders, a pipeline that paints, a quick network."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from magi.config import Config
from magi.data.index import VideoIndex, VideoRecord
from magi.data.write import write_mp4
from magi.evaluation.real_clips import RealClips
from magi.presets import preset
from magi.vae.pixel import PixelVae


def painted(seed: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Video_THWC of a warm blob that drifts over a cold ground; place, way and size are drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    at_2, way_2 = rng.uniform(0.3, 0.7, 2), rng.uniform(-0.02, 0.02, 2)
    y_H, x_W = np.arange(height) / height, np.arange(width) / width
    video = np.empty((frames, height, width, 3))
    for t in range(frames):
        y, x = (at_2 + t * way_2) % 1
        blob_HW = np.exp(-((y_H[:, None] - y) ** 2 + (x_W - x) ** 2) / (0.02 + 0.02 * (seed % 5)))
        video[t] = 60 * (1 - blob_HW[..., None]) * np.array([0.2, 0.6, 1.0]) + 230 * blob_HW[..., None] * np.array(
            [1.0, 0.6, 0.1]
        )
    return video.round().astype(np.uint8)


def write_look_alikes(folder: Path, videos: int, frames: int = 60, height: int = 32, width: int = 48) -> Path:
    """``videos`` mp4 files in three class folders."""
    for number in range(videos):
        name = ("arch", "bowl", "cart")[number % 3]
        write_mp4(folder / name / f"v_{number:03d}.mp4", painted(number, frames, height, width), 25)
    return folder


class PaintedClips(RealClips):
    """Reads the frames that ``look_alike_index`` tells of, without files."""

    def _frames(self, record: VideoRecord, numbers: range) -> Iterator[NDArray[np.uint8]]:
        video_THWC = _source(int(record.path.split("_")[1][:3]), record.frames, record.height, record.width)
        return iter([video_THWC[number] for number in numbers])


@lru_cache(maxsize=256)
def _source(number: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    return painted(number, frames, height, width)


def look_alike_index(videos: int, frames: int = 56, height: int = 32, width: int = 48) -> VideoIndex:
    """The index of what ``write_look_alikes`` would write."""
    names = ("arch", "bowl", "cart")
    records = [
        VideoRecord(frames, height, width, 25.0, range(frames), f"{names[k % 3]}/v_{k:03d}.mp4", k % 3, 1000, 1)
        for k in range(videos)
    ]
    return VideoIndex(Path("look-alikes"), names, tuple(records))


class Painter:
    """A pipeline whose sample of seed s is ``painted`` by s; it keeps what it was asked."""

    def __init__(self, size: int = 32, classes: int = 3, fail_at_call: int = 0) -> None:
        values = preset("digits").model_dump()
        values["data"] |= {"height": size, "width": size}
        values["model"] |= {"classes": classes}
        self.config, self.vae = Config.model_validate(values), PixelVae(8)
        self.classes = ("arch", "bowl", "cart")[:classes] or None
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.asked: list[dict[str, Any]] = []
        self.fail_at_call, self.size = fail_at_call, size

    def stream(
        self,
        *,
        frames: int,
        context: Tensor | None,
        labels: Sequence[int | str | None] | None,
        interval: int,
        seeds: Sequence[int],
    ) -> Iterator[Tensor]:
        given = 0 if context is None else context.shape[1]
        self.asked.append({"seeds": list(seeds), "labels": labels, "interval": interval, "context": context})
        if len(self.asked) == self.fail_at_call:
            raise KeyboardInterrupt
        made = [_source(1000 + seed, frames, self.size, self.size) for seed in seeds]
        for t in range(given, frames):
            yield torch.stack([torch.from_numpy(video[t]) for video in made])


class Projection:
    """Mean colours of four quarters over time, and their mean change: quick, sees colour, place and order."""

    name, hash, dimension, minimum_frames = "projection", "0" * 64, 6, 9

    def features(self, video_BTHWC: Tensor) -> Tensor:
        frames_FCHW = video_BTHWC.movedim(-1, 2).flatten(0, 1).float() / 255
        small_BTC22 = functional.adaptive_avg_pool2d(frames_FCHW, 2).unflatten(0, video_BTHWC.shape[:2])
        steps_BT = small_BTC22.flatten(2).diff(dim=1).abs().mean(2)
        colour_BC = small_BTC22.mean((1, 3, 4))
        sides = [small_BTC22[:, :, 0, 0].mean((1, 2)), small_BTC22[:, 0, 0, 1].mean(1)]
        return torch.cat([colour_BC, torch.stack([*sides, steps_BT.mean(1) * 80], dim=1)], dim=1)
