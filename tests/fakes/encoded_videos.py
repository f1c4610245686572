"""Small videos and autoencoders whose latents tell which frames of which video they were made of."""

from collections.abc import Callable
from pathlib import Path

import torch

from magi.config import DataConfig
from magi.data.caption_table import CaptionTable
from magi.data.index.index import VideoIndex, open_index
from magi.data.moving_digits import write_digits
from magi.latents.encode import EncodeSettings, write_latents
from magi.latents.files import read_header
from magi.progress import Report
from magi.vae.contract import Posterior
from magi.vae.normalization import Normalization

CONFIG = DataConfig(frames=4, height=32, width=32, interval_min=1, interval_max=9)
CLIPS = CONFIG.model_copy(update={"frames": 5})
Encode = Callable[[torch.Tensor], torch.Tensor]


def make_index(root: Path) -> VideoIndex:
    """Five videos of 30 frames and one of 3, which is too short for any clip."""
    write_digits(root, clips=5, frames=30)
    write_digits(root / "0" / "short", clips=1, frames=3)
    return open_index(DataConfig(root=str(root), workers=1))


def encode(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """2-D: every latent is an 8 x 8 block's mean."""
    pixels_BTCHW = video_BTHWC.permute(0, 1, 4, 2, 3).float() / 64
    return torch.nn.functional.avg_pool2d(pixels_BTCHW.flatten(0, 1), 8).unflatten(0, pixels_BTCHW.shape[:2])


def encode_clip(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """3-D, causal, four times fewer frames: the first one, and then the mean of each four."""
    latents_BTCHW = encode(video_BTHWC)
    return torch.cat([latents_BTCHW[:, :1], latents_BTCHW[:, 1:].unflatten(1, (-1, 4)).mean(2)], dim=1)


def no_spread(mean_BTCHW: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(mean_BTCHW)


def some_spread(mean_BTCHW: torch.Tensor) -> torch.Tensor:
    """A standard deviation that differs from latent to latent."""
    return 0.1 + mean_BTCHW.abs() / 8


class MeanVae:
    """As much of an adapter as encoding needs: ``encode``, and 3-D if that is ``encode_clip``."""

    channels, spatial_stride = 3, 8

    def __init__(self, encode: Encode, id: str, spread: Encode) -> None:
        self.encode, self.id, self.spread = encode, id, spread
        self.temporal_stride = 4 if encode is encode_clip else 1

    def check_frame_size(self, height: int, width: int) -> None:
        assert not height % 8 and not width % 8

    def latent_frames(self, frames: int) -> int:
        return 1 + (frames - 1) // self.temporal_stride

    def posterior_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        mean_BTCHW = self.encode(video_BTHWC)
        return Posterior(mean_BTCHW, self.spread(mean_BTCHW))


def in_raw_units(folder: Path) -> Normalization:
    """The identity, for what compares with the encoder's own output."""
    return Normalization(weights=read_header(folder).vae, source="a test", mean=(0.0,) * 3, std=(1.0,) * 3)


def write(
    index: VideoIndex,
    out: Path,
    config: DataConfig = CONFIG,
    encode: Encode = encode,
    id: str = "mean-1",
    spread: Encode = no_spread,
    worker: tuple[int, int] = (0, 1),
    on_progress: Report = lambda done, total: None,
    captions: CaptionTable | None = None,
    **settings: int | str,
) -> int:
    """``write_latents`` with two videos a shard and three clips a video."""
    given = EncodeSettings(**{"videos_per_shard": 2, "clips_per_video": 3} | settings)  # type: ignore[arg-type]
    vae = MeanVae(encode, id, spread)
    return write_latents(index, out, config, vae, given, worker, on_progress, captions)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_bytes(one: Path, two: Path) -> bool:
    """Whether two folders hold the same files."""
    return names(one) == names(two) and all((one / n).read_bytes() == (two / n).read_bytes() for n in names(one))
