"""Named sizes and named whole configs.

A size is the shape of the transformer and its diffusion head alone; ``large`` is the paper's model (section 3:
20 blocks, hidden 1280, MLP 5120, 16 heads; head of 3 blocks, width 1024), the others keep its proportions as the
paper's smaller variants do (names and exact shapes are this project's). A preset is a whole config, one function
each, citing the table it scales down. Knows neither torch nor files.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, TrainingConfig, VaeConfig

T = TypeVar("T")

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "blocks": 4, "heads": 4, "head_width": 256, "head_blocks": 3},
    "small": {"width": 384, "blocks": 8, "heads": 6, "head_width": 512, "head_blocks": 3},
    "base": {"width": 768, "blocks": 12, "heads": 12, "head_width": 1024, "head_blocks": 3},
    "large": {"width": 1280, "blocks": 20, "heads": 16, "head_width": 1024, "head_blocks": 3},
}


def size(name: str, **settings: Any) -> ModelConfig:
    """The model config of a size, with ``settings`` for its other fields; a ``ValueError`` names the nearest size."""
    return ModelConfig(**{**_lookup(SIZES, name, "size"), **settings})


def digits() -> Config:
    """Ten classes of bouncing glyphs, 64x64, on two CPU cores in minutes.

    Scaled down from the paper's UCF-101 row (section 4: 256x256, 16 frames, batch 128, learning rate 1e-4 with
    10,000 warm-up steps, EMA 0.9999; section 5: 64 iterations, 100 denoising steps). Kept from it: 16 frames, the
    optimizer, mask ratios, 3 head blocks. Changed: tiny size, batch 8, a higher rate for the smaller model with a short
    warm-up and a cool-down, an EMA that fits thousands of steps, intervals 1..2, noise up to 0.35 (a glyph's speed is
    fractions of a pixel), half of the clips without their label (a continuation shows it), no dropout, one class token,
    4 iterations of 50 steps at temperature 0.7, observed frames at noise level 2, and a sliding window for endless
    videos. These are the settings of the shipped model (runs/digits.sh).
    """
    return Config(
        data=DataConfig(root="build/digits", frames=16, height=64, width=64, interval_min=1, interval_max=2),
        vae=VaeConfig(name="small", weights="demo"),
        model=size("tiny", frames=16, classes=10, class_tokens=1, dropout=0.0, noise_max=0.35),
        training=TrainingConfig(
            steps=4500,
            batch=8,
            learning_rate=1e-3,
            warmup_steps=200,
            cooldown_steps=1100,
            ema_decay=0.999,
            precision="auto",
            class_dropout=0.5,
            log_every=20,
            checkpoint_every=250,
            sample_every=500,
        ),
        sampling=SamplingConfig(iterations=4, steps=50, temperature=0.7, noise_level=2, longer="window", window_keep=8),
    )


PRESETS: dict[str, Callable[[], Config]] = {"digits": digits}


def preset(name: str) -> Config:
    """The whole config called ``name``; a ``ValueError`` names the nearest preset."""
    return _lookup(PRESETS, name, "preset")()


def _lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        nearest = difflib.get_close_matches(name, list(table), n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(table)}"
        raise ValueError(f"unknown {kind} '{name}'; {hint}")
    return table[name]
