"""Encoded latents on disk: every video through the autoencoder once, so that training needs neither.

A folder holds a header (``magi-latents.json``: which autoencoder, at which size, of which videos) and shards: a
safetensors file with one tensor (T, C, H, W) float16 a video, and a JSONL beside it with a line a video. A shard's
JSONL appears last and says that the shard is whole. Clips are drawn from latents exactly as from the videos
(``magi.data.clips.ClipDraws``), so training sees the same frames either way.

For autoencoders that encode every frame on its own (paper section 4: Stable Diffusion's; ``temporal_stride`` 1). This
module knows no autoencoder: encoding is a function it is given, and an autoencoder is known by its id.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from magi.config import DataConfig, LatentShape
from magi.data.clips import ClipDraws, clip_span, fit_frames
from magi.data.decode import stream_frames
from magi.data.index import VideoIndex, VideoRecord
from magi.data.write import published
from magi.errors import DataError

HEADER_NAME = "magi-latents.json"
_FORMAT = 1
_AGAIN = "run 'magi encode' again"

Encode = Callable[[torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LatentClip:
    """Latents of frames of one video, ``interval`` frames apart."""

    latents_TCHW: NDArray[np.float32]
    interval: int
    label: int | None
    sample: int
    """Sample number that it was drawn with."""


@dataclass(frozen=True)
class LatentHeader:
    """What all latents of a folder share; ``height`` and ``width`` are those of the frames, in pixels."""

    format: int
    vae: str
    height: int
    width: int
    classes: list[str]
    videos: int
    videos_per_shard: int
    source: str
    """Digest of the list of videos."""

    @property
    def shards(self) -> int:
        """Number of shards of the finished folder."""
        return -(-self.videos // self.videos_per_shard)

    @property
    def digest(self) -> str:
        """Names these settings inside each shard."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Encoded:
    """A line of a shard's JSONL: one encoded video."""

    path: str
    label: int | None
    frames: int
    vae: str


def is_latents(root: Path) -> bool:
    """Whether a folder holds latents (finished or not) rather than videos."""
    return (root / HEADER_NAME).is_file()


