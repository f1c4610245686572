"""What encoded latents look like on disk, and what is checked when they are read back.

A folder holds a header (``magi-latents.json``: which autoencoder, at which size, of which videos) and shards of about a
hundred videos: a safetensors file, and a JSONL beside it that appears last, says that the shard is whole, how large it
is and where each video lies in it. There are two kinds:

- of an autoencoder that encodes every frame on its own (2-D): tensors ``N.mean`` and ``N.std`` (T, C, H, W) of every
  frame of video N, so any clip can be cut when it is trained on;
- of one whose latents mix frames (3-D): ``N.mean`` and ``N.std`` (K, T, C, H, W) of K clips of video N, whose starts
  and intervals the line records.

A standard deviation that is zero throughout (a deterministic autoencoder) is left out.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magi.errors import DataError

HEADER_NAME = "magi-latents.json"
FORMAT = 2
FIT = "cover, centre crop, bicubic"
"""How frames get their size (``magi.data.clips.fit_frames``)."""
AGAIN = "run 'magi encode' again"
_LARGEST_TENSOR_HEADER = 100_000_000


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

    @property
    def by_clips(self) -> bool:
        """Whether clips were chosen when they were encoded."""
        return self.clips_per_video > 0

    @property
    def shards(self) -> int:
        """Number of shards of the finished folder."""
        return -(-self.videos // self.videos_per_shard)

    @property
    def frame_bytes(self) -> int:
        """Of one latent frame."""
        return self.channels * self.latent_height * self.latent_width * np.dtype(self.dtype).itemsize

    @property
    def digest(self) -> str:
        """Names these settings inside each shard."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def part(self, shard: int) -> range:
        """Numbers of the videos of a shard."""
        first = shard * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, self.videos))


@dataclass(frozen=True)
class EncodedVideo:
    """A line of a shard's JSONL: a video and where its latents lie in the shard, in bytes."""

    path: str
    label: int | None
    frames: int
    mean: int
    std: int | None
    clips: list[list[int]]
    """(start, interval) of each clip; empty where whole videos are encoded, or for one that is too short."""


@dataclass(frozen=True)
class Shard:
    """A shard as its JSONL describes it."""

    settings: str
    bytes: int
    videos: list[EncodedVideo]


def is_latents(root: Path) -> bool:
    """Whether a folder holds latents (finished or not) rather than videos."""
    return (root / HEADER_NAME).is_file()


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
        raise DataError(f"{path}: no such file, so {folder} holds no latents; make them with 'magi encode'")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r} is not {FORMAT}")
        header = LatentHeader(**values)
        sizes = (header.videos, header.videos_per_shard, header.channels, header.latent_height, header.latent_width)
        if min(sizes) < 1 or header.dtype not in ("float16", "float32"):
            raise ValueError(f"impossible sizes {sizes} or dtype {header.dtype}")
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged or of another version ({error}); delete the folder and {AGAIN}") from None
    return header


def shard_text(shard: Shard) -> str:
    """The JSONL of a shard."""
    head = {"settings": shard.settings, "bytes": shard.bytes}
    return "".join(json.dumps(line) + "\n" for line in (head, *(asdict(video) for video in shard.videos)))


def read_shard(folder: Path, number: int, header: LatentHeader) -> Shard:
    """The JSONL of a shard; ``DataError`` if it or the shard is damaged, ``ValueError`` if it is a stranger's."""
    path = lines_path(folder, number)
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        shard = Shard(**json.loads(head), videos=[EncodedVideo(**json.loads(line)) for line in lines])
        if len(shard.videos) != len(header.part(number)):
            raise ValueError(f"{len(shard.videos)} videos, not {len(header.part(number))}")
        for video in shard.videos:
            _check_place(video, shard.bytes, header)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); delete it and {AGAIN}") from None
    _check_settings(path, shard.settings, header)
    check_bytes(folder, number, shard.bytes)
    return shard


def _check_place(video: EncodedVideo, size: int, header: LatentHeader) -> None:
    """What would be read of a video lies within its shard."""
    frames = len(video.clips) * header.latent_frames if header.by_clips else video.frames
    for begin in (video.mean, video.std):
        if begin is not None and not 0 <= begin <= size - frames * header.frame_bytes:
            raise ValueError(f"{video.path!a} does not lie within {size} bytes")


def check_bytes(folder: Path, number: int, size: int) -> None:
    """A ``DataError`` unless the tensors of a shard have the size that its JSONL says."""
    path = tensors_path(folder, number)
    try:
        now = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: missing or damaged ({error.strerror}); {AGAIN}") from None
    if now != size:
        raise DataError(f"{path}: damaged or half-written, {now} of {size} bytes; {AGAIN}")


def _check_settings(path: Path, settings: Any, header: LatentHeader) -> None:
    if settings != header.digest:
        raise ValueError(f"{path}: belongs to other settings than {HEADER_NAME} beside it; remove it")


def tensor_places(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """(metadata, where each tensor begins in the file) of a safetensors file; ``DataError`` if it is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_TENSOR_HEADER:
                raise ValueError(f"its header says {length} bytes")
            values = json.loads(file.read(length))
        metadata = values.pop("__metadata__", {})
        return metadata, {name: 8 + length + int(tensor["data_offsets"][0]) for name, tensor in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); {AGAIN}") from None


def check_tensors(folder: Path, number: int, videos: list[tuple[int, int, int | None]], header: LatentHeader) -> None:
    """Tensors of a shard are where its lines say: ``videos`` are (number, mean, std); errors as for ``read_shard``."""
    path = tensors_path(folder, number)
    metadata, places = tensor_places(path)
    _check_settings(path, metadata.get("settings"), header)
    expected = {f"{video}.mean": mean for video, mean, _ in videos}
    expected |= {f"{video}.std": std for video, _, std in videos if std is not None}
    if places != expected:
        raise DataError(f"{path}: damaged, its tensors are not where {lines_path(folder, number).name} says; {AGAIN}")
