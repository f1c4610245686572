"""Time of decoding latents to pixels at 256 x 256: Stable Diffusion's autoencoder and Cosmos', with random weights.

Cosmos is decoded latent by latent, as a stream is shown; its baseline decodes the clip as a whole, for which a viewer
has to wait until the last frame is made.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Parity, Setting, Trial
from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.sd import SD_CONFIG, SdVae
from magi.vae.normalized import PretrainedVae

LATENT_FRAMES = 4
LATENT_SIZE = 32
PIXEL_LEVELS = 1.0
"""Between decoding in pieces and as a whole, of 255: one level, for values that fall on the edge between two."""

_SMALL_SD = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}
_SMALL_COSMOS = {
    "latent_channels": 4, "encoder_block_out_channels": (8, 8, 8, 8), "decode_block_out_channels": (8, 8, 8, 8),
    "attention_resolutions": (8,), "resolution": 64, "num_layers": 1,
}  # fmt: skip


def _network(network_class: Callable[..., Any], values: Mapping[str, Any], device: torch.device) -> Any:
    """A network of random weights, those of convolutions enlarged so that its pixels are not all grey."""
    torch.manual_seed(0)
    network = network_class(**values).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network.to(device)


def _autoencoders(setting: Setting) -> dict[str, PretrainedVae]:
    from diffusers import AutoencoderKL, AutoencoderKLCosmos

    sd = SD_CONFIG | (_SMALL_SD if setting.smoke else {})
    cosmos = {"temporal_compression_ratio": 4} | (_SMALL_COSMOS if setting.smoke else {})
    return {
        "SD": SdVae(_network(AutoencoderKL, sd, setting.device)),
        "Cosmos": CosmosVae(_network(AutoencoderKLCosmos, cosmos, setting.device)),
    }


def _latents(vae: PretrainedVae, setting: Setting) -> Tensor:
    """latents_BTCHW of one clip."""
    size = 4 if setting.smoke else LATENT_SIZE
    generator = torch.Generator(setting.device).manual_seed(0)
    shape = (1, LATENT_FRAMES, vae.channels, size, size)
    return torch.randn(shape, device=setting.device, generator=generator)


def _streamed(vae: PretrainedVae, latents_BTCHW: Tensor) -> Tensor:
    return torch.cat(list(vae.decode_stream(latents_BTCHW.split(1, dim=1))), dim=1)


def _decoding(setting: Setting) -> Trial:
    vaes = _autoencoders(setting)
    latents = {name: _latents(vae, setting) for name, vae in vaes.items()}
    frames = {name: (LATENT_FRAMES - 1) * vae.temporal_stride + 1 for name, vae in vaes.items()}

    def check() -> tuple[Parity, ...]:
        found = []
        for name, vae in vaes.items():
            whole, streamed = vae.decode(latents[name]).float(), _streamed(vae, latents[name]).float()
            assert float(whole.std()) > 1, "a grey picture would agree with any other"
            difference = float((whole - streamed).abs().max())
            found.append(Parity(f"{name}: pixels streamed against whole", difference, PIXEL_LEVELS))
        return tuple(found)

    return Trial(
        (
            Contender(OURS, lambda: _streamed(vaes["Cosmos"], latents["Cosmos"]), warmups=2),
            Contender("whole clip", lambda: vaes["Cosmos"].decode(latents["Cosmos"]), warmups=2),
            Contender("SD", lambda: _streamed(vaes["SD"], latents["SD"]), warmups=2),
        ),
        check=check,
        metrics=lambda seconds: {
            "ms a frame Cosmos": seconds[OURS] / frames["Cosmos"] * 1e3,
            "ms a frame SD": seconds["SD"] / frames["SD"] * 1e3,
        },
        shapes={"latent frames": LATENT_FRAMES, "latent size": latents["SD"].shape[-1], "frames": frames, "batch": 1},
    )


CASES = (Case("decode.vae", "cuda", "four latent frames to pixels of 256 x 256", "clip", _decoding, (), 0.25),)
