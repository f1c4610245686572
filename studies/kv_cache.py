"""Study: time against number of frames, with the key-value cache and without (paper section 5 and its speed figure).

    python -m studies.kv_cache --model demo

Without the cache every masked iteration observes all earlier frames anew; both ways draw the same noise, and their
latents are compared first. Positions in time are interpolated, so that all frames stay in view: in a sliding window the
cost a frame is bounded in any case. The two take turns at every number of frames, round after round. On a CPU the
processor time of this process is counted, which other work on the machine hardly disturbs; on a GPU the clock.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from magi.cli.options import Device, check_device
from magi.config import SamplingConfig
from magi.devices import resolve_device
from magi.errors import NumericsError
from magi.evaluation.plots import COLOURS, figure_of
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser
from magi.sampling.frame import generate_frame, plan_frame
from magi.sampling.generate import evaluating
from magi.sampling.history import History
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.request import make_conditions
from studies.commands import run_command
from studies.results import write_outcome
from studies.statistics import Judged, Statement, effect_over_seeds, judge
from studies.variants import check_writable

WAYS = ("with", "without")
PARITY_FRAMES = 16
PARITY_TOLERANCE = 1e-3
LINEAR = (0.9, 1.1)
Seconds = dict[str, dict[int, list[float]]]
"""Way -> frames -> seconds of each round."""


@dataclass(frozen=True)
class CacheOptions:
    """Time generation with and without the key-value cache."""

    model: str = "demo"
    """the shipped model, a run, an export or a hub id"""
    frames: tuple[int, ...] = (8, 16, 32, 64, 128)
    """latent frames in all"""
    rounds: int = 5
    """times that everything is measured"""
    batch: int = 1
    """videos at a time"""
    steps: int = 0
    """denoising steps a token; 0 is the model's own"""
    results: Path = Path("results/studies")
    """folder of the result's JSON and picture"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


class UncachedHistory(History):
    """The same history without a cache between passes: before every masked iteration all frames are observed anew."""

    tokens_BTNC: Tensor | None = None

    def observe(self, tokens_BTNC: Tensor) -> None:
        """Remember finished frames, with their noise, and where the next one is."""
        tokens_BTNC = self._with_noise(tokens_BTNC)
        known = [] if self.tokens_BTNC is None else [self.tokens_BTNC]
        self.tokens_BTNC = torch.cat([*known, tokens_BTNC], dim=1)
        self.frame_pass.set_time(self.time_T[self.tokens_BTNC.shape[1]])

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        """As ``History.predict``, after observing everything."""
        if self.tokens_BTNC is not None:
            self.cache.clear()
            time_T = self.time_T[: self.tokens_BTNC.shape[1]]
            self.model.observe(self._double(self.tokens_BTNC), time_T, self.conditions, self.cache)
        return super().predict(tokens_BNC, masked_BN, picked_Bm)


def latents(model: Magi, config: SamplingConfig, conditions: Conditions, frames: int, way: str) -> Tensor:
    """Latents_BTNC of ``frames`` frames from nothing; video k is drawn with seed k."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(conditions.batch)]
    # The plain path for both: graphs and kernels would be won by one of them alone.
    plan, made = plan_frame(model, config), []
    with evaluating(model):
        history = History if way == "with" else UncachedHistory
        past = history(model, conditions, generators, frames, config)
        denoiser = Denoiser(model.head, config.temperature)
        for frame in range(frames):
            made.append(generate_frame(model, past, generators, plan, denoiser).clone())
            if frame + 1 < frames:
                past.observe(made[-1][:, None])
    return torch.stack(made, dim=1)


