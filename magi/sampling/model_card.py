"""The model card of an export: what the model is, what it was trained on, how to use it. It knows no files."""

from collections.abc import Sequence

from magi.config import Config
from magi.model.magi import Magi

_LISTED = 20


def model_card(model: Magi, config: Config, vae_id: str, classes: Sequence[str] | None, dtype: str) -> str:
    """README.md of an export, in Markdown with the metadata block that the hub reads."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data, sampling, latent = config.data, config.sampling, model.latent
    first = sampling.first_timestep
    size = f"{data.height}x{data.width}"
    names = list(classes or [])
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    forcing = "complete teacher forcing" if config.model.teacher_forcing == "complete" else "masked teacher forcing"
    along_time = ", gated linear attention along time" if config.model.temporal == "gated_linear" else ""
    label = f', labels="{names[0]}"' if names and config.model.classes else ""
    label += ', prompt="what it shows"' if config.model.text_encoder else ""
    rows = [
        ("parameters", f"{parameters:,} ({dtype} on disk)"),
        (
            "transformer",
            f"{config.model.blocks} blocks, width {config.model.width}, {config.model.heads} heads{along_time}",
        ),
        ("trained with", f"{forcing}, batches of {config.training.batch} clips, averaged (EMA) weights"),
        ("clips", f"{data.frames} frames of {size}, interval {data.interval_min}..{data.interval_max}"),
        ("autoencoder", f"`{vae_id}`, latents {latent.channels}x{latent.height}x{latent.width}"),
        ("classes", listed or (str(config.model.classes) if config.model.classes else "none")),
        ("sampling", f"{sampling.iterations} iterations, {sampling.steps} steps, guidance {sampling.guidance:g}"),
    ]
    if config.model.text_encoder:
        rows.insert(-1, ("text", f"{config.model.text_encoder}, at most {config.model.text_length} long"))
    if config.model.objective == "energy":
        rows.append(("head", "one step a token, trained by the energy score"))
    else:
        rows.append(("timesteps", f"{first or config.model.diffusion_steps - 1} to {sampling.last_timestep}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: magi
tags:
- video-generation
- autoregressive
---
# A MAGI video model

Continues videos frame by frame, or makes them from nothing: masked autoregressive generation with a diffusion head
("Taming Teacher Forcing for Masked Autoregressive Video Generation", CVPR 2025, arXiv 2501.12389). Not the authors'
code or weights, and not SandAI's MAGI-1.

| | |
|---|---|
{table}

```python
from magi import MagiPipeline

pipe = MagiPipeline.from_pretrained("path/to/this/folder")  # device="cuda" on a GPU
result = pipe(frames={2 * data.frames}{label}, seeds=[0, 1])  # or context=video_THWC, uint8, {size}
result.video_BTHWC  # uint8
pipe(frames={2 * data.frames}{label}, sampling={{"temperature": 0.8}})  # any field of sampling in config.yaml
```

Only safetensors, JSON and YAML: loading it runs no code.
"""
