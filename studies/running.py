"""What every study does around its own question: options, what it will cost, the arms that are missing.

Arms are kept under --out, so a study that was stopped continues, and one that needs arms of another finds them.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from magi.cli.options import Device, check_device
from magi.config import Config, LatentShape
from magi.errors import DataError
from magi.presets import preset, resized
from magi.training.log import read_metrics, readable_time
from magi.training.parallel import chosen_device
from studies.arms import Arm, Budget, load_measures
from studies.measures import Measures, real_measures
from studies.processes import run_all
from studies.sources import Source, SourceName, is_prepared, prepare, source

_RATE_STEPS, _WARMUP_STEPS = 3, 1


@dataclass(frozen=True)
class StudyOptions:
    """What all studies that train are told."""

    source: SourceName = "digits"
    """which videos: digits (built in) or pendulum (recorded with Gymnasium)"""
    out: Path = Path("build/studies")
    """folder of all arms, shared by the studies"""
    results: Path = Path("results/studies")
    """folder of the result's JSON and picture"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    jobs: int = 1
    """arms trained side by side"""
    seeds: int = 3
    """trainings of every arm"""
    budget: Budget = field(default_factory=Budget)
    dry_run: bool = False
    """print what it will cost, and stop"""


@dataclass(frozen=True)
class Arms:
    """Measures of every arm by name, a list over seeds, and those of real clips."""

    source: Source
    by_name: dict[str, list[Measures]]
    real: Measures


def gathered(options: StudyOptions, names: Sequence[str]) -> Arms | None:
    """The arms of a study, those that are missing trained first; None after a dry run, or errors of one line."""
    check(options)
    place = source(options.source, options.out)
    arms = [Arm(name, options.source, seed, options.budget) for seed in range(options.seeds) for name in names]
    missing = [arm for arm in arms if load_measures(arm, arm.folder(options.out)) is None]
    print(cost(options, place, arms, missing), flush=True)
    if options.dry_run:
        return None
    check_writable(options.results)
    if missing:
        prepare(place, options.device)
    run_all([_command(arm, options) for arm in missing], options.jobs)
    by_name: dict[str, list[Measures]] = {name: [] for name in names}
    for arm in arms:
        measures = load_measures(arm, arm.folder(options.out))
        if measures is None:
            raise DataError(f"{arm.folder(options.out)}: no measures after its run; start the study again")
        by_name[arm.name].append(measures)
    return Arms(place, by_name, real_measures(place, place.folder, options.device))


def check(options: StudyOptions) -> None:
    """``ValueError`` for options that cannot be."""
    for name, value in (("seeds", options.seeds), ("jobs", options.jobs)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")
    for name, value in (("steps", options.budget.steps), ("batch", options.budget.batch)):
        if value < 1:
            raise ValueError(f"--budget.{name} {value}: expected at least 1")
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


def cost(options: StudyOptions, place: Source, arms: Sequence[Arm], missing: Sequence[Arm]) -> str:
    """What is missing, in runs, steps, clips and time, and where the estimate of time comes from."""
    names = ", ".join(dict.fromkeys(arm.name for arm in arms))
    lines = [f"{len(arms)} arms ({names}), {len(arms) - len(missing)} done"]
    if not missing:
        return lines[0]
    budget = options.budget
    left = [(arm, budget.steps - steps_done(arm.folder(options.out) / "run")) for arm in missing]
    steps = sum(count for _, count in left)
    rate, origin = step_seconds(arms, options)
    seconds = steps * rate / min(options.jobs, len(missing))
    lines.append(
        f"to train: {len(missing)} runs, {steps} steps of {budget.batch} clips, {steps * budget.batch} clips; "
        f"about {readable_time(seconds)} and the measuring of each ({rate:.3g} s a step, {origin})"
    )
    if not is_prepared(place):
        lines.append(f"to prepare: videos, autoencoder and latents of '{place.name}'")
    return "\n".join(lines)


def steps_done(run: Path) -> int:
    """Steps that a run's metrics tell of."""
    return max((int(line.get("step", 0)) for line in read_metrics(run)), default=0)


def step_seconds(arms: Iterable[Arm], options: StudyOptions) -> tuple[float, str]:
    """Seconds a training step, of arms that have trained at this budget or of a few steps run here; and which."""
    rates = [
        options.budget.batch / line["clips_per_second"]
        for arm in arms
        for line in read_metrics(arm.folder(options.out) / "run")
        if line.get("clips_per_second")
    ]
    if rates:
        return statistics.median(rates), f"median of {len(rates)} lines of metrics.jsonl"
    config = resized(preset("digits"), options.budget.size)
    config = config.model_copy(update={"model": config.model.model_copy(update={"classes": 0})})
    return measured_step(config, options), f"measured over {_RATE_STEPS} steps"


def measured_step(config: Config, options: StudyOptions) -> float:
    """Median seconds of a forward and backward pass of complete teacher forcing on random latents of 8 x 8."""
    from magi.bench.training_setup import build_model, draw_clips, our_loss

    device = torch.device(chosen_device(options.device))
    model = build_model(config, LatentShape(frames=16, channels=4, height=8, width=8), device)
    loss, found = our_loss(model, config, device), []
    for number in range(_WARMUP_STEPS + _RATE_STEPS):
        clips = draw_clips(config, model, options.budget.batch, device, number)
        began = time.perf_counter()
        loss(clips.tokens_BTNC, clips.batch, clips.masked).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[_WARMUP_STEPS:])


def _command(arm: Arm, options: StudyOptions) -> list[object]:
    budget = arm.budget
    words: list[object] = ["-m", "studies.arms", arm.name, "--source", arm.source, "--seed", arm.seed]
    words += ["--out", options.out, "--device", options.device]
    words += ["--budget.steps", budget.steps, "--budget.batch", budget.batch, "--budget.size", budget.size]
    return words
