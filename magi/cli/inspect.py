"""``magi inspect``: look at the attention mask and at the model of a config without training anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from magi.cli.assemble import planned_latent
from magi.cli.options import parse, preset_or_file
from magi.config import Config, LatentShape
from magi.presets import SIZES, size

if TYPE_CHECKING:
    from magi.model.magi import Magi
    from magi.model.teacher_forcing import ForcedSequence

# Section 3 of the paper: 256x256 pixels, an 8x autoencoder with 4 channels (Stable Diffusion 1.4), 16 frames.
PAPER_LATENT = LatentShape(frames=16, channels=4, height=32, width=32)


@dataclass(frozen=True)
class MaskOptions:
    """Print which temporal slot attends to which: a row a query, a column a key, 1 where it may attend.

    o1, o2, ... are complete observation frames; m1, m2, ... are masked, predicted frames.
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = "digits"
    """preset, size, config file, run directory, exported folder, or a shipped model"""
    frames: int = 0
    """latent frames of the clip; 0 is as many as the model is trained on"""


@dataclass(frozen=True)
class ModelOptions:
    """Print shapes and parameters of a model."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = "digits"
    """preset, size, config file, run directory, exported folder, or a shipped model"""


def inspect_mask(words: list[str]) -> None:
    """Print the attention mask of a config's teacher forcing."""
    options = parse(MaskOptions, "inspect mask", words)
    config = _config(options.preset)
    frames = options.frames or config.model.frames
    if frames < 1:
        raise ValueError(f"--frames {frames}: expected at least 1")
    import torch

    from magi.model.teacher_forcing import complete_teacher_forcing, masked_teacher_forcing

    forcing = complete_teacher_forcing if config.model.teacher_forcing == "complete" else masked_teacher_forcing
    sequence = forcing(torch.zeros(1, frames, 1, 1), torch.ones(1, frames, 1, dtype=torch.bool))
    print(f"{config.model.teacher_forcing} teacher forcing, {frames} latent frames, {len(sequence.time_S)} slots")
    print(mask_table(sequence))


def mask_table(sequence: "ForcedSequence") -> str:
    """The mask as rows of 0 and 1 with a name a slot."""
    names = [
        f"{'o' if slot < sequence.observations else 'm'}{int(time) + 1}" for slot, time in enumerate(sequence.time_S)
    ]
    wide = max(map(len, names))
    rows = [" ".join([" " * wide, *(name.rjust(wide) for name in names)])]
    for name, allowed in zip(names, sequence.attend_SS.tolist(), strict=True):
        rows.append(" ".join([name.rjust(wide), *(str(int(one)).rjust(wide) for one in allowed)]))
    return "\n".join(rows)


def inspect_model(words: list[str]) -> None:
    """Print shapes and parameters of a model."""
    options = parse(ModelOptions, "inspect model", words)
    model = _model(options.preset)
    shape, latent = model.config, model.latent
    print(f"latents          {latent.frames} frames of {latent.channels} x {latent.height} x {latent.width}")
    print(f"tokens a frame   {model.tokens_per_frame} of {model.token_channels} channels")
    print(f"transformer      {shape.blocks} blocks, width {shape.width}, {shape.heads} heads")
    print(f"diffusion head   {shape.head_blocks} blocks, width {shape.head_width}")
    print()
    total = 0
    for name, count in parts(model).items():
        total += count
        print(f"{name:<24} {count:>13,}")
    print(f"{'parameters':<24} {total:>13,}")


def parts(model: "Magi") -> dict[str, int]:
    """Parameters by part, all of them, each once; parts of the paper's section 3."""
    heads = {
        "spatial attention": "spatial_attention.",
        "temporal attention": "temporal_attention.",
        "spatial MLP": "spatial_mlp.",
        "temporal MLP": "temporal_mlp.",
        "norms of the blocks": "transformer.",
        "diffusion head": "head.",
        "token embedding": "embed_token.",
        "conditions": "conditioning.",
        "positions": "_position",
    }
    counts = dict.fromkeys([*heads, "other"], 0)
    for name, value in model.named_parameters():
        part = next((part for part, mark in heads.items() if mark in name), "other")
        counts[part] += value.numel()
    return counts


def _model(name: str) -> "Magi":
    """A trained model, or that of a config, built without memory for its weights."""
    import torch

    from magi.files import SHIPPED
    from magi.model.magi import Magi
    from magi.sampling.pretrained import load_pretrained

    if name in SHIPPED or Path(name).is_dir():
        return load_pretrained(name).model
    config = _config(name)
    latent = PAPER_LATENT if name in SIZES else planned_latent(config)
    with torch.device("meta"):
        return Magi(config.model, latent)


def _config(name: str) -> Config:
    """The config of a preset, a size (as the paper's latents), a YAML file, or a trained model."""
    from magi.files import SHIPPED

    if name in SIZES:
        return Config(model=size(name))
    return preset_or_file(str(SHIPPED.get(name, name)))
