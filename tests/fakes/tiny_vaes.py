"""The classes of the pretrained autoencoders in sizes that a test can afford, with weights that do something."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLCosmos, AutoencoderKLLTXVideo

from magi.vae.diffusers.adapter import DiffusersVae
from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.ltx import LtxVae
from magi.vae.diffusers.sd import SdVae
from magi.vae.diffusers.small import SmallVae, SmallVaeShape, build_network
from magi.vae.normalization import Normalization
from magi.vae.normalized import NormalizedVae
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.shape import OmniShape
from magi.vae.pixel import PixelVae

SD = {
    "block_out_channels": (8, 8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip
COSMOS = {
    "latent_channels": 4, "encoder_block_out_channels": (8, 8, 8, 8), "decode_block_out_channels": (8, 8, 8, 8),
    "attention_resolutions": (8,), "resolution": 64, "num_layers": 1, "temporal_compression_ratio": 4,
}  # fmt: skip
LTX = {
    "latent_channels": 6, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
}  # fmt: skip
CLASSES: dict[str, tuple[type[Any], dict[str, Any], type[DiffusersVae]]] = {
    "sd": (AutoencoderKL, SD, SdVae),
    "cosmos": (AutoencoderKLCosmos, COSMOS, CosmosVae),
    "ltx": (AutoencoderKLLTXVideo, LTX, LtxVae),
}


def tiny_network(name: str, seed: int = 0, **changed: Any) -> Any:
    """A small network of a class; larger weights than new ones have, so that its output is far from grey."""
    network_class, values, _ = CLASSES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class(**(values | changed))
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def tiny_vae(name: str, seed: int = 0, **changed: Any) -> DiffusersVae:
    """An adapter around a small network of diffusers, its latents in the units of the network."""
    return CLASSES[name][2](tiny_network(name, seed, **changed))


def any_tiny_vae(name: str, seed: int = 0) -> NormalizedVae:
    """The adapter called ``name``, small, of random weights, its latents in the units of the network."""
    if name == "pixel":
        return PixelVae(4)
    if name == "small":
        return tiny_small(seed)
    return tiny_omni(seed) if name == "omni" else tiny_vae(name, seed)


def tiny_small(seed: int = 0) -> SmallVae:
    """Larger weights than new ones have, so that its output is far from grey."""
    shape = SmallVaeShape(channels=3, patch=2, widths=(8, 16))
    network, generator = build_network(shape, seed), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return SmallVae(shape, network)


def tiny_omni(seed: int = 0) -> OmniVae:
    """Its released configuration, narrow: window attention, then full attention, over 2 x 2 patches."""
    shape = OmniShape(channels=4, width=16, heads=2, head_width=8, window=2, encoder_blocks="tw", temporal_depth=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OmniNetwork(shape)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return OmniVae(shape, network)


def some_normalization(vae: NormalizedVae) -> Normalization:
    """Statistics that differ from channel to channel."""
    return Normalization(
        weights=vae.id,
        source="a test",
        mean=tuple(0.1 * channel for channel in range(vae.channels)),
        std=tuple(0.5 + channel for channel in range(vae.channels)),
    )


def some_video(*shape: int, seed: int = 1) -> torch.Tensor:
    """Noise, uint8, channels last."""
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