def write_latents(
    index: VideoIndex,
    out: Path,
    config: DataConfig,
    encode: Encode,
    vae_id: str,
    frames_per_batch: int = 64,
    videos_per_shard: int = 100,
    worker: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> int:
    """Encode every video of ``index`` at ``config.height`` x ``config.width`` into ``out``; returns the shards written.

    ``encode`` maps video_BTHWC uint8 to latents_BTCHW and keeps the number of frames. Whole shards are kept, so the
    same call continues where it was stopped; ``worker`` (i, n) takes every n-th shard. ``progress`` is told (done, all)
    videos of this worker. ``ValueError`` if ``out`` holds latents of other settings, ``DataError`` naming the video
    whose latents are not finite.
    """
    mine, of = worker
    if not 0 <= mine < of:
        raise ValueError(f"worker {mine}/{of}: expected i/N with i from 0 to N - 1")
    if min(frames_per_batch, videos_per_shard) < 1:
        raise ValueError(
            f"frames_per_batch and videos_per_shard must be positive, got {frames_per_batch}, {videos_per_shard}"
        )
    header = LatentHeader(
        format=_FORMAT,
        vae=vae_id,
        height=config.height,
        width=config.width,
        classes=list(index.classes),
        videos=len(index.videos),
        videos_per_shard=videos_per_shard,
        source=_source(index),
    )
    _claim(out, header)
    shards = range(mine, header.shards, of)
    done, total, written = 0, sum(len(_part(header, shard)) for shard in shards), 0
    for shard in shards:
        videos = {number: index.videos[number] for number in _part(header, shard)}
        if not _is_whole(out, shard, videos, header):
            latents = {}
            for number, record in videos.items():
                latents[str(number)] = _encode_video(index.root, record, config, encode, vae_id, frames_per_batch)
                if progress is not None:
                    progress(done + len(latents), total)
            _write_shard(out, shard, videos, latents, header)
            written += 1
        done += len(videos)
        if progress is not None:
            progress(done, total)
    return written


class LatentDataset:
    """Map-style dataset of clips drawn from a folder of latents; takes any sample number >= 0, holds no state.

    ``ValueError`` if the latents are another autoencoder's or of another size, ``DataError`` if shards are missing.
    """

    def __init__(self, folder: Path, config: DataConfig, seed: int, vae_id: str) -> None:
        self.folder, self.config = folder, config
        self.header = read_header(folder)
        if self.header.vae != vae_id:
            raise ValueError(
                f"{folder}: latents were made by autoencoder {self.header.vae}, not {vae_id}; "
                f"choose that one, or run 'magi encode' into another folder"
            )
        made, asked = (self.header.height, self.header.width), (config.height, config.width)
        if made != asked:
            raise ValueError(f"{folder}: latents are of {made[0]}x{made[1]} frames, data has {asked[0]}x{asked[1]}")
        self._videos = _read_lines(folder, self.header)
        self.draws = ClipDraws([video.frames for video in self._videos], config, seed)
        self._open: dict[int, Any] = {}
        _, channels, height, width = self._slice(0).get_shape()
        self.latent_shape = LatentShape(frames=config.frames, channels=channels, height=height, width=width)

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
        end = draw.start + clip_span(self.config.frames, draw.interval)
        video = self._videos[draw.video]
        latents_TCHW = self._slice(draw.video)[draw.start : end : draw.interval].astype(np.float32)
        if not np.isfinite(latents_TCHW).all():
            raise DataError(f"{self.folder}: latents of {video.path} are not finite; delete the folder and {_AGAIN}")
        return LatentClip(latents_TCHW, draw.interval, video.label, sample)

    def _slice(self, video: int) -> Any:
        """Handle of a video's latents; only what is indexed is read. Shards stay open (memory-mapped)."""
        shard = video // self.header.videos_per_shard
        path = _tensors(self.folder, shard)
        try:
            if shard not in self._open:
                file = safe_open(path, "numpy")
                _check_settings(path, file, self.header)
                self._open[shard] = file
            return self._open[shard].get_slice(str(video))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: missing or damaged ({error}); {_AGAIN}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in their process; a loader's process opens its own."""
        return self.__dict__ | {"_open": {}}


def read_header(folder: Path) -> LatentHeader:
    """The header of a folder of latents; ``DataError`` if it has none that can be read."""
    path = folder / HEADER_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file, so {folder} holds no latents; make them with 'magi encode'")
    try:
        header = LatentHeader(**json.loads(path.read_text(encoding="utf-8")))
        if header.format != _FORMAT:
            raise ValueError(f"format {header.format!r} is not {_FORMAT}")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged or of another version ({error}); delete the folder and {_AGAIN}") from None
    return header


def _source(index: VideoIndex) -> str:
    """Digest of what is encoded; no times of modification, so that a copied folder continues."""
    videos = [(record.path, record.frames, record.bytes, record.label) for record in index.videos]
    return hashlib.sha256(json.dumps(videos).encode()).hexdigest()[:32]


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
    with published(out / HEADER_NAME) as beside:
        beside.write_text(json.dumps(asdict(header), indent=1), encoding="utf-8")


def _part(header: LatentHeader, shard: int) -> range:
    """Numbers of the videos of a shard."""
    first = shard * header.videos_per_shard
    return range(first, min(first + header.videos_per_shard, header.videos))


def _tensors(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _lines(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.jsonl"


def _encode_video(
    root: Path, record: VideoRecord, config: DataConfig, encode: Encode, vae_id: str, frames_per_batch: int
) -> NDArray[np.float16]:
    """Latents (T, C, H, W) of a whole video, a batch of frames at a time, so that its length costs no memory."""
    parts = []
    for video_THWC in _batches(root, record, config, frames_per_batch):
        latents_BTCHW = encode(torch.from_numpy(video_THWC)[None])
        if latents_BTCHW.ndim != 5 or latents_BTCHW.shape[:2] != (1, len(video_THWC)):
            raise ValueError(
                f"autoencoder {vae_id} made {tuple(latents_BTCHW.shape)} of {len(video_THWC)} frames; "
                f"latents on disk need one that encodes every frame on its own (temporal stride 1)"
            )
        part_TCHW = latents_BTCHW[0].to("cpu", torch.float16).numpy()
        if not np.isfinite(part_TCHW).all():
            raise DataError(
                f"{root / record.path}: autoencoder {vae_id} makes latents that are not finite in float16; "
                f"take the video out, or check the autoencoder"
            )
        parts.append(part_TCHW)
    # NOTE: safetensors writes the memory as it lies, and a convolution's output may lie channels last.
    return np.ascontiguousarray(np.concatenate(parts))


def _batches(root: Path, record: VideoRecord, config: DataConfig, size: int) -> Iterator[NDArray[np.uint8]]:
    frames: list[NDArray[np.uint8]] = []
    for frame_HWC in stream_frames(root / record.path, range(record.frames), record):
        frames.append(fit_frames(frame_HWC[None], config.height, config.width)[0])
        if len(frames) == size:
            yield np.stack(frames)
            frames = []
    if frames:
        yield np.stack(frames)


def _write_shard(
    out: Path,
    shard: int,
    videos: Mapping[int, VideoRecord],
    latents: dict[str, NDArray[np.float16]],
    header: LatentHeader,
) -> None:
    with published(_tensors(out, shard)) as beside:
        save_file(latents, beside, metadata={"settings": header.digest})
    with published(_lines(out, shard)) as beside:
        encoded = [_Encoded(record.path, record.label, record.frames, header.vae) for record in videos.values()]
        beside.write_text("".join(json.dumps(asdict(video)) + "\n" for video in encoded), encoding="utf-8")


def _is_whole(out: Path, shard: int, videos: Mapping[int, VideoRecord], header: LatentHeader) -> bool:
    """Whether a shard is there and undamaged; a ``ValueError`` if it is a stranger's, which is never overwritten."""
    if not _lines(out, shard).is_file():
        return False
    try:
        with safe_open(_tensors(out, shard), "numpy") as file:
            _check_settings(_tensors(out, shard), file, header)
            lengths = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    return lengths == {str(number): record.frames for number, record in videos.items()}


def _check_settings(path: Path, file: Any, header: LatentHeader) -> None:
    if (file.metadata() or {}).get("settings") != header.digest:
        raise ValueError(f"{path}: belongs to other settings than {HEADER_NAME} beside it; remove it")


def _read_lines(folder: Path, header: LatentHeader) -> list[_Encoded]:
    """The videos of all shards in the order of the index."""
    missing = [shard for shard in range(header.shards) if not _lines(folder, shard).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {header.shards} shards missing, first {_tensors(folder, missing[0]).name}; "
            f"{_AGAIN} to finish"
        )
    videos: list[_Encoded] = []
    for shard in range(header.shards):
        path = _lines(folder, shard)
        try:
            videos += [_Encoded(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); delete it and {_AGAIN}") from None
    if len(videos) != header.videos:
        raise DataError(f"{folder}: holds {len(videos)} videos, its header says {header.videos}; {_AGAIN}")
    return videos
