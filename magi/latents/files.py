"""What encoded latents look like on disk, and what is checked when they are read back.

A folder holds a header (``magi-latents.json``: which autoencoder, at which size, of which videos) and shards of about a
hundred videos: a safetensors file, and a JSONL that appears last, says that the shard is complete, and holds the
videos in the order of their latents and the statistics of each channel. There are two kinds:

- of an autoencoder that encodes every frame on its own (2-D): every frame of every video, so any clip can be cut;
- of one whose latents mix frames (3-D): K clips of each video, whose starts and intervals its line records.

The tensors ``mean`` and ``std`` (frames, C, H, W) are the posterior in the units of the autoencoder, of all videos of
a shard one after another. A standard deviation that is zero throughout (a deterministic autoencoder) is left out.
``actions`` (frames, A) float32, where the videos have them, are what led to each latent frame; NaN is no action.
Captions are in the lines; a folder of format 4 has none, and is read all the same.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from magi.data.caption_table import Span, whole_caption
from magi.errors import DataError
from magi.files import read_text, utf8_name
from magi.vae.normalization import ChannelStatistics, Normalization

HEADER_NAME = "magi-latents.json"
FORMAT = 5
READ_FORMATS = (4, FORMAT)
AGAIN = "run 'magi encode' again"


def fit(fps: float) -> str:
    """How frames get their size (``magi.data.clips.fit_frames``), and at which rate they are taken, 0 for their own."""
    return "cover, centre crop, bicubic" + (f", {fps:g} frames a second" if fps else "")


@dataclass(frozen=True)
class LatentHeader:
    """What all latents of a folder share; ``height`` and ``width`` are those of the frames, in pixels."""

    format: int
    vae: str
    height: int
    width: int
    fit: str
    dtype: str
    channels: int
    latent_height: int
    latent_width: int
    latent_frames: int
    """Of a clip; 0 where every frame is encoded on its own."""
    frames: int
    """Of a clip, in pixels; 0 as above, and so are the next four."""
    interval_min: int
    interval_max: int
    clips_per_video: int
    seed: int
    classes: list[str]
    videos: int
    videos_per_shard: int
    source: str
    """Digest of the list of videos."""
    actions: int
    """Numbers of an action (``magi.data.actions``); 0 where the latents have none."""

    @property
    def by_clips(self) -> bool:
        """Whether clips were chosen when they were encoded."""
        return self.clips_per_video > 0

    @property
    def shards(self) -> int:
        """Number of shards of the finished folder."""
        return -(-self.videos // self.videos_per_shard)

    @property
    def digest(self) -> str:
        """Names these settings inside each shard."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def videos_of(self, shard: int) -> range:
        """Numbers of the videos of a shard."""
        first = shard * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, self.videos))


@dataclass(frozen=True)
class EncodedVideo:
    """A line of a shard's JSONL."""

    path: str
    label: int | None
    frames: int
    clips: list[list[int]]
    """(start, interval) of each clip; empty where whole videos are encoded, or for one that is too short."""
    caption: str | None = None
    """Of the whole video."""
    segments: list[list[Any]] = field(default_factory=list)
    """(first frame, last frame, caption) of parts of it."""

    @property
    def spans(self) -> list[Span]:
        """All its captions, as ``CaptionTable`` takes them."""
        whole: list[Span] = [whole_caption(self.caption)] if self.caption else []
        return whole + [(first, last, text) for first, last, text in self.segments]

    def stored(self, header: LatentHeader) -> int:
        """Latent frames in the shard."""
        return len(self.clips) * header.latent_frames if header.by_clips else self.frames


@dataclass(frozen=True)
class Shard:
    """A shard as its JSONL describes it."""

    settings: str
    bytes: int
    count: int
    """Values of each channel in the statistics that follow."""
    mean: list[float]
    squares: list[float]
    """Sum of squared distances from the mean of each channel, of latents as they are drawn."""
    videos: list[EncodedVideo]

    def first_frames(self, header: LatentHeader) -> list[int]:
        """Where each video begins in the tensors, and how many latent frames there are in all."""
        return list(accumulate((video.stored(header) for video in self.videos), initial=0))


def is_latents(root: Path) -> bool:
    """Whether a folder holds latents (finished or not) rather than videos; shards that lost their header are some."""
    return (root / HEADER_NAME).is_file() or any(root.glob("shard-*.jsonl"))


