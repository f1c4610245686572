"""Runs that nobody trained: measures on disk as runs leave them, with known differences."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.vae.adapters import load_vae
from studies.measures import GUIDANCE_SCALES, LONG_FRAMES, load_or_compute, real_settings
from studies.sources import source
from studies.variants import MEASURES_FILE, Budget, Run, settings_of

CLIPS, FRAMES, LONG = 96, 4, 8
BUDGET = Budget(steps=4, batch=2)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real_tensors() -> dict[str, Tensor]:
    tensors = {"digits3d": normal(1, CLIPS, 64), "grey_edges": 0.5 + 0.1 * normal(2, CLIPS, FRAMES, 64)}
    for number, name in enumerate(("floor", "vae", "shuffled", "frozen", "blurred")):
        shift = 0.0 if name in ("floor", "vae") else 3.0
        tensors[f"{name}_digits3d"] = normal(10 + number, CLIPS, 64) + shift
        tensors[f"{name}_grey_edges"] = 0.5 + shift + 0.1 * normal(20 + number, CLIPS, FRAMES, 64)
    tensors |= curves(1.0)
    tensors |= {f"vae_{name}": values.clone() for name, values in curves(1.0).items()}
    return tensors | {f"adjacent_l2_{i}": curves(1.0 + i / 4)["adjacent_l2"][:, : 200 // i] for i in (2, 4, 8)}


def curves(level: float, class_accuracy: float = 1.0) -> dict[str, Tensor]:
    """Long curves: changes of ``level`` x 0.1 with a little of each clip's own."""
    own_B1 = 1 + 0.02 * normal(3, LONG, 1)
    return {
        "adjacent_l2": 0.1 * level * own_B1.expand(LONG, LONG_FRAMES - 1),
        "brightness": 0.3 * own_B1.expand(LONG, LONG_FRAMES),
        "sharpness": 0.2 * own_B1.expand(LONG, LONG_FRAMES),
        "class_accuracy": torch.full((LONG, LONG_FRAMES), class_accuracy),
        "position_error_px": torch.full((LONG, LONG_FRAMES), 5.0),
        "intensity_ratio": torch.ones(LONG, LONG_FRAMES),
    }


def write_measures(path: Path, settings: str, tensors: dict[str, Tensor]) -> None:
    path.unlink(missing_ok=True)
    load_or_compute(path, settings, lambda: tensors)


def write_real(out: Path, **changes: Tensor) -> None:
    place = source("digits", out)
    settings = real_settings(place, load_vae(place.vae_config).id)
    write_measures(place.folder / "real.safetensors", settings, real_tensors() | changes)


def write_run(out: Path, name: str, seed: int, shift: float = 0.0, level: float = 1.0, **given: Any) -> Path:
    """A run whose features lie ``shift`` off the real ones and whose late changes are ``level`` times real ones."""
    run = Run(name, "digits", seed, given.pop("budget", BUDGET))
    real = real_tensors()
    noise = 0.02 * (seed + 1)
    tensors = {"digits3d": real["digits3d"] + shift + noise, "grey_edges": real["grey_edges"] + 0.1 + 0.01 * noise}
    long = curves(level + noise)
    tensors |= long | {f"interpolated_{key}": value.clone() for key, value in long.items()}
    if name == "ctf-class":
        for scale in GUIDANCE_SCALES:  # best at 2
            tensors[f"digits3d_guidance_{scale:g}"] = real["digits3d"] + 0.5 + abs(scale - 2)
            tensors[f"class_guidance_{scale:g}"] = torch.ones(CLIPS, FRAMES)
    path = run.folder(out) / MEASURES_FILE
    write_measures(path, settings_of(run), tensors | given)
    return path
