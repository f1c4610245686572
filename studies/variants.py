"""The variants of an ablation: models that differ in a setting, trained with a seed, and what is measured of each.

Two sets of videos are generated from held-out ones: 16 frames from the first frame (the paper's first-frame prediction
on UCF-101), and 104 frames from four. The first gives the features of fvd[digits3d] and of fid[grey+edges], a Frechet
distance a frame (weight-free, and named so that nobody takes it for FID); the second the change between adjacent
frames, and on digits the ground-truth metrics. A class-conditional variant is also measured at every guidance scale,
from nothing but the class. Every run has a folder under --out, so a study that was stopped continues, and two studies
that need the same run share it. What is measured is in ``studies.measures``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from magi.cli.options import Device, check_device
from magi.data.sample_grid import contact_sheet
from magi.data.video_writer import write_png
from magi.devices import resolve_device
from magi.sampling.pipeline import MagiPipeline
from studies.measures import (
    GUIDANCE_SCALES,
    LONG_CLIPS,
    LONG_CONTEXT,
    LONG_FRAMES,
    PREDICTED_FRAMES,
    Measures,
    clip_features,
    features_id,
    guided_measures,
    labels_of,
    load_or_compute,
    long_curves,
    model_id,
    predicted,
    real_measures,
)
from studies.sources import INTERVAL_MAX, Source, SourceName, held_out_clips, magi, prepare, prepare_held_out, source

SAMPLING: dict[str, Any] = {"iterations": 4, "steps": 25, "temperature": 0.9}
"""The same for all variants."""
MEASURES_FILE = "measures.safetensors"
GUIDED = "ctf-class"
LINEAR = "gated-linear"
FULL_CLIPS = 48_000

CTF = ("--model.teacher-forcing", "complete")
MTF = ("--model.teacher-forcing", "masked")
FIXED_INTERVAL = ("--data.interval-max", "1")
DYNAMIC_INTERVAL = ("--data.interval-max", str(INTERVAL_MAX))
NO_NOISE = ("--model.noise-max", "0", "--sampling.noise-level", "1")
NOISE = ("--model.noise-max", "0.7", "--sampling.noise-level", "1")

VARIANTS: dict[str, tuple[str, ...]] = {
    "ctf": (*CTF, *DYNAMIC_INTERVAL, *NOISE),
    "ctf-without-interval": (*CTF, *FIXED_INTERVAL, *NOISE),
    "ctf-without-noise": (*CTF, *DYNAMIC_INTERVAL, *NO_NOISE),
    "ctf-without-both": (*CTF, *FIXED_INTERVAL, *NO_NOISE),
    # Masked teacher forcing has no observation frames, so there is nothing to put noise on.
    "mtf": (*MTF, *DYNAMIC_INTERVAL, *NO_NOISE),
    "mtf-without-interval": (*MTF, *FIXED_INTERVAL, *NO_NOISE),
    GUIDED: (*CTF, *DYNAMIC_INTERVAL, *NOISE, "--model.classes", "10", "--training.class-dropout", "0.1"),
    LINEAR: (*CTF, *DYNAMIC_INTERVAL, *NOISE, "--model.temporal", "gated_linear"),
}
"""Settings by name; ``ctf`` is the paper's whole recipe."""


@dataclass(frozen=True)
class Budget:
    """What every variant of a study is trained with, the same for all."""

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
        """Names the folder of the runs."""
        return f"{self.size}-{self.steps}x{self.batch}"