def tensors_path(folder: Path, shard: int) -> Path:
    """The tensors of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def lines_path(folder: Path, shard: int) -> Path:
    """The JSONL of a shard."""
    return folder / f"shard-{shard:05d}.jsonl"


def read_header(folder: Path) -> LatentHeader:
    """The header of a folder of latents; ``DataError`` if it has none that can be read."""
    path = folder / HEADER_NAME
    if not path.is_file():
        if is_latents(folder):
            raise DataError(f"{path}: missing, though the folder holds shards of latents; copy it again, or {AGAIN}")
        raise DataError(f"{path}: no such file, so {folder} holds no latents; make them with 'magi encode'")
    try:
        values = json.loads(read_text(path))
        if values["format"] not in READ_FORMATS:
            raise ValueError(f"format {values['format']!r} is not {FORMAT}")
        header = LatentHeader(**values)
        sizes = (header.videos, header.videos_per_shard, header.channels, header.latent_height, header.latent_width)
        if min(sizes) < 1 or header.dtype not in ("float16", "float32"):
            raise ValueError(f"impossible sizes {sizes} or dtype {header.dtype}")
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged or of another version ({error}); delete the folder and {AGAIN}") from None
    return header


def shard_text(shard: Shard) -> str:
    """The JSONL of a shard."""
    head = asdict(shard)
    return "".join(json.dumps(line) + "\n" for line in (head, *head.pop("videos")))


def read_shard(folder: Path, number: int, header: LatentHeader) -> Shard:
    """The JSONL of a shard; ``DataError`` if it or the shard is damaged, ``ValueError`` if it is another folder's."""
    path = lines_path(folder, number)
    try:
        head, *lines = read_text(path).splitlines()
        shard = Shard(**json.loads(head), videos=[EncodedVideo(**json.loads(line)) for line in lines])
        if any(not isinstance(text, str) for video in shard.videos for *_, text in video.spans):
            raise ValueError("a caption is no text")
        if len(shard.videos) != len(header.videos_of(number)):
            raise ValueError(f"{len(shard.videos)} videos, not {len(header.videos_of(number))}")
        if not len(shard.mean) == len(shard.squares) == header.channels:
            raise ValueError(f"statistics of {len(shard.mean)} channels, not {header.channels}")
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); delete it and {AGAIN}") from None
    _check_settings(path, shard.settings, header)
    path = tensors_path(folder, number)
    now = path.stat().st_size if path.is_file() else -1
    if now != shard.bytes:
        raise DataError(f"{path}: missing, damaged or half-written, {max(now, 0)} of {shard.bytes} bytes; {AGAIN}")
    return shard


def _check_settings(path: Path, settings: str | None, header: LatentHeader) -> None:
    if settings != header.digest:
        raise ValueError(f"{path}: belongs to other settings than {HEADER_NAME} in its folder; remove it")


@dataclass(frozen=True, eq=False)
class ShardTensors:
    """The tensors of a shard, mapped into memory: only what is touched is read, and no file stays open.

    NOTE: cutting a mapped file short kills its readers; shards are only ever replaced whole.
    """

    mean_FCHW: torch.Tensor
    std_FCHW: torch.Tensor | None
    actions_FA: torch.Tensor | None


def map_shard(folder: Path, number: int, header: LatentHeader, frames: int) -> ShardTensors:
    """The tensors of a shard, which should hold ``frames`` latent frames; errors as for ``read_shard``."""
    path = tensors_path(folder, number)
    try:
        with utf8_name(path) as utf8, safe_open(utf8, framework="pt") as file:
            _check_settings(path, (file.metadata() or {}).get("settings"), header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); {AGAIN}") from None
    latents = ((frames, header.channels, header.latent_height, header.latent_width), getattr(torch, header.dtype))
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"mean": latents, "std": latents}
    if header.actions:
        expected["actions"] = ((frames, header.actions), torch.float32)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: value for name, value in expected.items() if name != "std" or "std" in found}:
        raise DataError(f"{path}: damaged, it does not hold what {lines_path(folder, number).name} says; {AGAIN}")
    return ShardTensors(tensors["mean"], tensors.get("std"), tensors.get("actions"))


def measured_normalization(header: LatentHeader, shards: list[Shard]) -> Normalization:
    """The statistics of all latents of a folder, as they are drawn from their posteriors."""
    statistics = ChannelStatistics(header.channels)
    for shard in shards:
        statistics.merge(shard.count, shard.mean, shard.squares)
    videos = sum(video.stored(header) > 0 for shard in shards for video in shard.videos)
    return statistics.normalization(header.vae, f"measured while {videos} videos were encoded")
