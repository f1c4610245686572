"""The OmniTokenizer adapter: a 3-D autoencoder, 4 frames x 8 x 8 pixels to a latent of 8 channels (paper section 4).

Neither half is causal in time (see magi/vae/omnitokenizer/transformer.py). The latents of a clip's first frames
contain its
later frames, so the latents of context frames must be encoded from the context alone; and a clip is decoded whole. It
knows how to load, save, encode and decode; the released checkpoint's format is
magi/vae/omnitokenizer/import_weights.py's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError

from magi.config import explain
from magi.vae.contract import Posterior, check_latents, check_video, decode_at_the_end
from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.shape import OmniShape, check_square
from magi.vae.own_folder import read_shape, read_weights, save_folder
from magi.weights import weights_hash


class OmniVae:
    """OmniTokenizer behind the contract; ``encode`` is the posterior mean."""

    streams = False

    def __init__(self, shape: OmniShape, network: OmniNetwork | None = None, frames_per_batch: int = 64) -> None:
        """Wrap ``network``, by default one of random weights.

        As many whole clips pass through it at a time as ``frames_per_batch`` frames make, but at least one.
        """
        if frames_per_batch < 1:
            raise ValueError(f"vae.frames_per_batch {frames_per_batch} must be at least 1")
        self.shape = shape
        self.frames_per_batch = frames_per_batch
        self.network = (OmniNetwork(shape) if network is None else network).eval().requires_grad_(False)
        self._mean_C = torch.tensor(shape.latents_mean or (0.0,) * shape.channels)
        self._std_C = torch.tensor(shape.latents_std or (1.0,) * shape.channels)

    @cached_property
    def id(self) -> str:
        """``omni-`` and a hash of the weights, the architecture and the statistics."""
        values = self.shape.model_dump(mode="json", exclude={"source_sha256"})
        values |= {"latents_mean": self._mean_C.tolist(), "latents_std": self._std_C.tolist()}  # empty is 0 and 1
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        digest.update(weights_hash(self.network.state_dict()).encode())
        return f"omni-{digest.hexdigest()[:12]}"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.shape.channels

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent covers in height and in width."""
        return self.shape.patch

    @property
    def temporal_stride(self) -> int:
        """Frames a latent frame covers, after the first, which covers one."""
        return self.shape.temporal_patch

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for anything but a square whose side whole windows of patches divide."""
        check_square(height, width, self.shape.size_step)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of ``frames`` frames: 1 + n of 1 + 4 n (17 -> 5); ``ValueError`` for other lengths."""
        stride = self.temporal_stride
        if frames < 1 or (frames - 1) % stride:
            below = max(1, 1 + (frames - 1) // stride * stride)
            raise ValueError(
                f"{frames} frames: this autoencoder takes 1 + {stride} k frames; use {below} or {below + stride}"
            )
        return 1 + (frames - 1) // stride

    def encode(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return latents_BTCHW float32, normalised, of video_BTHWC uint8; ``ValueError`` for other input."""
        return self.posterior(video_BTHWC).mean_BTCHW

    @torch.no_grad()
    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Return the distribution of the normalised latents of video_BTHWC uint8; ``ValueError`` for other input.

        Every latent depends on every frame of its clip, on later ones too.
        """
        check_video(video_BTHWC, self.spatial_stride)
        self.check_frame_size(*video_BTHWC.shape[2:4])
        self.latent_frames(video_BTHWC.shape[1])
        std_C11 = self._std_C[:, None, None]
        means, stds = [], []
        for clips_BTHWC in self._batches(video_BTHWC, video_BTHWC.shape[1]):
            moments = self.network.moments(clips_BTHWC.to(self._device).permute(0, 4, 1, 2, 3).float() / 255 - 0.5)
            means.append((moments.mean_BTCHW - self._mean_C[:, None, None]) / std_C11)
            stds.append((moments.log_variance_BTCHW / 2).exp() / std_C11)
        return Posterior(torch.cat(means).contiguous(), torch.cat(stds).contiguous())

    @torch.no_grad()
    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return video_BTHWC uint8 of normalised latents_BTCHW; ``ValueError`` for another number of channels.

        Every frame depends on every latent of its clip; decoding a part gives other frames.
        """
        check_latents(latents_BTCHW, self.channels)
        latent_frames, height, width = (latents_BTCHW.shape[axis] for axis in (1, 3, 4))
        if latent_frames < 1:
            raise ValueError("expected at least one latent frame, got none")
        self.check_frame_size(height * self.spatial_stride, width * self.spatial_stride)
        videos = []
        for clips_BTCHW in self._batches(latents_BTCHW, 1 + (latent_frames - 1) * self.temporal_stride):
            latents = clips_BTCHW.to(self._device, torch.float32) * self._std_C[:, None, None]
            pixels_BCTHW = self.network.pixels(latents + self._mean_C[:, None, None])
            videos.append(((pixels_BCTHW + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1))
        return torch.cat(videos).contiguous()

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the whole video_BTHWC once, after the last latents_BTCHW: later latents change earlier frames."""
        return decode_at_the_end(self, latents)

    def renormalised(self, mean: Sequence[float], std: Sequence[float]) -> "OmniVae":
        """Return the same autoencoder with other statistics of each raw latent channel; ``ValueError`` if not valid."""
        values = self.shape.model_dump() | {"latents_mean": tuple(mean), "latents_std": tuple(std)}
        try:
            shape = OmniShape.model_validate(values)
        except ValidationError as error:
            raise ValueError(explain(error, "statistics", OmniShape).splitlines()[0]) from None
        return OmniVae(shape, self.network, self.frames_per_batch).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self._mean_C.device

    def _batches(self, clips: torch.Tensor, frames: int) -> Iterator[torch.Tensor]:
        if len(clips) == 0:
            raise ValueError("expected at least one clip, got none")
        return iter(clips.split(max(1, self.frames_per_batch // frames)))

    def to(self, device: torch.device | str) -> Self:
        """Move the weights and the statistics; returns itself."""
        self.network.to(device)
        self._mean_C, self._std_C = self._mean_C.to(device), self._std_C.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float32), each beside and then renamed."""
        save_folder(folder, self.shape, self.network)

    @classmethod
    def load(cls, folder: Path, frames_per_batch: int = 64) -> "OmniVae":
        """Read what ``save`` wrote; a missing, damaged or foreign file is a one-line ``CheckpointError``."""
        shape, expected_hash = read_shape(folder, OmniShape, "an imported OmniTokenizer", "magi vae import")
        network = OmniNetwork(shape)
        read_weights(folder, network, expected_hash)
        return cls(shape, network, frames_per_batch)
