"""Every video through the autoencoder once, into the folder of shards that ``magi.latents.files`` describes.

Restartable: complete shards stay, and the same call writes the same bytes however often it was stopped. Worker i of N
takes every N-th shard and needs to know of no other. The statistics of the channels are measured in passing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.config import DataConfig
from magi.data.actions import actions_between, pooled, video_track
from magi.data.caption_table import CaptionTable
from magi.data.clips import check_unchanged, clip_span, draw_clip, fit_frames, read_clip
from magi.data.decoding.frames import stream_frames
from magi.data.index.index import VideoIndex
from magi.data.index.records import VideoRecord
from magi.errors import DataError
from magi.files import remove_leftovers, write_text
from magi.latents.files import (
    FORMAT,
    HEADER_NAME,
    EncodedVideo,
    LatentHeader,
    Shard,
    fit,
    lines_path,
    map_shard,
    read_header,
    read_shard,
    shard_text,
    tensors_path,
)
from magi.progress import Report
from magi.seeding import ENCODED_KEY, bits
from magi.vae.contract import Posterior, VideoAutoencoder, latent_shape
from magi.vae.normalization import ChannelStatistics
from magi.weights import write_tensors


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
    actions: int = 0
    """Numbers of an action, read from the track beside each video; 0 reads none."""


def write_latents(
    index: VideoIndex,
    out: Path,
    config: DataConfig,
    vae: VideoAutoencoder,
    settings: EncodeSettings | None = None,
    worker: tuple[int, int] = (0, 1),
    on_progress: Report = lambda done, total: None,
    captions: CaptionTable | None = None,
) -> int:
    """Encode every video of ``index`` at ``config.height`` x ``config.width`` into ``out``; returns the shards written.

    ``captions`` of the videos are written with them; of shards that are complete already, captions alone are replaced.
    ``on_progress`` gets (done, all) videos of this worker. ``ValueError`` if ``out`` holds latents of other settings,
    ``DataError`` naming the video whose file has changed or whose latents are not finite.
    """
    mine, of = worker
    if not 0 <= mine < of:
        raise ValueError(f"worker {mine}/{of}: expected i/N with i from 0 to N - 1")
    job = _Job(index, out, config, vae, settings or EncodeSettings(), captions)
    _claim(out, job.header)
    remove_leftovers(out)
    shards = range(mine, job.header.shards, of)
    done, total, written = 0, sum(len(job.header.videos_of(shard)) for shard in shards), 0
    for shard in shards:
        videos = {number: index.videos[number] for number in job.header.videos_of(shard)}
        if not _is_complete(out, shard, videos, job.header):
            before = done
            job.write_shard(shard, videos, lambda here, before=before: on_progress(before + here, total))  # type: ignore[misc]
            written += 1
        elif captions is not None:
            job.write_captions(shard)
        done += len(videos)
    on_progress(done, total)
    return written


class _Job:
    """One call of ``write_latents``: what does not change from shard to shard."""

    def __init__(
        self,
        index: VideoIndex,
        out: Path,
        config: DataConfig,
        vae: VideoAutoencoder,
        settings: EncodeSettings,
        captions: CaptionTable | None,
    ) -> None:
        self.index, self.out, self.config, self.vae, self.settings = index, out, config, vae, settings
        self.captions = captions
        sizes = (settings.frames_per_batch, settings.videos_per_shard, settings.clips_per_video)
        if min(sizes) < 1 or settings.dtype not in ("float16", "float32"):
            raise ValueError(
                f"frames_per_batch, videos_per_shard and clips_per_video must be positive and dtype float16 or "
                f"float32, got {sizes} and {settings.dtype}"
            )
        by_clips = vae.temporal_stride > 1
        # Frames that are encoded on their own are cut into clips later, so here their number does not matter.
        latent = latent_shape(vae, config if by_clips else config.model_copy(update={"frames": 1}))
        self.header = LatentHeader(
            # A folder of an older format that is still read goes on in it: captions are all that is new.
            format=read_header(out).format if (out / HEADER_NAME).is_file() else FORMAT,
            vae=vae.id,
            height=config.height,
            width=config.width,
            fit=fit(config.fps),
            dtype=settings.dtype,
            channels=latent.channels,
            latent_height=latent.height,
            latent_width=latent.width,
            latent_frames=latent.frames if by_clips else 0,
            frames=config.frames if by_clips else 0,
            interval_min=config.interval_min if by_clips else 0,
            interval_max=config.interval_max if by_clips else 0,
            clips_per_video=settings.clips_per_video if by_clips else 0,
            seed=settings.seed if by_clips else 0,
            classes=list(index.classes),
            videos=len(index.videos),
            videos_per_shard=settings.videos_per_shard,
            source=_source(index),
            actions=settings.actions,
        )

    def write_shard(self, shard: int, videos: Mapping[int, VideoRecord], on_video: Callable[[int], None]) -> None:
        """Encode the videos of a shard and write it: tensors first, then the lines that call it complete."""
        header, statistics = self.header, ChannelStatistics(self.header.channels)
        size, dtype = (0, header.channels, header.latent_height, header.latent_width), getattr(torch, header.dtype)
        means, stds, encoded = [torch.empty(size, dtype=dtype)], [torch.empty(size, dtype=dtype)], []
        actions = [torch.empty(0, header.actions)]
        for done, (number, record) in enumerate(videos.items(), start=1):
            check_unchanged(self.index, record)
            clips = self._choose_clips(number, record)
            for posterior in self._posteriors(number, record, clips):
                statistics.add(posterior.mean_BTCHW, posterior.std_BTCHW)
                means.append(self._stored(posterior.mean_BTCHW, record))
                stds.append(self._stored(posterior.std_BTCHW, record))
            if header.actions:
                actions += self._actions(record, clips)
            encoded.append(self._captioned(EncodedVideo(record.path, record.label, record.frames, clips), number))
            on_video(done)
        tensors = {"mean": torch.cat(means)}
        if any(std.any() for std in stds):
            tensors["std"] = torch.cat(stds)
        if header.actions:
            tensors["actions"] = torch.cat(actions)
        path = tensors_path(self.out, shard)
        write_tensors(path, tensors, {"settings": header.digest})
        found = (statistics.count, list(statistics.mean), list(statistics.squares))
        write_text(lines_path(self.out, shard), shard_text(Shard(header.digest, path.stat().st_size, *found, encoded)))

    def write_captions(self, number: int) -> None:
        """Bring the captions of a complete shard up to date; its tensors stay."""
        assert self.captions is not None
        shard = read_shard(self.out, number, self.header)
        videos = [
            self._captioned(video, place)
            for place, video in zip(self.header.videos_of(number), shard.videos, strict=True)
        ]
        if videos != shard.videos:
            write_text(lines_path(self.out, number), shard_text(replace(shard, videos=videos)))

    def _captioned(self, video: EncodedVideo, number: int) -> EncodedVideo:
        if self.captions is None:
            return video
        segments = [list(span) for span in self.captions.segments(number)]
        return replace(video, caption=self.captions[number], segments=segments)

    def _choose_clips(self, number: int, record: VideoRecord) -> list[list[int]]:
        """(start, interval) of each clip, a pure function of (seed, video number); none if the video is too short."""
        config, count = self.config, self.header.clips_per_video
        if record.frames < clip_span(config.frames, config.interval_min):
            return []
        seed = bits(self.settings.seed, ENCODED_KEY)
        draws = (draw_clip(seed, number * count + k, number, record.frames, config) for k in range(count))
        return [[draw.start, draw.interval] for draw in draws]

    def _actions(self, record: VideoRecord, clips: list[list[int]]) -> list[Tensor]:
        """What led to each latent frame, of each clip or of the whole video."""
        rows_FA = video_track(self.index.root / record.path, self.header.actions, record.frames)
        if not self.header.by_clips:
            return [torch.from_numpy(rows_FA)]
        of_clips = (actions_between(rows_FA, start, self.config.frames, interval) for start, interval in clips)
        return [torch.from_numpy(pooled(rows_TA, self.header.latent_frames)) for rows_TA in of_clips]

    def _posteriors(self, number: int, record: VideoRecord, clips: list[list[int]]) -> Iterator[Posterior]:
        """Of each clip, or of the frames of a whole video, a batch at a time; in the units of the autoencoder."""
        if self.header.by_clips:
            for start, interval in clips:
                clip = read_clip(self.index, number, start, self.config.frames, interval, self.config)
                yield self._encoded(clip.video_THWC, self.header.latent_frames)
            return
        for video_THWC in self._frames(record):
            yield self._encoded(video_THWC, len(video_THWC))

    def _frames(self, record: VideoRecord) -> Iterator[NDArray[np.uint8]]:
        frames: list[NDArray[np.uint8]] = []
        for frame_HWC in stream_frames(self.index.root / record.path, range(record.frames), record):
            frames.append(fit_frames(frame_HWC[None], self.config.height, self.config.width)[0])
            if len(frames) == self.settings.frames_per_batch:
                yield np.stack(frames)
                frames = []
        if frames:
            yield np.stack(frames)

    def _encoded(self, video_THWC: NDArray[np.uint8], frames: int) -> Posterior:
        header, posterior = self.header, self.vae.posterior_raw(torch.from_numpy(video_THWC)[None])
        expected = (1, frames, header.channels, header.latent_height, header.latent_width)
        for latents_BTCHW in (posterior.mean_BTCHW, posterior.std_BTCHW):
            if latents_BTCHW.shape != expected:
                raise ValueError(
                    f"autoencoder {header.vae} made {tuple(latents_BTCHW.shape)} of {len(video_THWC)} frames; "
                    f"expected {expected} of one with temporal stride {self.vae.temporal_stride}"
                )
        return posterior

    def _stored(self, latents_BTCHW: Tensor, record: VideoRecord) -> Tensor:
        """latents_FCHW as they are written; a ``DataError`` names the video of one that is not finite."""
        latents_FCHW = latents_BTCHW[0].to("cpu", getattr(torch, self.header.dtype)).contiguous()
        if not latents_FCHW.isfinite().all():
            raise DataError(
                f"{self.index.root / record.path}: autoencoder {self.header.vae} makes latents that are not finite in "
                f"{self.header.dtype}; take the video out, or check the autoencoder"
            )
        return latents_FCHW


def _source(index: VideoIndex) -> str:
    """Digest of what is encoded; no times of modification, so that a copied folder continues."""
    digest = hashlib.sha256()
    for record in index.videos:
        digest.update(json.dumps((record.path, record.frames, record.bytes, record.label)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _claim(out: Path, header: LatentHeader) -> None:
    """Write the header, or check that the one there says the same; all workers write the same bytes."""
    if (out / HEADER_NAME).is_file():
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
    write_text(out / HEADER_NAME, json.dumps(asdict(header), indent=1))


def _is_complete(out: Path, number: int, videos: Mapping[int, VideoRecord], header: LatentHeader) -> bool:
    """Whether a shard is there and undamaged; ``ValueError`` if it is another folder's, which is never overwritten."""
    if not lines_path(out, number).is_file():
        return False
    try:
        shard = read_shard(out, number, header)
        map_shard(out, number, header, shard.first_frames(header)[-1])
    except DataError:
        return False
    found = [(video.path, video.frames, video.label) for video in shard.videos]
    return found == [(record.path, record.frames, record.label) for record in videos.values()]