def check_parity(model: Magi, config: SamplingConfig, conditions: Conditions, frames: int) -> float:
    """Largest difference of the latents of both ways; ``NumericsError`` where it is more than rounding."""
    one, other = (latents(model, config, conditions, frames, way) for way in WAYS)
    difference = float((one - other).abs().max())
    if not difference <= PARITY_TOLERANCE:
        raise NumericsError(f"with and without cache differ by {difference:.3g} over {frames} frames: nothing to time")
    return difference


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of the processor on a CPU, of the clock on a GPU."""
    on_cpu = device.type == "cpu"
    clock, wait = (time.process_time, torch.cpu.synchronize) if on_cpu else (time.perf_counter, torch.cuda.synchronize)
    wait(device)
    began = clock()
    work()
    wait(device)
    return clock() - began


def exponent(frames: Sequence[int], seconds: Sequence[float]) -> float:
    """p of seconds ~ frames^p by least squares on logarithms; ``ValueError`` for fewer than two lengths."""
    if len(set(frames)) < 2:
        raise ValueError("an exponent needs at least two numbers of frames")
    return float(np.polyfit(np.log(frames), np.log(seconds), 1)[0])


def exponents(found: Seconds) -> dict[str, list[float]]:
    """Way -> exponent of each round."""
    return {way: [exponent(list(by), row) for row in zip(*by.values(), strict=True)] for way, by in found.items()}


def judged(found: Seconds) -> list[Judged]:
    """About linear with the cache, and clearly more without."""
    slopes = exponents(found)
    linear = Statement("linear with the cache", "exponent of seconds over frames", *LINEAR)
    steeper = Statement("steeper without it", "exponent without less exponent with", 0.0, None)
    pairs = zip(slopes["with"], slopes["without"], strict=True)
    differences = effect_over_seeds([without - with_ for with_, without in pairs], of="rounds")
    return [judge(linear, effect_over_seeds(slopes["with"], of="rounds")), judge(steeper, differences)]


def draw(found: Seconds, slopes: dict[str, list[float]]) -> Figure:
    """Median seconds over frames, on logarithmic and on plain axes."""
    figure = figure_of(10, 4)
    panels = figure.subplots(1, 2)
    for axes in panels:
        for way, colour in zip(WAYS, COLOURS, strict=False):
            medians = [statistics.median(values) for values in found[way].values()]
            label = f"{way} cache: frames^{statistics.median(slopes[way]):.2f}"
            axes.plot(list(found[way]), medians, "o-", color=colour, label=label)
        axes.set_xlabel("latent frames")
        axes.set_ylabel("seconds")
    panels[0].set_xscale("log", base=2)
    panels[0].set_yscale("log")
    panels[0].legend(frameon=False)
    figure.suptitle("Seconds to generate a video, median of rounds", fontsize=11)
    return figure


def measure(options: CacheOptions, pipe: MagiPipeline, config: SamplingConfig) -> tuple[float, Seconds]:
    """Parity, then all measurements, round after round."""
    model, device = pipe.model, pipe.model.mask_token.device
    conditions = make_conditions(pipe.config.model, None, None, 1, config.noise_level, options.batch).to(device)

    def once(way: str, frames: int) -> float:
        return timed(lambda: latents(model, config, conditions, frames, way), device)

    compared = min(PARITY_FRAMES, max(options.frames))
    difference = check_parity(model, config, conditions, compared)
    print(f"parity: latents of {compared} frames differ by at most {difference:.2g}", flush=True)
    for way in WAYS:
        once(way, min(options.frames))  # what the first call sets up is not timed
    found: Seconds = {way: {frames: [] for frames in options.frames} for way in WAYS}
    for number in range(options.rounds):
        for frames in options.frames:
            for way in WAYS:
                found[way][frames].append(once(way, frames))
                print(f"round {number + 1}: {frames} frames {way} cache {found[way][frames][-1]:.3f} s", flush=True)
    return difference, found


def study(options: CacheOptions) -> Path:
    """Measure and write the result; ``ValueError`` for options that cannot be."""
    if options.rounds < 2 or options.batch < 1 or len(set(options.frames)) < 2 or min(options.frames) < 2:
        raise ValueError("expected --rounds of 2 or more, --batch of 1 or more, and two numbers of --frames from 2 on")
    check_device(options.device)
    check_writable(options.results)
    pipe = MagiPipeline.from_pretrained(options.model, resolve_device(options.device))
    config = pipe.config.sampling.changed(longer="interpolate", steps=options.steps or pipe.config.sampling.steps)
    difference, found = measure(options, pipe, config)
    parts, slopes = judged(found), exponents(found)
    medians = {way: {frames: statistics.median(values) for frames, values in by.items()} for way, by in found.items()}
    numbers = {"seconds": found, "medians": medians, "exponents": slopes, "parity": difference}
    settings = {
        "model": options.model,
        "clock": "processor time" if pipe.model.mask_token.device.type == "cpu" else "clock",
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "iterations": config.iterations,
        "steps": config.steps,
        "tokens_per_frame": pipe.model.tokens_per_frame,
    }
    notes, scale = ["intervals are over rounds of one model on one machine"], Path(options.model).name
    return write_outcome("kv_cache", options, draw(found, slopes), parts, numbers, settings, notes, scale)


if __name__ == "__main__":
    run_command("kv_cache", CacheOptions, study)