@dataclass(frozen=True)
class StudyOptions:
    """Train the variants of a model that are missing, measure them, and judge what the paper says of them."""

    source: SourceName = "digits"
    """which videos: digits (built in) or pendulum (recorded with Gymnasium)"""
    out: Path = Path("build/studies")
    """folder of all runs, shared by the studies"""
    results: Path = Path("results/studies")
    """folder of the result's JSON and picture"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    seeds: int = 3
    """trainings of every variant"""
    budget: Budget = field(default_factory=Budget)

    @property
    def scale(self) -> str:
        """Names the result: the videos and the budget, so that one of another budget is another file."""
        return f"{self.source}-{self.budget.name}"


@dataclass(frozen=True)
class OneSeedOptions(StudyOptions):
    """Train the variants of a model that are missing, measure them, and judge what the paper says of them."""

    seeds: int = 1
    """trainings of every variant"""


@dataclass(frozen=True)
class ModelOptions(OneSeedOptions):
    """Measure a finished model, or train what is missing, and judge what the paper says of it."""

    model: str = ""
    """a finished model of the digits instead of trainings: demo, a run, an export or a hub id"""

    @property
    def result_scale(self) -> str:
        """Names the result: of a finished model after it."""
        return Path(self.model).name if self.model else self.scale


def open_model(options: ModelOptions, clips: str) -> tuple[MagiPipeline, Source, dict[str, Any]]:
    """A finished model, the held-out digits, and what the result records; ``clips`` says what is to be generated.

    ``ValueError`` for options that cannot be, before anything is generated.
    """
    check_device(options.device)
    if options.source != "digits":
        raise ValueError(f"--model {options.model} makes digits; leave --source out")
    pipe = MagiPipeline.from_pretrained(options.model, resolve_device(options.device))
    print(f"to generate: {clips} with '{options.model}'", flush=True)
    check_writable(options.results)
    place = source("digits", options.out)
    prepare_held_out(place)
    return pipe, place, {"model": options.model, "weights": model_id(pipe)}


@dataclass(frozen=True)
class Run:
    """One model to train and measure."""

    variant: str
    source: SourceName
    seed: int
    budget: Budget

    def folder(self, out: Path) -> Path:
        """Where all of it is."""
        return out / self.source / self.budget.name / f"{self.variant}-{self.seed}"


@dataclass(frozen=True)
class VariantMeasures:
    """Measures of every variant by name, a list over seeds, and those of real clips."""

    source: Source
    by_name: Mapping[str, list[Measures]]
    real: Measures


def load_or_train(options: StudyOptions, names: Sequence[str]) -> VariantMeasures:
    """Measures of the variants ``names``, after training the runs that are missing; errors of one line."""
    check_options(options)
    check_writable(options.results)
    place = source(options.source, options.out)
    runs = [Run(name, options.source, seed, options.budget) for seed in range(options.seeds) for name in names]
    missing = [run for run in runs if not (run.folder(options.out) / MEASURES_FILE).is_file()]
    steps, clips = options.budget.steps, options.budget.steps * options.budget.batch
    print(f"{len(runs)} runs, {len(runs) - len(missing)} done; {steps} steps, {clips} clips each", flush=True)
    if missing:
        prepare(place, options.device)
    by_name: dict[str, list[Measures]] = {name: [] for name in names}
    for run in runs:
        if run in missing:
            train(run, place, run.folder(options.out), options.device)
        by_name[run.variant].append(measure(run, place, run.folder(options.out), options.device))
    return VariantMeasures(place, by_name, real_measures(place, place.folder, options.device))


def check_options(options: StudyOptions) -> None:
    """``ValueError`` for options that cannot be."""
    budget = options.budget
    for name, value in (("seeds", options.seeds), ("budget.steps", budget.steps), ("budget.batch", budget.batch)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")
    check_device(options.device)


def check_writable(folder: Path) -> None:
    """``ValueError`` where nothing can be written into ``folder``: before hours of training, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--results {folder}: cannot be written to ({error.strerror}); name another folder") from None


def training_options(run: Run) -> tuple[object, ...]:
    """Options of ``magi train`` for a run, but for places and device."""
    budget = run.budget
    training = {
        "steps": budget.steps,
        "batch": budget.batch,
        "warmup-steps": min(200, budget.steps // 10),
        "cooldown-steps": budget.steps // 4,
        "seed": run.seed,
        "ema-decay": 0.998,
        "sample-every": 0,
        "log-every": 50,
        "checkpoint-every": 500,
    }
    options: list[object] = ["--size", budget.size, "--model.classes", 0, "--data.workers", 1]
    options += [part for name, value in training.items() for part in (f"--training.{name}", value)]
    options += [part for name, value in SAMPLING.items() for part in (f"--sampling.{name}", value)]
    return (*options, *VARIANTS[run.variant])


def train(run: Run, source: Source, folder: Path, device: str) -> None:
    """Train the run's model, or continue."""
    places = ("--run", folder / "run", "--data.root", source.latents, "--vae.weights", source.vae, "--device", device)
    magi("train", "digits", *places, *training_options(run))


def measure(run: Run, source: Source, folder: Path, device: str) -> Measures:
    """Generate from the run's model and measure; saved, so that a second call reads.

    ``ValueError`` where there are measures of other settings.
    """
    return load_or_compute(folder / MEASURES_FILE, settings_of(run), lambda: _measure(run, source, folder, device))


def _measure(run: Run, source: Source, folder: Path, device: str) -> dict[str, Any]:
    pipe = MagiPipeline.from_pretrained(folder / "run", resolve_device(device))
    first_BTHWC = held_out_clips(source, PREDICTED_FRAMES)
    labels = labels_of(source, len(first_BTHWC)) if run.variant == GUIDED else None
    tensors = clip_features(predicted(pipe, first_BTHWC[:, :1], PREDICTED_FRAMES, labels), device)
    for scale in GUIDANCE_SCALES if labels is not None else ():
        tensors |= guided_measures(pipe, labels or [], scale, device)
    long_BTHWC = predicted(pipe, held_out_clips(source, LONG_CONTEXT, count=LONG_CLIPS), LONG_FRAMES, longer="window")
    tensors |= long_curves(source, long_BTHWC)
    if run.variant in ("ctf", LINEAR):
        stretched_BTHWC = predicted(pipe, long_BTHWC[:, :LONG_CONTEXT], LONG_FRAMES, longer="interpolate")
        curves = long_curves(source, stretched_BTHWC)
        tensors |= {f"interpolated_{name}": values_BT for name, values_BT in curves.items()}
    rows = [video.numpy() for video in long_BTHWC[:6]]
    write_png(folder / "samples.png", contact_sheet(rows, context_frames=LONG_CONTEXT))
    return tensors


def settings_of(run: Run) -> str:
    """Names all that a run's measures depend on, so that those of other settings are refused."""
    values: dict[str, Any] = asdict(run) | {"training": training_options(run), "long": [LONG_FRAMES, LONG_CLIPS]}
    values |= {"features": features_id(), "guidance": GUIDANCE_SCALES if run.variant == GUIDED else ()}
    return f"{run.variant} {hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]}"
