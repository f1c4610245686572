"""The cosmos adapter: NVIDIA's Cosmos tokenizer 4x8x8 (AutoencoderKLCosmos: 16 channels), causal in time.

Paper section 4 names a 3-D autoencoder of this compression: 17 frames become 5 latent frames, the first of them alone.
The posterior is a point. The class's default ``latents_mean`` and ``latents_std`` (256 numbers of another checkpoint)
are not used: the normalisation is measured. Weights: a diffusers folder or hub id, or what `magi vae import` made of
the released 4x8x8 (magi/vae/diffusers/cosmos_import.py). It knows how to decode latents one by one as they arrive.
"""

from collections.abc import Iterable, Iterator

import torch

from magi.vae.diffusers.adapter import DiffusersVae, to_video
from magi.vae.diffusers.cosmos_stream import CosmosStream


class CosmosVae(DiffusersVae):
    """AutoencoderKLCosmos behind the contract; it decodes a stream at the price of the new frames alone."""

    name = "cosmos"
    streams = True  # its decoder is causal

    @property
    def spatial_stride(self) -> int:
        """8."""
        return int(self.network.config.spatial_compression_ratio)

    @property
    def temporal_stride(self) -> int:
        """4."""
        return int(self.network.config.temporal_compression_ratio)

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8 as latents_BTCHW arrive: 1 frame for the first, then 4 for each.

        A chunk costs the convolutions of its own frames: what they need of the past, two frames of input each, is
        kept. Attention over time, at an eighth of the size, looks at all latent frames so far.
        """
        stream = CosmosStream(self.network)
        for latents_BTCHW in latents:
            yield to_video(stream.decode(self.undo_whitening(latents_BTCHW).transpose(1, 2)))
