"""The OmniTokenizer adapter: a 3-D autoencoder, 4 frames x 8 x 8 pixels to a latent of 8 channels (paper section 4).

Neither half is causal in time (see magi/vae/omnitokenizer/transformer.py). The latents of a clip's first frames depend
on its later frames, so the latents of context frames must be encoded from the context alone; and a clip is decoded
whole. The released checkpoint's format is magi/vae/omnitokenizer/import_weights.py's.
"""

from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from magi.vae.contract import Posterior, check_square
from magi.vae.native_folder import load_folder, save_folder
from magi.vae.normalization import Normalization
from magi.vae.normalized import NormalizedVae
from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.shape import OmniShape


class OmniVae(NormalizedVae):
    """OmniTokenizer behind the contract; every latent depends on every frame of its clip."""

    name = "omni"

    def __init__(
        self,
        shape: OmniShape,
        network: OmniNetwork | None = None,
        normalization: Normalization | None = None,
        frames_per_batch: int = 64,
    ) -> None:
        """Wrap ``network``, by default one of random weights; the rest is ``NormalizedVae``'s."""
        self.shape = shape
        super().__init__(OmniNetwork(shape) if network is None else network, normalization, frames_per_batch)

    @classmethod
    def load(cls, weights: Path | str, frames_per_batch: int = 64) -> Self:
        """Read what ``save`` wrote; a missing, damaged or foreign file is a one-line ``CheckpointError``."""
        if not str(weights):
            raise ValueError("vae.weights: the omni adapter needs a folder that `magi vae import` wrote")
        adapter = partial(cls, frames_per_batch=frames_per_batch)
        return load_folder(Path(weights), OmniShape, "magi vae import", OmniNetwork, adapter)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.shape.channels

    @property
    def spatial_stride(self) -> int:
        """Pixels of a side of a patch."""
        return self.shape.patch

    @property
    def temporal_stride(self) -> int:
        """Frames of a patch, after the first frame, which is alone."""
        return self.shape.temporal_patch

    def check_frame_size(self, height: int, width: int) -> None:
        """``ValueError`` for anything but a square whose side whole windows of patches divide."""
        check_square(height, width, self.shape.size_step)

    def encode_raw(self, video_BTHWC: torch.Tensor) -> Posterior:
        """Moments of the network, which takes pixels in [-0.5, 0.5]."""
        moments = self.network.moments(video_BTHWC.permute(0, 4, 1, 2, 3).float() / 255 - 0.5)
        return Posterior(moments.mean_BTCHW, (moments.log_variance_BTCHW / 2).exp())

    def decode_raw(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        """Pixels beyond [-0.5, 0.5] are clamped."""
        pixels_BCTHW = self.network.pixels(latents_BTCHW)
        return ((pixels_BCTHW + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)

    def architecture(self) -> dict[str, Any]:
        """The sizes, without the file that they came from."""
        return self.shape.model_dump(mode="json", exclude={"source_sha256"})

    def save_network(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float32)."""
        save_folder(folder, self.shape, self.network)
