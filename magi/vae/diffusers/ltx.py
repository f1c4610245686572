"""The ltx adapter: LTX-Video's autoencoder (AutoencoderKLLTXVideo: 128 channels, 32x in space, 8x in time).

Not in the paper: a direction of high compression, so that a frame is few tokens. 8k+1 frames become k+1 latent frames.
Its encoder is causal, its decoder is not: a clip is decoded as a whole. It knows no streaming.
"""

import torch

from magi.vae.diffusers.adapter import DiffusersVae
from magi.vae.diffusers.weights import State
from magi.vae.normalization import Normalization

_STATISTICS = ("latents_mean", "latents_std")


class LtxVae(DiffusersVae):
    """AutoencoderKLLTXVideo behind the contract."""

    name = "ltx"

    @property
    def spatial_stride(self) -> int:
        """32."""
        return int(self.network.spatial_compression_ratio)

    @property
    def temporal_stride(self) -> int:
        """8."""
        return int(self.network.temporal_compression_ratio)

    def _check_network(self) -> None:
        super()._check_network()
        config = self.network.config
        if config.timestep_conditioning or any(config.decoder_inject_noise):
            raise ValueError(
                "ltx: this decoder draws noise of its own (timestep_conditioning or decoder_inject_noise), so a video "
                "would not be a function of its latents; use the autoencoder of LTX-Video 0.9.0"
            )

    def _learned(self) -> State:
        return {name: tensor for name, tensor in self.network.state_dict().items() if name not in _STATISTICS}

    def published(self) -> Normalization | None:
        """Buffers of the network; None where they are those of a new one: nobody measured."""
        mean_C, std_C = self.network.latents_mean.float(), self.network.latents_std.float()
        if torch.equal(mean_C, torch.zeros_like(mean_C)) and torch.equal(std_C, torch.ones_like(std_C)):
            return None
        return Normalization(
            weights=self.id,
            source="published mean and standard deviation in the weight file",
            mean=tuple(mean_C.tolist()),
            std=tuple((std_C / self.network.config.scaling_factor).tolist()),
        )
