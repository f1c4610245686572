"""Every video through the autoencoder once, into the folder of shards that ``magi.latents.files`` describes.

Restartable: whole shards are kept, and the same call writes the same bytes however often it was stopped. Worker i of N
takes every N-th shard and needs to know of no other. An autoencoder is a function here.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from magi.config import DataConfig, LatentShape
from magi.data.clips import check_unchanged, clip_span, draw_clip, fit_frames, read_clip
from magi.data.decoding.frames import stream_frames
from magi.data.index.index import VideoIndex
from magi.data.index.records import VideoRecord
from magi.errors import DataError
from magi.files import atomic_write
from magi.latents.files import (
    FIT,
    FORMAT,
    HEADER_NAME,
    EncodedVideo,
    LatentHeader,
    Shard,
    check_tensors,
    is_latents,
    lines_path,
    read_header,
    read_shard,
    shard_text,
    tensor_places,
    tensors_path,
)
from magi.seeding import ENCODED_KEY, bits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Encoder:
    """What is known here of an autoencoder."""

    id: str
    temporal_stride: int
    """1: every frame is encoded on its own."""
    latent: LatentShape
    """Of a clip of ``data.frames`` frames."""
    posterior: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """From video_BTHWC uint8 to mean and standard deviation (B, T, C, H, W)."""


@dataclass(frozen=True)
class EncodeSettings:
    """How the folder is written; all but ``frames_per_batch`` are part of its header."""

    frames_per_batch: int = 64
    """Frames that pass through a 2-D autoencoder at a time."""
    videos_per_shard: int = 100
    clips_per_video: int = 4
    """Clips of each video, where latents mix frames."""
    dtype: str = "float16"
    seed: int = 0
    """Of the starts and intervals of these clips."""


def write_latents(
    index: VideoIndex,
    out: Path,
    config: DataConfig,
    encoder: Encoder,
    settings: EncodeSettings | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> int:
    """Encode every video of ``index`` at ``config.height`` x ``config.width`` into ``out``; returns the shards written.

    ``progress`` is told (done, all) videos of this worker. ``ValueError`` if ``out`` holds latents of other settings,
    ``DataError`` naming the video whose file has changed or whose latents are not finite.
    """
    mine, of = worker
    if not 0 <= mine < of:
        raise ValueError(f"worker {mine}/{of}: expected i/N with i from 0 to N - 1")
    job = _Job(index, out, config, encoder, settings or EncodeSettings())
    _claim(out, job.header)
    shards = range(mine, job.header.shards, of)
    done, total, written = 0, sum(len(job.header.part(shard)) for shard in shards), 0
    for shard in shards:
        videos = {number: index.videos[number] for number in job.header.part(shard)}
        if not _is_whole(out, shard, videos, job.header):
            job.write_shard(shard, videos, _from(done, total, progress))
            written += 1
        done += len(videos)
    for stale in out.glob(f".{HEADER_NAME}.*"):  # left by a kill: nobody writes a header where there is one
        stale.unlink(missing_ok=True)
    if progress is not None:
        progress(done, total)
    return written


def _from(before: int, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Progress within a shard as that of the whole work."""
    return lambda done: None if progress is None else progress(before + done, total)


