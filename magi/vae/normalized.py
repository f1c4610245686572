"""What all adapters share: batches, whitening of latents channel by channel, identity, device, saving.

Paper section 4 uses pretrained autoencoders. An adapter adds how its network takes video: ``encode_raw`` and
``decode_raw``, in the units of the network. This module knows no architecture and no training.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.files import NORMALIZATION_FILE
from magi.vae.contract import (
    Posterior,
    check_latents,
    check_size,
    check_video,
    decode_at_the_end,
    latent_frame_count,
)
from magi.vae.normalization import ChannelStatistics, Normalization, write_normalization
from magi.weights import weights_hash

UNMEASURED = "none: latents as the network makes them"


class NormalizedVae(ABC):
    """An autoencoder behind the contract; latents are whitened channel by channel.

    One with ``temporal_stride`` 1 encodes every frame on its own, so frames are passed as clips of one frame.
    """

    name: ClassVar[str]
    fixed: ClassVar[bool] = False
    """Whether latents stay as the network makes them, so that no statistics are measured."""

    def __init__(self, network: Any, normalization: Normalization | None = None, frames_per_batch: int = 64) -> None:
        """Wrap ``network`` (a module); without a ``normalization`` its latents stay as they are.

        At most ``frames_per_batch`` frames, or one clip, pass at a time. ``CheckpointError`` for the normalisation of
        other weights.
        """
        if frames_per_batch < 1:
            raise ValueError(f"vae.frames_per_batch {frames_per_batch} must be at least 1")
        self.network: Any = network.eval().requires_grad_(False)
        self.frames_per_batch = frames_per_batch
        # Without statistics nothing asks for the id here: a network without data, on 'meta', has none.
        self._normalization: Normalization | None = None
        self._whiten((0.0,) * self.channels, (1.0,) * self.channels)
        if normalization is not None:
            self.normalize(normalization)

    @classmethod
    def from_config(cls, config: VaeConfig) -> Self:
        """Read the weights that ``config`` names, with the statistics saved beside them or published.

        ``ValueError`` where there are no such weights, ``CheckpointError`` of one line where they are pickled, damaged
        or of another architecture.
        """
        return cls.load(config.weights, config.frames_per_batch)

    @classmethod
    @abstractmethod
    def load(cls, weights: Any, frames_per_batch: int = 64) -> Self:
        """As ``from_config``, of ``weights`` alone."""

    # What an adapter says of its network

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a latent."""

    @property
    @abstractmethod
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""

    @property
    @abstractmethod
    def temporal_stride(self) -> int:
        """Frames a latent frame covers, after the first, which covers one; 1 for a 2-D autoencoder."""

    @property
    def streams(self) -> bool:
        """Whether ``decode_stream`` yields frames as latents arrive."""
        return self.temporal_stride == 1

    @abstractmethod
    def encode_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """The posterior of a batch of clips (uint8, on the device of the weights), in the units of the network."""

    @abstractmethod
    def decode_raw(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """video_BTHWC uint8 of a batch of latents in the units of the network; the inverse of the above."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """What makes the same weights another autoencoder; part of ``id``."""

    @abstractmethod
    def save_network(self, folder: Path) -> None:
        """Write what ``load`` needs, without statistics."""

    def _learned(self) -> dict[str, torch.Tensor]:
        """The tensors that make a latent what it is."""
        return dict(self.network.state_dict())

    # Statistics

    def raw_units(self) -> Normalization:
        """Mean 0 and standard deviation 1: latents as the network makes them."""
        zeros, ones = (0.0,) * self.channels, (1.0,) * self.channels
        return Normalization(weights=self.id, source=UNMEASURED, mean=zeros, std=ones)

    def normalize(self, normalization: Normalization) -> None:
        """Whiten by ``normalization`` from here on; ``CheckpointError`` for that of other weights."""
        if normalization.weights != self.id:
            raise CheckpointError(
                f"the normalisation was measured with {normalization.weights}, the weights are {self.id}; use those "
                f"weights, or remove the normalisation to have it measured again"
            )
        if len(normalization.mean) != self.channels:
            raise CheckpointError(
                f"the normalisation has {len(normalization.mean)} channels, the autoencoder {self.channels}; remove "
                f"it to have it measured again"
            )
        self._normalization = normalization
        self._whiten(normalization.mean, normalization.std)

    def _whiten(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._mean_C11 = torch.tensor(mean, device=self.device)[:, None, None]
        self._std_C11 = torch.tensor(std, device=self.device)[:, None, None]

    @property
    def normalization(self) -> Normalization:
        """The statistics that latents are whitened by; mean 0 and standard deviation 1 where there are none."""
        return self._normalization or self.raw_units()

    @property
    def measured(self) -> bool:
        """Whether latents are whitened by statistics, or need none."""
        known = self._normalization
        return self.fixed or (known is not None and known.source != UNMEASURED)

    def measure(self, videos: Iterable[np.ndarray], source: str) -> Normalization:
        """Statistics of the latents of ``videos`` (video_THWC uint8), as they are drawn from their posteriors."""
        statistics = ChannelStatistics(self.channels)
        for video_THWC in videos:
            raw = self.posterior_raw(torch.from_numpy(video_THWC)[None])
            statistics.add(raw.mean_BTCHW, raw.std_BTCHW)
        return statistics.normalization(self.id, source)

    # The contract

    @cached_property
    def id(self) -> str:
        """``<name>-`` and a hash of the weights and the architecture, without statistics."""
        digest = hashlib.sha256(json.dumps(self.architecture(), sort_keys=True).encode())
        digest.update(weights_hash(self._learned()).encode())
        return f"{self.name}-{digest.hexdigest()[:12]}"

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for a size in pixels that the stride does not divide."""
        check_size(height, width, self.spatial_stride)

    def latent_frames(self, frames: int) -> int:
        """The first frame alone, then one latent frame for ``temporal_stride``; ``ValueError`` for other lengths.

        NOTE: the networks accept other lengths and pad or cut without a word.
        """
        return latent_frame_count(frames, self.temporal_stride)

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32, whitened, of video_BTHWC uint8; ``ValueError`` for other input."""
        return self.posterior(video_BTHWC).mean_BTCHW

    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return the distribution of the whitened latents of video_BTHWC uint8; ``ValueError`` for other input."""
        raw = self.posterior_raw(video_BTHWC)
        return Posterior((raw.mean_BTCHW - self._mean_C11) / self._std_C11, raw.std_BTCHW / self._std_C11)

    @torch.no_grad()
    def posterior_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """As ``posterior``, in the units of the network: what is written to disk."""
        check_video(video_BTHWC, self.spatial_stride)
        self.check_frame_size(*video_BTHWC.shape[2:4])
        self.latent_frames(video_BTHWC.shape[1])
        parts = [self.encode_raw(clips.to(self.device)) for clips in self._batches(video_BTHWC, video_BTHWC.shape[1])]
        mean, std = torch.cat([part.mean_BTCHW for part in parts]), torch.cat([part.std_BTCHW for part in parts])
        batch = len(video_BTHWC)
        return Posterior(_unfold(mean.float(), batch).contiguous(), _unfold(std.float(), batch).contiguous())

    @torch.no_grad()
    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8 of whitened latents_BTCHW; ``ValueError`` for another number of channels."""
        raw_BTCHW = self.undo_whitening(latents_BTCHW)
        frames = (raw_BTCHW.shape[1] - 1) * self.temporal_stride + 1
        video = torch.cat([self.decode_raw(clips) for clips in self._batches(raw_BTCHW, frames)])
        return _unfold(video, len(raw_BTCHW)).contiguous()

    def undo_whitening(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return float32 latents_BTCHW in the units of the network, on its device; ``ValueError`` as for ``decode``."""
        check_latents(latents_BTCHW, self.channels)
        if min(latents_BTCHW.shape[:2]) < 1:
            raise ValueError(f"expected at least one clip of one latent frame, got {tuple(latents_BTCHW.shape)}")
        self.check_frame_size(*(side * self.spatial_stride for side in latents_BTCHW.shape[3:]))
        return latents_BTCHW.to(self.device, torch.float32) * self._std_C11 + self._mean_C11

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8 for each latents_BTCHW of a 2-D autoencoder; else the whole after the last one."""
        if self.temporal_stride == 1:
            return (self.decode(latents_BTCHW) for latents_BTCHW in latents)
        return decode_at_the_end(self, latents)

    def _batches(self, clips_BT: torch.Tensor, frames: int) -> tuple[torch.Tensor, ...]:
        """Split along the batch so that about ``frames_per_batch`` frames, and at least one clip, pass at a time."""
        if min(clips_BT.shape[:2]) < 1:
            raise ValueError(f"expected at least one clip of one frame, got {tuple(clips_BT.shape)}")
        if self.temporal_stride == 1:
            return clips_BT.flatten(0, 1)[:, None].split(self.frames_per_batch)
        return clips_BT.split(max(1, self.frames_per_batch // frames))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move the weights and the statistics; returns itself."""
        _ = self.id  # hashed once, before the weights move
        self.network.to(device)
        self._mean_C11, self._std_C11 = self._mean_C11.to(device), self._std_C11.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the weights, and ``normalization.json`` where statistics were measured; ``load`` reads both."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_network(folder)
        if self.measured:
            write_normalization(folder / NORMALIZATION_FILE, self.normalization)


def _unfold(parts: torch.Tensor, batch: int) -> torch.Tensor:
    """Frames that were passed as clips of one frame become clips again; whole clips stay."""
    return parts if len(parts) == batch else parts[:, 0].unflatten(0, (batch, -1))
