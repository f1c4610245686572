"""Clips from encoded latents on disk, so that training needs neither videos nor an autoencoder.

Where every frame was encoded on its own, clips are drawn from latents exactly as from the videos
(``magi.data.clips.ClipSampler``), so training sees the same frames either way. Where clips were chosen when they were
encoded, an epoch takes one of each video, the next epoch another one. Latents are drawn from the posterior with noise
that is a function of (seed, sample), or are its mean; then they are whitened, by default with the statistics that were
measured while encoding.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magi.config import DataConfig, LatentShape
from magi.data.actions import actions_between
from magi.data.caption_table import CaptionStates, CaptionTable
from magi.data.clips import ClipDraw, ClipSampler, clip_span, epoch_order
from magi.errors import DataError
from magi.latents.files import (
    AGAIN,
    LatentHeader,
    Shard,
    ShardTensors,
    fit,
    lines_path,
    map_shard,
    measured_normalization,
    read_header,
    read_shard,
    tensors_path,
)
from magi.latents.files import is_latents as is_latents
from magi.seeding import RECORDED_KEY, bits, posterior_noise
from magi.vae.normalization import Normalization

_MOST_MAPS = 16384  # shards that are mapped into memory at a time; Linux allows about 65,000 maps a process


@dataclass(frozen=True, eq=False)
class LatentClip:
    """Latents of frames of one video, ``interval`` frames apart."""

    latents_TCHW: NDArray[np.float32]
    interval: int
    label: int | None
    sample: int
    """Sample number that it was drawn with."""
    actions_TA: NDArray[np.float32] | None = None
    """As ``magi.data.clips.Clip``, a row a latent frame."""
    caption: str | None = None
    text_LE: NDArray[np.float32] | None = None
    """Its caption as the states of a frozen encoder, (0, E) for none."""


class LatentDataset:
    """Map-style dataset of clips drawn from a folder of latents; takes any sample number >= 0, holds no state.

    ``ValueError`` if the latents are another autoencoder's or of another size, ``DataError`` if shards are missing.
    In memory are some 30 bytes a video, and its caption if ``captioned``; the rest is read when it is asked for.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        seed: int,
        vae_id: str,
        normalization: Normalization | None = None,
        captioned: bool = False,
    ) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.header = header = read_header(folder)
        _check_header(folder, header, config, vae_id)
        shards = _read_shards(folder, header)
        self._table = _Table.of(header, shards)
        self.captions = _captions(shards) if captioned else None
        self.states: CaptionStates | None = None
        """Where the states of a frozen encoder come from, of a model that reads these."""
        self.draws: ClipSampler | RecordedDraws
        if header.by_clips:
            self.draws = RecordedDraws(self._table.clips_VK2, self._table.counts_V, header, seed)
        else:
            self.draws = ClipSampler(self._table.frames_V, config, seed)
        self.measured = measured_normalization(header, shards)
        """The statistics that were measured while encoding."""
        self.normalize(normalization or self.measured)
        frames = header.latent_frames if header.by_clips else config.frames
        self._shape = (frames, header.channels, header.latent_height, header.latent_width)
        self._maps: dict[int, ShardTensors] = {}

    def normalize(self, normalization: Normalization) -> None:
        """Whiten by ``normalization`` from here on."""
        self._mean_C11, self._std_C11 = (
            torch.tensor(values)[:, None, None] for values in (normalization.mean, normalization.std)
        )

    @property
    def latent_shape(self) -> LatentShape:
        """The size of a clip."""
        frames, channels, height, width = self._shape
        return LatentShape(frames=frames, channels=channels, height=height, width=width)

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
        draw = self.draws.draw(sample)
        shard = self._shard(draw.video)
        latents_TCHW = self._cut(shard.mean_FCHW, draw)
        if self.config.sample_posterior and shard.std_FCHW is not None:
            noise_TCHW = posterior_noise(self._shape, self.seed, sample)
            latents_TCHW = latents_TCHW.addcmul_(self._cut(shard.std_FCHW, draw), noise_TCHW)
        latents_TCHW.sub_(self._mean_C11).div_(self._std_C11)
        # Latents as written are below 1e5, so the sum of squares is finite if they are, and this is the fastest check.
        flat_N = latents_TCHW.view(-1)
        if not math.isfinite(torch.dot(flat_N, flat_N).item()):
            raise DataError(
                f"{self.folder}: latents of {self._path(draw.video)} are not finite; delete the folder and {AGAIN}"
            )
        label, caption = int(self._table.label_V[draw.video]), self._caption(draw)
        return LatentClip(
            latents_TCHW.numpy(),
            draw.interval,
            None if label < 0 else label,
            sample,
            self._actions(shard, draw),
            caption,
            None if self.states is None else self.states[caption],
        )

    def _caption(self, draw: ClipDraw) -> str | None:
        """That of the frames that the clip was encoded from."""
        if self.captions is None:
            return None
        first, frames = draw.start, self.config.frames
        if self.header.by_clips:
            clip = draw.start // self.header.latent_frames
            first, frames = int(self._table.clips_VK2[draw.video, clip, 0]), self.header.frames
        return self.captions.of_clip(draw.video, first, first + clip_span(frames, draw.interval) - 1)

    def _actions(self, shard: ShardTensors, draw: ClipDraw) -> NDArray[np.float32] | None:
        """What led to each frame of the clip."""
        if shard.actions_FA is None:
            return None
        rows_FA = shard.actions_FA.numpy()
        first = int(self._table.first_V[draw.video]) + draw.start
        if self.header.by_clips:
            return np.array(rows_FA[first : first + self._shape[0]])
        return actions_between(rows_FA, first, self._shape[0], draw.interval)

    def _cut(self, latents_FCHW: torch.Tensor, draw: ClipDraw) -> torch.Tensor:
        """latents_TCHW float32, a copy; only the frames of the clip are touched."""
        first, step = int(self._table.first_V[draw.video]) + draw.start, 1 if self.header.by_clips else draw.interval
        last = first + (self._shape[0] - 1) * step
        return latents_FCHW[first : last + 1 : step].to(torch.float32, copy=True)

    def _shard(self, video: int) -> ShardTensors:
        """The tensors that hold a video; they stay mapped."""
        number = video // self.header.videos_per_shard
        found = self._maps.get(number)
        if found is None:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            found = map_shard(self.folder, number, self.header, int(self._table.stored_S[number]))
            self._maps[number] = found
        return found

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
    if header.fit != fit(config.fps):
        raise ValueError(f"{folder}: frames were cut by '{header.fit}', not '{fit(config.fps)}'; {other[3:]}")
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
    """What is known of every video, and where its latents begin in its shard."""

    frames_V: NDArray[np.int64]
    label_V: NDArray[np.int32]
    first_V: NDArray[np.int64]
    clips_VK2: NDArray[np.int32]
    counts_V: NDArray[np.int32]
    stored_S: NDArray[np.int64]
    """Latent frames of every shard."""

    @classmethod
    def of(cls, header: LatentHeader, shards: list[Shard]) -> "_Table":
        """The videos of all shards in the order of the index."""
        videos = [video for shard in shards for video in shard.videos]
        starts = [shard.first_frames(header) for shard in shards]
        clips_VK2 = np.zeros((len(videos), header.clips_per_video, 2), np.int32)
        for number, video in enumerate(videos):
            if video.clips:
                clips_VK2[number, : len(video.clips)] = video.clips
        return cls(
            frames_V=np.array([video.frames for video in videos], np.int64),
            label_V=np.array([-1 if video.label is None else video.label for video in videos], np.int32),
            first_V=np.array([first for shard in starts for first in shard[:-1]], np.int64),
            clips_VK2=clips_VK2,
            counts_V=np.array([len(video.clips) for video in videos], np.int32),
            stored_S=np.array([shard[-1] for shard in starts], np.int64),
        )


def latent_captions(folder: Path) -> CaptionTable:
    """The captions of a folder of latents; errors as for ``LatentDataset``."""
    return _captions(_read_shards(folder, read_header(folder)))


def _captions(shards: list[Shard]) -> CaptionTable:
    return CaptionTable.of(video.spans for shard in shards for video in shard.videos)


def _read_shards(folder: Path, header: LatentHeader) -> list[Shard]:
    missing = [shard for shard in range(header.shards) if not lines_path(folder, shard).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {header.shards} shards missing, first "
            f"{tensors_path(folder, missing[0]).name}; {AGAIN} to finish"
        )
    return [read_shard(folder, number, header) for number in range(header.shards)]
