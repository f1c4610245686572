"""Turns the released Cosmos tokenizer 4x8x8 into a folder of ``config.json`` and safetensors.

NVIDIA publishes CV4x8x8 as a compiled module alone (``autoencoder.jit``). The archive is parsed, never run
(magi/untrusted/reader.py), and its names, those of the layers of github.com/NVIDIA/Cosmos-Tokenizer, become those of
diffusers' class. Every weight of the network must be there; the release's spare layers, which its forward never
reaches, are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi.untrusted.reader import read_untrusted
from magi.vae.adapters import ADAPTERS
from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.weights import CONFIG_FILE, build_network, save_network
from magi.weights import load_weights

RELEASED: dict[str, Any] = {"temporal_compression_ratio": 4, "latents_mean": None, "latents_std": None}
"""CV4x8x8 in the terms of diffusers' class; all else is its default (channels 128 x (2, 4, 4), haar patches)."""

_BUFFERS = ("wavelets", "_arange", "patch_size_buffer")  # of the wavelets, constants
_SPARE = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.\d+\.(down|up)samplers\.0\.conv[123]\.(weight|bias)")
_LAYERS = (
    (r"\bdown\.(\d+)\.", r"down_blocks.\1."),
    (r"\bup\.(\d+)\.", r"up_blocks.\1."),
    (r"\bblock\.(\d+)\.", r"resnets.\1."),
    (r"\b(down|up)sample\.", r"\1samplers.0."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.0\.", "mid_block.attentions.0."),
    (r"\bmid\.attn_1\.1\.", "mid_block.temp_attentions.0."),
    (r"\.([qkv])\.conv3d\.", r".to_\1."),
    (r"\.proj_out\.conv3d\.", ".to_out.0."),
    (r"\.nin_shortcut\.conv3d\.", ".conv_shortcut."),
    (r"\.(conv_in|conv_out|conv1|conv2)\.0\.conv3d\.", r".\1.conv_s."),  # over space, then over time
    (r"\.(conv_in|conv_out|conv1|conv2)\.1\.conv3d\.", r".\1.conv_t."),
    (r"\.?conv3d\.", "."),
)


@dataclass(frozen=True)
class ImportedCosmos:
    """What ``import_cosmos`` wrote."""

    folder: Path
    weights_id: str
    parameters: int
    spare: int
    """Tensors of layers that the tokenizer never uses, left out."""


def import_cosmos(path: Path, out: Path, values: Mapping[str, Any] | None = None) -> ImportedCosmos:
    """Read ``autoencoder.jit`` and write ``out``, which the cosmos adapter loads; ``values`` are its configuration.

    ``CheckpointError`` for a file that is damaged or of another tokenizer, ``ValueError`` if ``out`` is taken.
    """
    if (out / CONFIG_FILE).exists() or out.is_file():
        raise ValueError(f"{out}: exists already; give another folder for the imported autoencoder")
    released = read_untrusted(path).tensors
    network = build_network(ADAPTERS["cosmos"].class_name, RELEASED if values is None else values)
    levels = len(network.config.decode_block_out_channels) - 1
    wanted = network.state_dict()
    state = {diffusers_name(name, levels): tensor for name, tensor in released.items() if not name.endswith(_BUFFERS)}
    spare = [name for name in state if name not in wanted and _SPARE.fullmatch(name)]
    load_weights(network, {name: tensor for name, tensor in state.items() if name not in spare}, path)
    vae = CosmosVae(network)
    save_network(network, out)
    return ImportedCosmos(out, vae.id, sum(tensor.numel() for tensor in wanted.values()), len(spare))


def diffusers_name(name: str, levels: int) -> str:
    """The name in diffusers' class of a weight of the release; decoder levels count the other way round."""
    for pattern, replacement in _LAYERS:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\bup_blocks\.(\d+)\.", lambda level: f"up_blocks.{levels - 1 - int(level[1])}.", name)
