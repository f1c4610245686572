"""The sd adapter: Stable Diffusion's 2-D autoencoder (AutoencoderKL: 4 channels, stride 8), frames in the batch axis.

Paper section 4 uses it with 16 frames of UCF-101. Weights: a diffusers folder or hub id, or one safetensors file (the
autoencoder alone or a whole checkpoint, in the naming of diffusers or of the original release). It knows no time.
"""

from typing import Any

from magi.vae.diffusers.adapter import DiffusersVae
from magi.vae.diffusers.weights import State
from magi.vae.normalization import Normalization

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


class SdVae(DiffusersVae):
    """AutoencoderKL behind the contract, frame by frame."""

    name = "sd"
    single_file = True
    temporal_stride = 1

    @property
    def spatial_stride(self) -> int:
        """Every level but the last halves the size: 8."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    @classmethod
    def _default_config(cls) -> dict[str, Any]:
        return SD_CONFIG

    @staticmethod
    def _current_names(state: State) -> State:
        return current_names(state)

    def published(self) -> Normalization | None:
        """One scaling factor and shift for all channels."""
        scale, shift = self.network.config.scaling_factor, self.network.config.get("shift_factor") or 0.0
        return Normalization(
            weights=self.id,
            source=f"published scaling factor {scale:g}" + (f" and shift {shift:g}" if shift else ""),
            mean=(shift,) * self.channels,
            std=(1.0 / scale,) * self.channels,
        )


def current_names(state: State) -> State:
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
