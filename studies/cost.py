"""What the missing arms of a study will cost: runs, steps, clips, generated frames, and about how long.

Rates are those of arms that have trained before, or of a few steps and frames run here with a model of random weights.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from magi.bench.models import bench_model, random_model
from magi.bench.training import draw_clips, training_loss
from magi.config import Config, LatentShape
from magi.model.conditioning import Conditions
from magi.presets import preset, resized
from magi.sampling.generate import generate
from magi.training.log import read_metrics, readable_time
from studies.measures import BATCH
from studies.sources import Source, is_prepared
from studies.variants import SAMPLING, Arm, Budget, frames_to_make

_ROUNDS, _FRAMES = 3, 2
LATENT = LatentShape(frames=16, channels=4, height=8, width=8)


def cost(place: Source, arms: Sequence[Arm], missing: Sequence[Arm], out: Path, device: torch.device, jobs: int) -> str:
    """What is missing of ``arms``, in words; ``jobs`` of them run side by side."""
    names = ", ".join(dict.fromkeys(arm.name for arm in arms))
    lines = [f"{len(arms)} arms ({names}), {len(arms) - len(missing)} done"]
    if not missing:
        return lines[0]
    budget = missing[0].budget
    steps = sum(budget.steps - steps_done(arm.folder(out) / "run") for arm in missing)
    frames = sum(frames_to_make(arm) for arm in missing)
    step, origin = step_seconds(arms, out, budget, device)
    frame = frame_seconds(budget, device)
    seconds = (steps * step + frames * frame) / min(jobs, len(missing))
    lines.append(
        f"to train: {len(missing)} runs, {steps} steps of {budget.batch} clips, {steps * budget.batch} clips "
        f"({step:.3g} s a step, {origin})"
    )
    lines.append(f"to generate: {frames} frames ({frame * 1e3:.3g} ms a frame, measured in batches of {BATCH})")
    lines.append(f"about {readable_time(seconds)} in all, {jobs} at a time")
    if not is_prepared(place):
        lines.append(f"to prepare: videos, autoencoder and latents of '{place.name}'")
    return "\n".join(lines)


def steps_done(run: Path) -> int:
    """Steps that a run's metrics tell of."""
    return max((int(line.get("step", 0)) for line in read_metrics(run)), default=0)


def step_seconds(arms: Sequence[Arm], out: Path, budget: Budget, device: torch.device) -> tuple[float, str]:
    """Seconds a training step, of arms that have trained at this budget or of a few steps run here; and which."""
    rates = [
        budget.batch / line["clips_per_second"]
        for arm in arms
        for line in read_metrics(arm.folder(out) / "run")
        if line.get("clips_per_second")
    ]
    if rates:
        return statistics.median(rates), f"median of {len(rates)} lines of metrics.jsonl"
    config = _config(budget)
    model = random_model(config.model, LATENT, device).train()
    loss = training_loss(model, config, device)

    def step(number: int) -> object:
        clips = draw_clips(config, model, budget.batch, device, number)
        return loss(clips.tokens_BTNC, clips.batch, clips.masked).backward()

    return _median_seconds(step, device), f"measured over {_ROUNDS} steps of complete teacher forcing"


def frame_seconds(budget: Budget, device: torch.device) -> float:
    """Seconds a generated frame of one video, in the batches and with the sampling settings of the arms."""
    config = _config(budget)
    model = bench_model(config.model, LATENT, device, torch.float32)
    ones = torch.ones(BATCH, dtype=torch.long)
    sampling = config.sampling.model_copy(update=SAMPLING | {"noise_level": 1})

    def frames(number: int) -> object:
        generators = [torch.Generator().manual_seed(number) for _ in range(BATCH)]
        conditions = Conditions(ones, ones, None)
        return list(generate(model, frames=_FRAMES, conditions=conditions, generators=generators, config=sampling))

    return _median_seconds(frames, device) / (BATCH * _FRAMES)


def _config(budget: Budget) -> Config:
    config = resized(preset("digits"), budget.size)
    return config.model_copy(update={"model": config.model.model_copy(update={"classes": 0})})


def _median_seconds(work: Callable[[int], object], device: torch.device) -> float:
    """Of a few calls after the first."""
    found = []
    for number in range(_ROUNDS + 1):
        began = time.perf_counter()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])
