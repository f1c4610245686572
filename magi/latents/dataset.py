"""Clips from encoded latents on disk, so that training needs neither videos nor an autoencoder.

Where every frame was encoded on its own, clips are drawn from latents exactly as from the videos
(``magi.data.clips.ClipSampler``), so training sees the same frames either way. Where clips were chosen when they were
encoded, an epoch takes one of each video, the next epoch another one. Latents are drawn from the posterior with noise
that is a function of (seed, sample), or are its mean.

An autoencoder is known by its id; how latents are written is ``magi.latents.encode``'s to know.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magi.config import DataConfig, LatentShape
from magi.data.clips import ClipDraw, ClipSampler, epoch_order
from magi.errors import DataError
from magi.latents.files import (
    AGAIN,
    FIT,
    LatentHeader,
    check_bytes,
    check_tensors,
    lines_path,
    read_header,
    read_shard,
    tensors_path,
)
from magi.latents.files import HEADER_NAME as HEADER_NAME
from magi.latents.files import is_latents as is_latents
from magi.seeding import RECORDED_KEY, bits, posterior_noise

_MOST_MAPS = 16384  # shards that are mapped into memory at a time; Linux allows about 65,000 maps a process


@dataclass(frozen=True, eq=False)
class LatentClip:
    """Latents of frames of one video, ``interval`` frames apart."""

    latents_TCHW: NDArray[np.float32]
    interval: int
    label: int | None
    sample: int
    """Sample number that it was drawn with."""


class LatentDataset:
    """Map-style dataset of clips drawn from a folder of latents; takes any sample number >= 0, holds no state.

    ``ValueError`` if the latents are another autoencoder's or of another size, ``DataError`` if shards are missing.
    In memory are some 30 bytes a video; the rest is read when it is asked for.
    """

    def __init__(self, folder: Path, config: DataConfig, seed: int, vae_id: str) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.header = header = read_header(folder)
        _check_header(folder, header, config, vae_id)
        self._table = _read_table(folder, header)
        self.draws: ClipSampler | RecordedDraws
        if header.by_clips:
            self.draws = RecordedDraws(self._table.clips_VK2, self._table.counts_V, header, seed)
        else:
            self.draws = ClipSampler(self._table.frames_V, config, seed)
        frames = header.latent_frames if header.by_clips else config.frames
        self.latent_shape = LatentShape(
            frames=frames, channels=header.channels, height=header.latent_height, width=header.latent_width
        )
        self._shape = (frames, header.channels, header.latent_height, header.latent_width)
        self._frame_bytes, self._item = header.frame_bytes, np.dtype(header.dtype).itemsize
        self._maps: dict[int, torch.Tensor] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.header.classes)

    @property
    def too_short(self) -> int:
        """Videos left out because no clip fits."""
        return self.draws.too_short

    def __len__(self) -> int:
        """Clips of an epoch; sample numbers go on beyond it."""
        return len(self.draws)

    def __getitem__(self, sample: int) -> LatentClip:
        draw, table = self.draws.draw(sample), self._table
        video = draw.video
        latents_TCHW = self._read(video, int(table.mean_V[video]), draw)
        std = int(table.std_V[video])
        if self.config.sample_posterior and std >= 0:
            noise_TCHW = posterior_noise(self._shape, self.seed, sample)
            latents_TCHW = latents_TCHW.addcmul_(self._read(video, std, draw), noise_TCHW)
        # Latents as written are below 1e5, so the sum of squares is finite if they are, and this is the fastest check.
        flat_N = latents_TCHW.view(-1)
        if not math.isfinite(torch.dot(flat_N, flat_N).item()):
            raise DataError(
                f"{self.folder}: latents of {self._path(video)} are not finite; delete the folder and {AGAIN}"
            )
        label = int(table.label_V[video])
        return LatentClip(latents_TCHW.numpy(), draw.interval, None if label < 0 else label, sample)

    def _read(self, video: int, begin: int, draw: ClipDraw) -> torch.Tensor:
        """latents_TCHW float32, a copy; only the frames of the clip are touched."""
        shard = video // self.header.videos_per_shard
        mapped = self._maps.get(shard)
        if mapped is None:
            mapped = self._map(shard)
        height, width = self._shape[2:]
        step = 1 if self.header.by_clips else draw.interval
        strides = (step * self._frame_bytes // self._item, height * width, width, 1)
        first = (begin + draw.start * self._frame_bytes) // self._item
        return mapped.as_strided(self._shape, strides, first).to(torch.float32, copy=True)

    def _map(self, shard: int) -> torch.Tensor:
        """The file of a shard as numbers of its dtype; it stays mapped, and holds no file descriptor.

        NOTE: who cuts a mapped file short kills its readers; shards are only ever replaced whole.
        """
        size, videos = int(self._table.bytes_S[shard]), self.header.part(shard)
        check_bytes(self.folder, shard, size)
        stds = [int(std) for std in self._table.std_V[videos.start : videos.stop]]
        means = [int(mean) for mean in self._table.mean_V[videos.start : videos.stop]]
        check_tensors(
            self.folder,
            shard,
            [
                (number, mean, None if std < 0 else std)
                for number, mean, std in zip(videos, means, stds, strict=True)
                if mean >= 0
            ],
            self.header,
        )
        if len(self._maps) >= _MOST_MAPS:
            self._maps.clear()
        dtype = getattr(torch, self.header.dtype)
        self._maps[shard] = torch.from_file(
            os.fspath(tensors_path(self.folder, shard)), shared=False, size=size // self._item, dtype=dtype
        )
        return self._maps[shard]

    def _path(self, video: int) -> str:
        number, place = divmod(video, self.header.videos_per_shard)
        return read_shard(self.folder, number, self.header).videos[place].path

    def __getstate__(self) -> dict[str, Any]:
        """Maps stay in their process; a loader's process makes its own."""
        return self.__dict__ | {"_maps": {}}


