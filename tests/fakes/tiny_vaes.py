"""The classes of the pretrained autoencoders in sizes that a test can afford, with weights that do something."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLCosmos, AutoencoderKLLTXVideo

from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.ltx import LtxVae
from magi.vae.diffusers.sd import SdVae
from magi.vae.normalized import PretrainedVae

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
CLASSES: dict[str, tuple[type[Any], dict[str, Any], type[PretrainedVae]]] = {
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


def tiny_vae(name: str, seed: int = 0, **changed: Any) -> PretrainedVae:
    """An adapter around a small network, unnormalised."""
    return CLASSES[name][2](tiny_network(name, seed, **changed))


def some_video(*shape: int, seed: int = 1) -> torch.Tensor:
    """Noise, uint8, channels last."""
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