class _Job:
    """One call of ``write_latents``: what does not change from shard to shard."""

    def __init__(
        self, index: VideoIndex, out: Path, config: DataConfig, encoder: Encoder, settings: EncodeSettings
    ) -> None:
        self.index, self.out, self.config, self.encoder, self.settings = index, out, config, encoder, settings
        sizes = (settings.frames_per_batch, settings.videos_per_shard, settings.clips_per_video)
        if min(sizes) < 1 or settings.dtype not in ("float16", "float32"):
            raise ValueError(
                f"frames_per_batch, videos_per_shard and clips_per_video must be positive and dtype float16 or "
                f"float32, got {sizes} and {settings.dtype}"
            )
        by_clips = encoder.temporal_stride > 1
        self.header = LatentHeader(
            format=FORMAT,
            vae=encoder.id,
            height=config.height,
            width=config.width,
            fit=FIT,
            dtype=settings.dtype,
            channels=encoder.latent.channels,
            latent_height=encoder.latent.height,
            latent_width=encoder.latent.width,
            latent_frames=encoder.latent.frames if by_clips else 0,
            frames=config.frames if by_clips else 0,
            interval_min=config.interval_min if by_clips else 0,
            interval_max=config.interval_max if by_clips else 0,
            clips_per_video=settings.clips_per_video if by_clips else 0,
            seed=settings.seed if by_clips else 0,
            classes=list(index.classes),
            videos=len(index.videos),
            videos_per_shard=settings.videos_per_shard,
            source=_source(index),
        )

    def write_shard(self, shard: int, videos: Mapping[int, VideoRecord], progress: Callable[[int], None]) -> None:
        """Encode the videos of a shard and publish it: tensors first, then the lines that call it whole."""
        tensors: dict[str, NDArray[np.floating]] = {}
        clips: dict[int, list[list[int]]] = {}
        for done, (number, record) in enumerate(videos.items(), start=1):
            check_unchanged(self.index, record)
            clips[number] = self._choose_clips(number, record)
            parts = list(self._encoded_clips(number, clips[number]) if clips[number] else self._encoded_frames(record))
            if parts:
                tensors[f"{number}.mean"] = np.concatenate([mean for mean, _ in parts])
                if any(std.any() for _, std in parts):
                    tensors[f"{number}.std"] = np.concatenate([std for _, std in parts])
            progress(done)
        path = tensors_path(self.out, shard)
        for stale in (*self.out.glob(f".{path.name}.*"), *self.out.glob(f".{path.stem}.jsonl.*")):
            stale.unlink(missing_ok=True)  # what a kill has left of this very shard
        with atomic_write(path) as beside:
            save_file(tensors, beside, metadata={"settings": self.header.digest})
            beside.chmod((self.out / HEADER_NAME).stat().st_mode)  # safetensors keeps others from reading it
            size, (_, places) = beside.stat().st_size, tensor_places(beside)
        encoded = [
            EncodedVideo(
                record.path,
                record.label,
                record.frames,
                places.get(f"{number}.mean", 0),
                places.get(f"{number}.std"),
                clips[number],
            )
            for number, record in videos.items()
        ]
        with atomic_write(lines_path(self.out, shard)) as beside:
            beside.write_text(shard_text(Shard(self.header.digest, size, encoded)), encoding="utf-8")

    def _choose_clips(self, number: int, record: VideoRecord) -> list[list[int]]:
        """(start, interval) of each clip, a pure function of (seed, video number); none if the video is too short."""
        config, count = self.config, self.header.clips_per_video
        if record.frames < clip_span(config.frames, config.interval_min):
            return []
        seed = bits(self.settings.seed, ENCODED_KEY)
        draws = (draw_clip(seed, number * count + k, number, record.frames, config) for k in range(count))
        return [[draw.start, draw.interval] for draw in draws]

    def _encoded_clips(self, number: int, clips: list[list[int]]) -> Iterator[tuple[NDArray, NDArray]]:
        """(mean, std) of each clip, (1, T, C, H, W)."""
        for start, interval in clips:
            clip = read_clip(self.index, number, start, self.config.frames, interval, self.config)
            mean_TCHW, std_TCHW = self._encode(clip.video_THWC, self.index.videos[number], self.header.latent_frames)
            yield mean_TCHW[None], std_TCHW[None]

    def _encoded_frames(self, record: VideoRecord) -> Iterator[tuple[NDArray, NDArray]]:
        """(mean, std) (T, C, H, W) of a whole video, a batch of frames at a time; nothing where clips are encoded."""
        if self.header.by_clips:
            return
        for video_THWC in self._frames(record):
            yield self._encode(video_THWC, record, len(video_THWC))

    def _frames(self, record: VideoRecord) -> Iterator[NDArray[np.uint8]]:
        frames: list[NDArray[np.uint8]] = []
        for frame_HWC in stream_frames(self.index.root / record.path, range(record.frames), record):
            frames.append(fit_frames(frame_HWC[None], self.config.height, self.config.width)[0])
            if len(frames) == self.settings.frames_per_batch:
                yield np.stack(frames)
                frames = []
        if frames:
            yield np.stack(frames)

    def _encode(self, video_THWC: NDArray[np.uint8], record: VideoRecord, frames: int) -> tuple[NDArray, NDArray]:
        header, path = self.header, self.index.root / record.path
        expected = (frames, header.channels, header.latent_height, header.latent_width)
        arrays = []
        for latents_BTCHW in self.encoder.posterior(torch.from_numpy(video_THWC)[None]):
            if latents_BTCHW.shape != (1, *expected):
                raise ValueError(
                    f"autoencoder {self.encoder.id} made {tuple(latents_BTCHW.shape)} of {len(video_THWC)} frames; "
                    f"expected {(1, *expected)} of one with temporal stride {self.encoder.temporal_stride}"
                )
            # NOTE: safetensors writes the memory as it lies, and a convolution's output may lie channels last.
            part_TCHW = latents_BTCHW[0].to("cpu", getattr(torch, header.dtype)).contiguous().numpy()
            if not np.isfinite(part_TCHW).all():
                raise DataError(
                    f"{path}: autoencoder {self.encoder.id} makes latents that are not finite in {header.dtype}; "
                    f"take the video out, or check the autoencoder"
                )
            arrays.append(part_TCHW)
        mean_TCHW, std_TCHW = arrays
        return mean_TCHW, std_TCHW


def _source(index: VideoIndex) -> str:
    """Digest of what is encoded; no times of modification, so that a copied folder continues."""
    digest = hashlib.sha256()
    for record in index.videos:
        digest.update(json.dumps((record.path, record.frames, record.bytes, record.label)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _claim(out: Path, header: LatentHeader) -> None:
    """Write the header, or check that the one there says the same; all workers write the same bytes."""
    if is_latents(out):
        found, asked = asdict(read_header(out)), asdict(header)
        for key in asked:
            if found[key] != asked[key]:
                what = "another list of videos" if key == "source" else f"{key} {found[key]}, asked {asked[key]}"
                raise ValueError(f"{out / HEADER_NAME}: these latents have {what}; choose another folder")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{out}: is a file, not a folder; choose another name") from None
    with atomic_write(out / HEADER_NAME) as beside:
        beside.write_text(json.dumps(asdict(header), indent=1), encoding="utf-8")


def _is_whole(out: Path, number: int, videos: Mapping[int, VideoRecord], header: LatentHeader) -> bool:
    """Whether a shard is there and undamaged; a ``ValueError`` if it is a stranger's, which is never overwritten."""
    if not lines_path(out, number).is_file():
        return False
    try:
        shard = read_shard(out, number, header)
        places = [
            (place, video.mean, video.std)
            for place, video in zip(videos, shard.videos, strict=True)
            if video.clips or not header.by_clips
        ]
        check_tensors(out, number, places, header)
    except DataError:
        return False
    found = [(video.path, video.frames, video.label) for video in shard.videos]
    return found == [(record.path, record.frames, record.label) for record in videos.values()]
