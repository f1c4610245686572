"""Turns a released OmniTokenizer checkpoint into a folder of ``config.json`` and ``model.safetensors``.

The pickle is read in a child process (magi/untrusted/reader.py), with limits of time and memory; here its tensors are
compared with the architecture that its own hyper-parameters name. Anything missing, unknown, of another shape or not
finite is refused, since the network would run without complaint on part of the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magi.config import validated
from magi.errors import CheckpointError
from magi.untrusted.reader import ReadLimits, UntrustedCheckpoint, read_untrusted
from magi.vae.native_folder import CONFIG_FILE
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.attention import window_offsets
from magi.vae.omnitokenizer.network import OmniNetwork
from magi.vae.omnitokenizer.released_names import (
    MOMENTS_WEIGHT,
    RELEASED_PREFIXES,
    differing_names,
    is_window_table,
    released_name,
)
from magi.vae.omnitokenizer.shape import OmniShape
from magi.weights import load_weights, sha256, shortened

_SIZES = {
    "patch_size": "patch",
    "temporal_patch_size": "temporal_patch",
    "embedding_dim": "width",
    "codebook_dim": "channels",
    "heads": "heads",
    "dim_head": "head_width",
    "enc_block": "encoder_blocks",
    "dec_block": "decoder_blocks",
    "temporal_depth": "temporal_depth",
    "twod_window_size": "window",
}
# What the network cannot do otherwise. Released files spell the two causal flags as in the second pair.
_FIXED: dict[str, Any] = {
    "patch_embed": "linear",
    "spatial_pos": "rope",
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "casual_in_temporal_transformer": True,
    "casual_in_peg": True,
    "ff_mult": 4.0,
    "defer_temporal_pool": False,
    "defer_spatial_pool": False,
    "gen_upscale": None,
    "image_channels": 3,
}


@dataclass(frozen=True)
class ImportedOmni:
    """What ``import_released`` wrote."""

    folder: Path
    id: str
    source_sha256: str
    tensors: int
    parameters: int
    notes: tuple[str, ...]


def import_released(
    checkpoint: Path, out: Path, expected_sha256: str = "", limits: ReadLimits | None = None
) -> ImportedOmni:
    """Read a released checkpoint (``*_vae.ckpt``) and write ``out/config.json`` and ``out/model.safetensors``.

    ``CheckpointError`` for a file that is not one of the continuous autoencoder, complete, finite and of the expected
    hash, if one is given; ``ValueError`` if ``out`` is taken.
    """
    if out.is_file() or (out / CONFIG_FILE).exists():
        raise ValueError(f"{out}: exists already; give another folder for the imported autoencoder")
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such file; give a released checkpoint of OmniTokenizer")
    source = sha256(checkpoint)
    if expected_sha256 and source != expected_sha256.lower():
        raise CheckpointError(f"{checkpoint}: SHA-256 is {source}, expected {expected_sha256}; download it again")
    released = read_untrusted(checkpoint, RELEASED_PREFIXES, limits)
    shape = _shape(checkpoint, released).model_copy(update={"source_sha256": source})
    network = _network(checkpoint, shape, released.tensors)
    vae = OmniVae(shape, network)
    vae.save(out)
    parameters = list(network.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    return ImportedOmni(out, vae.id, source, len(parameters), count, _notes(released))


def _shape(checkpoint: Path, released: UntrustedCheckpoint) -> OmniShape:
    """The sizes that the file names, the released ones where it names none."""
    hyper_parameters, tensors = released.hyper_parameters, released.tensors
    for key, wanted in _FIXED.items():
        if key in hyper_parameters and hyper_parameters[key] != wanted:
            raise CheckpointError(
                f"{checkpoint}: hyper-parameter {key} is {hyper_parameters[key]!r}, only {wanted!r} is supported; "
                "use a released VAE checkpoint (imagenet_k600_vae.ckpt, imagenet_ucf_vae.ckpt)"
            )
    sizes = {ours: hyper_parameters[theirs] for theirs, ours in _SIZES.items() if theirs in hyper_parameters}
    shape = validated(OmniShape, sizes, f"{checkpoint}: hyper-parameters", CheckpointError)
    if MOMENTS_WEIGHT in tensors and tensors[MOMENTS_WEIGHT].shape == (shape.channels, shape.width):
        raise CheckpointError(
            f"{checkpoint}: the quantised tokenizer ({MOMENTS_WEIGHT} has {shape.channels} rows, the continuous one "
            f"{2 * shape.channels}); use a *_vae.ckpt"
        )
    return shape


def _network(checkpoint: Path, shape: OmniShape, tensors: Mapping[str, torch.Tensor]) -> OmniNetwork:
    """Our network with all of the released weights, or a ``CheckpointError``."""
    with torch.device("meta"):  # sizes alone: the file may name sizes that it does not have
        ours = {name: tuple(value.shape) for name, value in OmniNetwork(shape).state_dict().items()}
    differing = differing_names(ours, {name: tuple(value.shape) for name, value in tensors.items()})
    if differing:
        raise CheckpointError(f"{checkpoint}: not the released architecture: {shortened(differing)}")
    integers = [name for name in map(released_name, ours) if not tensors[name].is_floating_point()]
    if integers:
        raise CheckpointError(f"{checkpoint}: weights that are no floating-point numbers: {shortened(integers)}")
    for name in filter(is_window_table, tensors):
        if not torch.equal(tensors[name], window_offsets(shape.window)):
            raise CheckpointError(f"{checkpoint}: {name} is not the order of a {shape.window} x {shape.window} window")
    network = OmniNetwork(shape)
    load_weights(network, {name: tensors[released_name(name)].float() for name in ours}, checkpoint)
    return network


def _notes(released: UntrustedCheckpoint) -> tuple[str, ...]:
    """What a user should know about the file, a line each."""
    notes = []
    unnamed = [theirs for theirs in _SIZES if theirs not in released.hyper_parameters]
    if unnamed:
        notes.append(f"the file does not name {shortened(unnamed)}: taken from the released configuration")
    shifted = [name for name, value in released.tensors.items() if name.endswith(".beta") and bool(value.any())]
    if shifted:
        notes.append(f"shifts of norms that should be zero are not, and were taken as they are: {shortened(shifted)}")
    if released.left_out:
        parts = [f"{prefix} ({count})" for prefix, count in sorted(released.left_out.items())]
        notes.append(f"left out, not part of the autoencoder: {shortened(parts)}")
    return tuple(notes)
