"""What the adapters of diffusers' autoencoder classes share: their folders, their posteriors, pixels in [-1, 1].

An adapter (sd, small, cosmos, ltx) adds its strides and what is particular about its class. This module knows no
training and no class by name.
"""

import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from magi.files import NORMALIZATION_FILE
from magi.vae.adapters import ADAPTERS
from magi.vae.contract import Posterior
from magi.vae.diffusers.weights import (
    State,
    WeightFiles,
    architecture,
    find_files,
    load_network,
    read_config,
    save_network,
)
from magi.vae.normalization import Normalization, read_normalization
from magi.vae.normalized import NormalizedVae

_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class DiffusersVae(NormalizedVae):
    """One of diffusers' autoencoders behind the contract; a network is untyped."""

    single_file: ClassVar[bool] = False
    """Whether weights may come as one file without a configuration next to it."""

    def __init__(self, network: Any, normalization: Normalization | None = None, frames_per_batch: int = 64) -> None:
        """As ``NormalizedVae``; ``ValueError`` for a network that the adapter cannot serve."""
        super().__init__(network, normalization, frames_per_batch)
        self._check_network()

    @classmethod
    def load(cls, weights: str, frames_per_batch: int = 64) -> Self:
        """Read a folder, a hub id or (sd) a single file, with the statistics saved next to it or published values."""
        files, class_name = find_files(cls.name, weights, cls.single_file), ADAPTERS[cls.name].class_name
        values = cls._default_config() if files.folder is None else read_config(files.folder, class_name)
        vae = cls(load_network(class_name, values, files, cls._current_names), None, frames_per_batch)
        path = normalization_path(files)
        if path.is_file():
            vae.normalize(read_normalization(path))
        elif (published := vae.published()) is not None:
            warnings.warn(f"vae {cls.name}: no measured normalisation, using the {published.source}", stacklevel=4)
            vae.normalize(published)
        return vae

    @classmethod
    def _default_config(cls) -> dict[str, Any]:
        """Configuration of weights that come without one; an adapter with ``single_file`` gives it."""
        raise AssertionError(f"{cls.name} takes no single file")

    @staticmethod
    def _current_names(state: State) -> State:
        """The weights under the names that the class has now."""
        return state

    def _check_network(self) -> None:
        if self.network.config.in_channels != 3 or self.network.config.out_channels != 3:
            raise ValueError(f"{self.name}: expected a network of 3 colours, got {self.network.config.in_channels}")

    def published(self) -> Normalization | None:
        """The normalisation that was published with the weights, if there is one."""
        return None

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config.latent_channels)

    def architecture(self) -> dict[str, Any]:
        """The entries of the network's configuration that matter for its latents."""
        return architecture(self.network)

    def save_network(self, folder: Path) -> None:
        """Write ``config.json`` and the safetensors file as diffusers does."""
        save_network(self.network, folder)

    def encode_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """The network's posterior; a standard deviation of zero for one that is a point."""
        posterior = self.network.encode(self._to_network(video_BTHWC)).latent_dist
        mean, std = posterior.mode(), getattr(posterior, "std", None)
        std = torch.zeros_like(mean) if std is None else std
        if self.temporal_stride == 1:
            return Posterior(mean[:, None], std[:, None])
        return Posterior(mean.transpose(1, 2), std.transpose(1, 2))

    def decode_raw(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Pixels of the network, rounded and clamped."""
        latents = latents_BTCHW[:, 0] if self.temporal_stride == 1 else latents_BTCHW.transpose(1, 2)
        return self._to_video(self.network.decode(latents).sample)

    def _to_network(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """What the network takes: images_BCTHW, of a 2-D one images_BCHW."""
        images_BCTHW = to_network(video_BTHWC)
        return images_BCTHW[:, :, 0] if self.temporal_stride == 1 else images_BCTHW

    def _to_video(self, images: torch.Tensor) -> torch.Tensor:
        """The inverse of ``_to_network``."""
        return to_video(images[:, :, None] if self.temporal_stride == 1 else images)


def normalization_path(files: WeightFiles) -> Path:
    """Where the statistics of weights are: in their folder, or next to a single file."""
    if files.folder is not None:
        return files.folder / NORMALIZATION_FILE
    return files.weights.with_suffix(f".{NORMALIZATION_FILE}")


def to_network(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """images_BCTHW float32 in -1..1 of video_BTHWC uint8."""
    return video_BTHWC.movedim(-1, 1).to(torch.float32) / _HALF_RANGE - 1.0


def to_video(images_BCTHW: torch.Tensor) -> torch.Tensor:
    """video_BTHWC uint8 of images_BCTHW in -1..1, rounded and clamped; the inverse of the above."""
    pixels = ((images_BCTHW.float() + 1.0) * _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(1, -1).contiguous()
