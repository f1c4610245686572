"""An arm of a study: a model trained with some settings and a seed, what it generates, and what is measured of it.

    python -m studies.variants ctf --source digits --seed 0 --out build/studies

Two sets of videos are generated from held-out ones: 16 frames from the first frame (the paper's first-frame prediction
on UCF-101), and 104 frames from four. Of the first come the features of fvd[digits3d] and of fid[grey+edges], a Frechet
distance a frame (weight-free, and named so that nobody takes it for FID); of the second the change between adjacent
frames, and on digits the oracles. A class-conditional arm is also measured at every guidance scale, from nothing but
the class. Everything is kept in the arm's folder, so a study that is stopped continues, and two studies that need the
same arm share it. What is measured is in ``studies.measures``.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from magi.cli.options import Device, check_device
from magi.data.video_writer import contact_sheet, write_png
from magi.sampling.pipeline import MagiPipeline
from magi.training.parallelize import resolve_device
from studies.commands import command, options_of
from studies.measures import (
    GUIDANCE_SCALES,
    LONG_CLIPS,
    LONG_CONTEXT,
    LONG_FRAMES,
    PREDICTED_FRAMES,
    Measures,
    clip_features,
    continued,
    features_id,
    guided_measures,
    keep,
    labels_of,
    long_curves,
    read_measures,
)
from studies.sources import HELD_OUT_VIDEOS, INTERVAL_MAX, Source, SourceName, held_out_clips, magi, prepare, source

SAMPLING: dict[str, Any] = {"iterations": 4, "steps": 25, "temperature": 0.9}
"""The same for all arms."""
MEASURES_FILE = "measures.safetensors"
GUIDED_ARM = "ctf-class"
FULL_CLIPS = 48_000

CTF = ("--model.teacher-forcing", "complete")
MTF = ("--model.teacher-forcing", "masked")
FIXED_INTERVAL = ("--data.interval-max", "1")
DYNAMIC_INTERVAL = ("--data.interval-max", str(INTERVAL_MAX))
NO_NOISE = ("--model.noise-max", "0", "--sampling.noise-level", "1")
NOISE = ("--model.noise-max", "0.7", "--sampling.noise-level", "1")

ARMS: dict[str, tuple[str, ...]] = {
    "ctf": (*CTF, *DYNAMIC_INTERVAL, *NOISE),
    "ctf-without-interval": (*CTF, *FIXED_INTERVAL, *NOISE),
    "ctf-without-noise": (*CTF, *DYNAMIC_INTERVAL, *NO_NOISE),
    "ctf-without-both": (*CTF, *FIXED_INTERVAL, *NO_NOISE),
    # Masked teacher forcing has no observation frames, so there is nothing to put noise on.
    "mtf": (*MTF, *DYNAMIC_INTERVAL, *NO_NOISE),
    "mtf-without-interval": (*MTF, *FIXED_INTERVAL, *NO_NOISE),
    "ctf-class": (*CTF, *DYNAMIC_INTERVAL, *NOISE, "--model.classes", "10", "--training.class-dropout", "0.1"),
}
"""Settings by name; ``ctf`` is the paper's whole recipe."""

ArmName = Literal[
    "ctf", "ctf-without-interval", "ctf-without-noise", "ctf-without-both", "mtf", "mtf-without-interval", "ctf-class"
]


@dataclass(frozen=True)
class Budget:
    """What every arm of a study is trained with, the same for all."""

    steps: int = 3000
    """optimizer steps"""
    batch: int = 16
    """clips a step"""
    size: Literal["nano", "tiny", "small"] = "tiny"
    """of the transformer and its head"""

    @property
    def is_short(self) -> bool:
        """Fewer clips than the budget that the studies are meant for."""
        return self.steps * self.batch < FULL_CLIPS

    @property
    def name(self) -> str:
        """Names the folder of the arms."""
        return f"{self.size}-{self.steps}x{self.batch}"


@dataclass(frozen=True)
class Arm:
    """One model to train and measure."""

    name: str
    source: SourceName
    seed: int
    budget: Budget

    def folder(self, out: Path) -> Path:
        """Where all of it is kept."""
        return out / self.source / self.budget.name / f"{self.name}-{self.seed}"


