"""The sd adapter: Stable Diffusion's 2-D autoencoder (AutoencoderKL: 4 channels, stride 8), frames in the batch axis.

Paper section 4 uses it with 16 frames of UCF-101. Weights: a diffusers folder or hub id, or one safetensors file (the
autoencoder alone or a whole checkpoint, in the naming of diffusers or of the original release). It knows no time.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from magi.vae.contract import Posterior
from magi.vae.diffusers.weights import State
from magi.vae.normalization import Normalization
from magi.vae.normalized import PretrainedVae, spread, to_network

# Stable Diffusion 1.x and 2.x, as in the config.json published with the weights.
SD_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "act_fn": "silu",
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_ORIGINAL_PREFIXES = ("first_stage_model.", "encoder.down.", "vae.encoder.down.")
# The attention of the middle block had other names when the weights were published.
_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class SdVae(PretrainedVae):
    """AutoencoderKL behind the contract, frame by frame."""

    name = "sd"
    class_name = "AutoencoderKL"
    single_file = True
    temporal_stride = 1
    streams = True

    @property
    def spatial_stride(self) -> int:
        """Every level but the last halves the size: 8."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    @classmethod
    def _default_config(cls) -> dict[str, Any]:
        return SD_CONFIG

    @staticmethod
    def _today(state: State) -> State:
        return todays_names(state)

    def _published(self) -> Normalization | None:
        scale, shift = self.network.config.scaling_factor, self.network.config.get("shift_factor") or 0.0
        return Normalization(
            weights=self.weights_id,
            source=f"published scaling factor {scale:g}" + (f" and shift {shift:g}" if shift else ""),
            mean=(shift,) * self.channels,
            std=(1.0 / scale,) * self.channels,
        )

    def _posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        dists = [
            self.network.encode(to_network(frames_BTHWC.to(self.device))[:, :, 0]).latent_dist
            for frames_BTHWC in self._frames_at_a_time(video_BTHWC)
        ]
        lead = video_BTHWC.shape[:2]
        mean_NCHW = torch.cat([dist.mode().float() for dist in dists])
        std_NCHW = torch.cat([spread(dist).float() for dist in dists])
        return Posterior(mean_NCHW.unflatten(0, lead), std_NCHW.unflatten(0, lead))

    def _decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        images = [self.network.decode(frames[:, 0]).sample for frames in self._frames_at_a_time(latents_BTCHW)]
        return torch.cat(images).unflatten(0, latents_BTCHW.shape[:2]).transpose(1, 2)

    def _frames_at_a_time(self, clips_BT: torch.Tensor) -> Iterable[torch.Tensor]:
        return self.clips_at_a_time(clips_BT.flatten(0, 1)[:, None], 1)

    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield video_BTHWC uint8 for each latents_BTCHW: frames do not know each other, a chunk costs itself."""
        return (self.decode(latents_BTCHW) for latents_BTCHW in latents)


def todays_names(state: State) -> State:
    """Weights under the names of diffusers' class: as they are, or from older names, or from the original release's."""
    if any(name.startswith(_ORIGINAL_PREFIXES) for name in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        state = convert_ldm_vae_checkpoint(state, SD_CONFIG)
    renamed = {}
    for name, tensor in state.items():
        head, _, last = name.rpartition(".")
        parent, _, layer = head.rpartition(".")
        if layer in _ATTENTION_NAMES and ".attentions." in name:
            renamed[f"{parent}.{_ATTENTION_NAMES[layer]}.{last}"] = tensor
        else:
            renamed[name] = tensor
    return renamed