class RecordedDraws:
    """Draws from clips that were chosen when they were encoded, as ``ClipSampler`` does from videos.

    Every epoch visits every video once, in a new order, and in K epochs each of its K clips.
    """

    def __init__(
        self, clips_VK2: NDArray[np.int32], counts_V: NDArray[np.int32], header: LatentHeader, seed: int
    ) -> None:
        """``clips_VK2``: (start, interval) of each clip; ``DataError`` if no video has one."""
        self._clips_VK2, self._counts_V, self._seed = clips_VK2, counts_V, seed
        self._latent_frames = header.latent_frames
        self._usable_V = np.flatnonzero(counts_V)
        self.too_short = len(counts_V) - len(self._usable_V)
        """Videos left out because no clip fits."""
        if not len(self._usable_V):
            raise DataError(
                f"every video is too short: none of {len(counts_V)} videos held a clip of {header.frames} frames at "
                f"interval {header.interval_min} when it was encoded; encode with a lower --frames or --interval-min"
            )

    def __len__(self) -> int:
        """Samples of an epoch: one a usable video."""
        return len(self._usable_V)

    def draw(self, sample: int) -> ClipDraw:
        """The clip of a sample number >= 0; ``start`` counts latent frames behind those of the video's first clip."""
        epoch, place = divmod(sample, len(self))
        video = int(self._usable_V[epoch_order(self._seed, epoch, len(self))[place]])
        clip = (epoch + bits(self._seed, video, RECORDED_KEY)) % int(self._counts_V[video])
        return ClipDraw(video, clip * self._latent_frames, int(self._clips_VK2[video, clip, 1]))


def _check_header(folder: Path, header: LatentHeader, config: DataConfig, vae_id: str) -> None:
    other = "or run 'magi encode' into another folder"
    if header.vae != vae_id:
        raise ValueError(
            f"{folder}: latents were made by autoencoder {header.vae}, not {vae_id}; choose that one, {other}"
        )
    made, asked = (header.height, header.width), (config.height, config.width)
    if made != asked:
        raise ValueError(f"{folder}: latents are of {made[0]}x{made[1]} frames, data has {asked[0]}x{asked[1]}")
    if header.fit != FIT:
        raise ValueError(f"{folder}: frames were cut by '{header.fit}', not '{FIT}'; {other[3:]}")
    if not header.by_clips:
        return
    for name, made_it, asked_it in (
        ("frames", header.frames, config.frames),
        ("interval_min", header.interval_min, config.interval_min),
        ("interval_max", header.interval_max, config.interval_max),
    ):
        if made_it != asked_it:
            raise ValueError(
                f"{folder}: its clips were encoded with data.{name} {made_it}, not {asked_it}; "
                f"set --data.{name} {made_it}, {other}"
            )


@dataclass(frozen=True, eq=False)
class _Table:
    """Where the latents of every video lie."""

    frames_V: NDArray[np.int64]
    label_V: NDArray[np.int32]
    mean_V: NDArray[np.int64]
    std_V: NDArray[np.int64]
    clips_VK2: NDArray[np.int32]
    counts_V: NDArray[np.int32]
    bytes_S: NDArray[np.int64]


def _read_table(folder: Path, header: LatentHeader) -> _Table:
    """The videos of all shards in the order of the index."""
    missing = [shard for shard in range(header.shards) if not lines_path(folder, shard).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {header.shards} shards missing, first "
            f"{tensors_path(folder, missing[0]).name}; {AGAIN} to finish"
        )
    videos, clips = header.videos, header.clips_per_video
    table = _Table(
        frames_V=np.zeros(videos, np.int64),
        label_V=np.zeros(videos, np.int32),
        mean_V=np.full(videos, -1, np.int64),
        std_V=np.full(videos, -1, np.int64),
        clips_VK2=np.zeros((videos, clips, 2), np.int32),
        counts_V=np.zeros(videos, np.int32),
        bytes_S=np.zeros(header.shards, np.int64),
    )
    for number in range(header.shards):
        shard = read_shard(folder, number, header)
        table.bytes_S[number] = shard.bytes
        for place, video in zip(header.part(number), shard.videos, strict=True):
            table.frames_V[place] = video.frames
            table.label_V[place] = -1 if video.label is None else video.label
            table.counts_V[place] = len(video.clips)
            if not header.by_clips or video.clips:
                table.mean_V[place] = video.mean
                table.std_V[place] = -1 if video.std is None else video.std
            if video.clips:
                table.clips_VK2[place, : len(video.clips)] = video.clips
    return table