def training_words(arm: Arm) -> tuple[object, ...]:
    """What ``magi train`` is told about an arm, but for places and device."""
    budget = arm.budget
    training = {
        "steps": budget.steps,
        "batch": budget.batch,
        "warmup-steps": min(200, budget.steps // 10),
        "cooldown-steps": budget.steps // 4,
        "seed": arm.seed,
        "ema-decay": 0.998,
        "sample-every": 0,
        "log-every": 50,
        "checkpoint-every": 500,
    }
    words: list[object] = ["--size", budget.size, "--model.classes", 0, "--data.workers", 1]
    words += [word for name, value in training.items() for word in (f"--training.{name}", value)]
    words += [word for name, value in SAMPLING.items() for word in (f"--sampling.{name}", value)]
    return (*words, *ARMS[arm.name])


def train_arm(arm: Arm, source: Source, folder: Path, device: str) -> None:
    """Train the arm's model, or continue."""
    places = ("--run", folder / "run", "--data.root", source.latents, "--vae.weights", source.vae, "--device", device)
    magi("train", "digits", *places, *training_words(arm))


def load_measures(arm: Arm, folder: Path) -> Measures | None:
    """Measures of an arm that is finished, else None; ``ValueError`` where those there are of other settings."""
    path = folder / MEASURES_FILE
    return read_measures(path, settings_of(arm)) if path.is_file() else None


def measure_arm(arm: Arm, source: Source, folder: Path, device: str) -> Measures:
    """Generate from the arm's model and measure; kept, so a second call reads."""
    if (known := load_measures(arm, folder)) is not None:
        return known
    pipe = MagiPipeline.from_pretrained(folder / "run", resolve_device(device))
    first_BTHWC = held_out_clips(source, PREDICTED_FRAMES)
    labels = labels_of(source, len(first_BTHWC)) if arm.name == GUIDED_ARM else None
    tensors = clip_features(continued(pipe, first_BTHWC[:, :1], PREDICTED_FRAMES, labels), device)
    for scale in GUIDANCE_SCALES if labels is not None else ():
        tensors |= guided_measures(pipe, labels or [], scale, device)
    long_BTHWC = continued(pipe, held_out_clips(source, LONG_CONTEXT, count=LONG_CLIPS), LONG_FRAMES, longer="window")
    tensors |= long_curves(source, long_BTHWC)
    if arm.name == "ctf":
        stretched_BTHWC = continued(pipe, long_BTHWC[:, :LONG_CONTEXT], LONG_FRAMES, longer="interpolate")
        curves = long_curves(source, stretched_BTHWC)
        tensors |= {f"interpolated_{name}": values_BT for name, values_BT in curves.items()}
    rows = [video.numpy() for video in long_BTHWC[:6]]
    write_png(folder / "samples.png", contact_sheet(rows, context_frames=LONG_CONTEXT))
    return keep(folder / MEASURES_FILE, tensors, settings_of(arm))


def settings_of(arm: Arm) -> str:
    """Names all that an arm's measures depend on, so that those of other settings are refused."""
    values: dict[str, Any] = asdict(arm) | {"training": training_words(arm), "long": [LONG_FRAMES, LONG_CLIPS]}
    values |= {"features": features_id(), "guidance": GUIDANCE_SCALES if arm.name == GUIDED_ARM else ()}
    return f"{arm.name} {hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]}"


def frames_to_make(arm: Arm) -> int:
    """Frames that measuring an arm generates, guided ones counted twice."""
    clips = HELD_OUT_VIDEOS // 2
    short, long = clips * (PREDICTED_FRAMES - 1), LONG_CLIPS * (LONG_FRAMES - LONG_CONTEXT)
    guided = 2 * clips * PREDICTED_FRAMES * len(GUIDANCE_SCALES) if arm.name == GUIDED_ARM else 0
    return short + long * (2 if arm.name == "ctf" else 1) + guided


@dataclass(frozen=True)
class ArmOptions:
    """Train and measure one arm."""

    arm: Annotated[ArmName, tyro.conf.Positional]
    """which settings"""
    source: SourceName = "digits"
    """which videos"""
    seed: int = 0
    """of weights, order, masks and noise"""
    out: Path = Path("build/studies")
    """folder of all arms"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    budget: Budget = field(default_factory=Budget)


def main() -> None:
    """Train and measure the arm that the command line names."""
    options = options_of(ArmOptions, "studies.variants")
    check_device(options.device)
    arm = Arm(options.arm, options.source, options.seed, options.budget)
    place = source(options.source, options.out)
    prepare(place, options.device)
    train_arm(arm, place, arm.folder(options.out), options.device)
    measure_arm(arm, place, arm.folder(options.out), options.device)


if __name__ == "__main__":
    command(main)
