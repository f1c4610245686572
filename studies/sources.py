"""What a study trains on: the built-in digits, or recorded episodes of a pendulum; videos, autoencoder, latents.

Each is 64x64 video with an autoencoder of stride 8, so the same model and the same budget serve both. Every step is a
``magi`` command, which leaves alone what exists.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from magi.cli.main import main
from magi.config import DataConfig, VaeConfig
from magi.data.clips import clip_span, fit_frames
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.errors import DataError, StoppedCleanly
from magi.evaluation.protocol.clip_table import by_number
from studies.pendulum import record_pendulum

SIZE = 64
SourceName = Literal["digits", "pendulum"]
TRAIN_SEED, HELD_OUT_SEED = 0, 1
HELD_OUT_VIDEOS = 512
"""One half is continued; predictions are scored against the other."""
INTERVAL_MAX = 4
"""Dynamic interval of the studies: these videos move faster for their length than the paper's, which goes to 25."""


@dataclass(frozen=True)
class Source:
    """Folders of a source and its limits."""

    name: SourceName
    folder: Path
    train_videos: int
    held_out_videos: int

    @property
    def train(self) -> Path:
        """Videos that models are trained on."""
        return self.folder / "train"

    @property
    def held_out(self) -> Path:
        """Videos that no model has seen."""
        return self.folder / "held_out"

    @property
    def latents(self) -> Path:
        """The training videos, encoded."""
        return self.folder / "latents"

    @property
    def vae(self) -> str:
        """Weights of the autoencoder: the shipped one of the digits, or one trained on this source."""
        return "demo" if self.name == "digits" else str(self.folder / "vae")

    @property
    def vae_config(self) -> VaeConfig:
        """The autoencoder."""
        return VaeConfig(name="small", weights=self.vae)


def source(name: SourceName, folder: Path) -> Source:
    """The source called ``name`` in ``folder``, prepared or not."""
    if name == "digits":
        return Source(name, folder / name, 1000, HELD_OUT_VIDEOS)
    return Source(name, folder / name, 300, HELD_OUT_VIDEOS)


def prepare(source: Source, device: str) -> None:
    """Write what is missing: videos, autoencoder, latents. ``ValueError`` where Gymnasium is missing for it."""
    size = ("--height", SIZE, "--width", SIZE, "--device", device)
    _write_videos(source, source.train, source.train_videos, TRAIN_SEED)
    prepare_held_out(source)
    if source.name == "pendulum" and not (source.folder / "vae" / "model.safetensors").is_file():
        magi("train-vae", source.train, source.folder / "vae", "--steps", 1500, *size)
    magi("encode", source.train, source.latents, "--vae", source.vae, "--actions", 0, *size)


def prepare_held_out(source: Source) -> None:
    """Write the held-out videos that are missing: all that a study of a finished model needs."""
    _write_videos(source, source.held_out, source.held_out_videos, HELD_OUT_SEED)


def _write_videos(source: Source, folder: Path, videos: int, seed: int) -> None:
    if len(list(folder.rglob("*.mp4"))) >= videos:
        return
    if source.name == "digits":
        magi("data", "digits", folder, "--clips", videos, "--size", SIZE, "--seed", seed)
    else:
        record_pendulum(folder, videos, seed, SIZE)


def magi(*argv: object) -> None:
    """Run a command of this package in this process, which prints for itself.

    ``StoppedCleanly`` where it was asked to stop, ``ValueError`` with its exit code where it failed.
    """
    code = main([str(word) for word in argv])
    if code == StoppedCleanly.exit_code:
        raise StoppedCleanly("stopped; the same command continues")
    if code:
        raise ValueError(f"'magi {' '.join(map(str, argv[:2]))}' ended with exit code {code}; see above")


def held_out_clips(
    source: Source,
    frames: int,
    half: Literal["continued", "reference"] = "continued",
    interval: int = 1,
    count: int = 0,
) -> Tensor:
    """Video_BTHWC uint8 from the first frame of the held-out videos of a half, in the order of their numbers.

    No video is in both halves, so that a model is not scored against the very clips it continues. Numbers go round the
    classes of the digits: the first ``count`` videos hold all of them. ``DataError`` where one is too short.
    """
    index = open_index(DataConfig(root=str(source.held_out), max_bad_fraction=0.0))
    middle = source.held_out_videos // 2
    part = slice(0, middle) if half == "continued" else slice(middle, source.held_out_videos)
    clips = []
    for video in sorted(index.videos, key=lambda video: by_number(Path(video.path)))[part][: count or None]:
        if video.frames < clip_span(frames, interval):
            raise DataError(f"{video.path}: {video.frames} frames, {clip_span(frames, interval)} are needed")
        video_THWC = read_frames(index.root / video.path, range(0, clip_span(frames, interval), interval), video)
        clips.append(torch.from_numpy(fit_frames(video_THWC, SIZE, SIZE)))
    return torch.stack(clips)
