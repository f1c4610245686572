"""What the adapters of pretrained autoencoders share: weights, identity, normalisation, precision, saving.

Paper section 4 uses pretrained autoencoders. An adapter (sd, cosmos, ltx) adds how its network takes video. This module
knows no training and no configuration file but those of ``magi.vae.diffusers.weights`` and ``magi.vae.normalization``.
"""

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from magi.errors import CheckpointError
from magi.files import NORMALIZATION_FILE
from magi.vae.contract import Posterior, check_latents, check_size, check_video, decode_at_the_end
from magi.vae.diffusers.weights import (
    State,
    WeightFiles,
    architecture,
    find_files,
    load_network,
    read_config,
    save_network,
)
from magi.vae.normalization import Normalization, read_normalization, write_normalization
from magi.weights import weights_hash

ADAPTERS = {"AutoencoderKL": "sd", "AutoencoderKLCosmos": "cosmos", "AutoencoderKLLTXVideo": "ltx"}
"""Adapter of each of diffusers' classes."""
UNMEASURED = "none: latents as the network makes them"
_HALF_RANGE = 127.5  # uint8 0..255 becomes -1..1


class PretrainedVae(ABC):
    """A diffusers autoencoder behind the contract; latents are normalised channel by channel."""

    name: ClassVar[str]
    class_name: ClassVar[str]
    single_file: ClassVar[bool] = False
    """Whether weights may come as one file without a configuration beside it."""
    streams = False

    def __init__(self, network: Any, normalization: Normalization | None = None, frames_per_batch: int = 64) -> None:
        """Wrap ``network``; without a ``normalization`` its latents stay as they are.

        At most ``frames_per_batch`` frames, or one clip, pass at a time. ``ValueError`` for a network the adapter
        cannot serve, ``CheckpointError`` for the normalisation of other weights.
        """
        if frames_per_batch < 1:
            raise ValueError(f"vae.frames_per_batch {frames_per_batch} must be at least 1")
        self.network = network.eval().requires_grad_(False)
        self.frames_per_batch = frames_per_batch
        self._check_network()
        self._normalise(normalization or self._unmeasured())

    @classmethod
    def load(cls, weights: str, normalization: str = "", frames_per_batch: int = 64, unmeasured: bool = False) -> Self:
        """Read a folder, a hub id or (sd) a single file; the normalisation from its file, or published values.

        With ``unmeasured``, for measuring, no normalisation is looked for. ``ValueError`` where there is no such thing
        or no normalisation, ``CheckpointError`` of one line for weights that are pickled, damaged or of another class.
        """
        files = find_files(cls.name, weights, cls.single_file)
        values = cls._default_config() if files.folder is None else read_config(files.folder, cls.class_name, ADAPTERS)
        vae = cls(load_network(cls.class_name, values, files, cls._today), None, frames_per_batch)
        if not unmeasured:
            vae._normalise(vae._find_normalization(files, normalization))
        return vae

    @classmethod
    def _default_config(cls) -> dict[str, Any]:
        """Configuration of weights that come without one; an adapter with ``single_file`` gives it."""
        raise AssertionError(f"{cls.name} takes no single file")

    @staticmethod
    def _today(state: State) -> State:
        """The weights under the names that the class has today."""
        return state

    def _check_network(self) -> None:
        """``ValueError`` for a configuration the adapter cannot serve."""
        if self.network.config.in_channels != 3 or self.network.config.out_channels != 3:
            raise ValueError(f"{self.name}: expected a network of 3 colours, got {self.network.config.in_channels}")

    def _unmeasured(self) -> Normalization:
        """Mean 0 and deviation 1: latents as the network makes them."""
        zeros, ones = (0.0,) * self.channels, (1.0,) * self.channels
        return Normalization(weights=self.weights_id, source=UNMEASURED, mean=zeros, std=ones)

    def _normalise(self, normalization: Normalization) -> None:
        """Use ``normalization`` from here on; ``CheckpointError`` for that of other weights."""
        if normalization.weights != self.weights_id:
            raise CheckpointError(
                f"the normalisation was measured with {normalization.weights}, the weights are {self.weights_id}; "
                f"measure again with `magi vae check`"
            )
        if len(normalization.mean) != self.channels:
            raise CheckpointError(
                f"the normalisation has {len(normalization.mean)} channels, the autoencoder {self.channels}; "
                f"measure again with `magi vae check`"
            )
        self.normalization = normalization
        self._mean_C = torch.tensor(normalization.mean, device=self.device)
        self._std_C = torch.tensor(normalization.std, device=self.device)

    def _published(self) -> Normalization | None:
        """The normalisation that was published with the weights, if there is one."""
        return None

    def _find_normalization(self, files: WeightFiles, named: str) -> Normalization:
        path = Path(named) if named else normalization_path(files)
        if named or path.is_file():
            found = read_normalization(path)
            if found.weights != self.weights_id:
                raise CheckpointError(
                    f"{path}: measured with {found.weights}, these weights are {self.weights_id}; measure again with "
                    f"`magi vae check`"
                )
            return found
        published = self._published()
        if published is None:
            raise ValueError(
                f"{files.folder or files.weights}: no {path.name}, and nothing published to normalise {self.name} "
                f"latents with; measure it with `magi vae check {self.name}:{files.folder or files.weights} DATA`"
            )
        warnings.warn(f"vae {self.name}: no measured normalisation, using the {published.source}", stacklevel=3)
        return published

    @cached_property
    def weights_id(self) -> str:
        """``<name>-`` and a hash of the weights and their configuration, without normalisation."""
        digest = hashlib.sha256(json.dumps(architecture(self.network), sort_keys=True).encode())
        digest.update(weights_hash(self._learned()).encode())
        return f"{self.name}-{digest.hexdigest()[:12]}"

    def _learned(self) -> State:
        """The tensors that make a latent what it is."""
        state: State = self.network.state_dict()
        return state

    @property
    def id(self) -> str:
        """``<name>-`` and a hash of weights, configuration and normalisation: latents of two ids do not mix."""
        numbers = json.dumps([self.normalization.mean, self.normalization.std])
        return f"{self.name}-{hashlib.sha256(f'{self.weights_id} {numbers}'.encode()).hexdigest()[:12]}"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config.latent_channels)

    @property
    @abstractmethod
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""

    @property
    @abstractmethod
    def temporal_stride(self) -> int:
        """Frames a latent frame covers."""

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for a size in pixels that the stride does not divide."""
        check_size(height, width, self.spatial_stride)

    def latent_frames(self, frames: int) -> int:
        """The first frame alone, then one latent frame for ``temporal_stride``; ``ValueError`` for other lengths.

        NOTE: the networks accept other lengths and pad or cut without a word.
        """
        stride = self.temporal_stride
        if frames < 1 or (frames - 1) % stride:
            low = max(frames - 1, 0) // stride * stride + 1
            raise ValueError(
                f"{frames} frames: {self.name} takes 1 + a multiple of {stride}; take {low} or {low + stride} "
                f"(data.frames, or the frames of a context or a request)"
            )
        return (frames - 1) // stride + 1

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32, normalised, of video_BTHWC uint8; ``ValueError`` for other input."""
        return self.posterior(video_BTHWC).mean_BTCHW

    @torch.no_grad()
    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return the distribution of the normalised latents of video_BTHWC uint8; ``ValueError`` for other input."""
        check_video(video_BTHWC, self.spatial_stride)
        self.latent_frames(video_BTHWC.shape[1])
        raw = self._posterior(video_BTHWC)
        mean_C11, std_C11 = self._mean_C[:, None, None], self._std_C[:, None, None]
        mean_BTCHW, std_BTCHW = (raw.mean_BTCHW - mean_C11) / std_C11, raw.std_BTCHW / std_C11
        return Posterior(mean_BTCHW.contiguous(), std_BTCHW.contiguous())

    def _posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """``posterior`` in the network's own units; by default a clip is encoded as a whole."""
        dists = [
            self.network.encode(to_network(clips_BTHWC.to(self.device))).latent_dist
            for clips_BTHWC in self.clips_at_a_time(video_BTHWC, video_BTHWC.shape[1])
        ]
        mean_BCTHW = torch.cat([dist.mode().float() for dist in dists])
        std_BCTHW = torch.cat([spread(dist).float() for dist in dists])
        return Posterior(mean_BCTHW.transpose(1, 2), std_BCTHW.transpose(1, 2))

    @torch.no_grad()
    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8 of normalised latents_BTCHW; ``ValueError`` for another number of channels."""
        return to_video(self._decode(self.own_units(latents_BTCHW)))

    def _decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """images_BCTHW in -1..1 of latents in the network's own units; by default a clip is decoded as a whole."""
        frames = (latents_BTCHW.shape[1] - 1) * self.temporal_stride + 1
        return torch.cat(
            [
                self.network.decode(clips_BTCHW.transpose(1, 2)).sample
                for clips_BTCHW in self.clips_at_a_time(latents_BTCHW, frames)
            ]
        )

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the whole video_BTHWC after the last of latents_BTCHW."""
        return decode_at_the_end(self, latents)

    def own_units(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Undo the normalisation: float32 latents_BTCHW as the network made them, on its device."""
        check_latents(latents_BTCHW, self.channels)
        if min(latents_BTCHW.shape[:2]) < 1:
            raise ValueError("expected at least one latent frame, got none")
        latents_BTCHW = latents_BTCHW.to(self.device, torch.float32)
        return latents_BTCHW * self._std_C[:, None, None] + self._mean_C[:, None, None]

    def clips_at_a_time(self, clips_BT: torch.Tensor, frames: int) -> Iterable[torch.Tensor]:
        """Split along the batch so that about ``frames_per_batch`` frames, and at least one clip, pass at a time."""
        if min(clips_BT.shape[:2]) < 1:
            raise ValueError("expected at least one frame, got none")
        return clips_BT.split(max(1, self.frames_per_batch // frames))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.network.device
        return device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights and the statistics; returns itself."""
        _ = self.weights_id  # hashed once, before the weights move
        self.network.to(device)
        self._mean_C, self._std_C = self._mean_C.to(device), self._std_C.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write ``config.json``, the safetensors file and ``normalization.json``; ``load`` gives the same id back."""
        save_network(self.network, folder)
        write_normalization(folder / NORMALIZATION_FILE, self.normalization)


def normalization_path(files: WeightFiles) -> Path:
    """Where the normalisation of weights lies: in their folder, or beside a single file."""
    if files.folder is not None:
        return files.folder / NORMALIZATION_FILE
    return files.weights.with_suffix(f".{NORMALIZATION_FILE}")


def spread(distribution: Any) -> torch.Tensor:
    """Standard deviation of one of diffusers' posteriors; zero for one that is a point."""
    std = getattr(distribution, "std", None)
    return torch.zeros_like(distribution.mode()) if std is None else std


def to_network(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """images_BCTHW float32 in -1..1 of video_BTHWC uint8."""
    return video_BTHWC.movedim(-1, 1).to(torch.float32) / _HALF_RANGE - 1.0


def to_video(images_BCTHW: torch.Tensor) -> torch.Tensor:
    """video_BTHWC uint8 of images_BCTHW in -1..1, rounded and clamped; the inverse of the above."""
    pixels = ((images_BCTHW.float() + 1.0) * _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(1, -1).contiguous()
