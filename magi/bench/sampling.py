"""Speed of whole frames with 15 finished frames in the history: batch 1 and 64, cheaper settings, cold, long videos.

Where whole frames take long, a subset of a frame's iterations is timed, the same for all sides. What an iteration costs
depends on how many tokens it predicts and on its denoising steps, not on their values, so the subset is spread evenly
and predicts as many tokens on average as the frame does; what was timed is recorded.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.mar_baseline import MarStyleSampler
from magi.bench.models import guided_conditions, in_format, labelled_conditions, paper_model, small_model
from magi.bench.runner import Work, free_memory, run_each_once
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.temporal.kv_cache import KVCache
from magi.sampling.denoise import draw_noise
from magi.sampling.execution import Execution, choose_execution
from magi.sampling.frame import FramePlan
from magi.sampling.prepared import PreparedSampler

SD_FRAMES, COSMOS_FRAMES = 1, 4
"""Video frames of a latent frame with a 2-D autoencoder and with one that compresses time four times."""
EXACT_LIMIT = {"cpu": 1e-4, "cuda": 1e-3}
"""Of a frame in float32: rounding grows through 40 layers and from iteration to iteration."""
PAPER = SamplingConfig(iterations=64, steps=100, guidance=3.0)
CHEAPER = {
    "64x4": {"steps": 4, "first_timestep": 900, "last_timestep": 80},
    "32x25": {"iterations": 32, "steps": 25},
    "16x10": {"iterations": 16, "steps": 10},
}
"""Iterations x steps below the paper's; four are placed where they count."""
SMOKE = {"iterations": 16, "steps": 2, "first_timestep": 0, "last_timestep": 0}
EVERY = 8
"""Of so many iterations one is timed at batch 64, where a frame of the baseline takes long."""


@dataclass(frozen=True)
class IterationSubset:
    """Some ``iterations`` (rising) of a ``frame``."""

    frame: FramePlan
    iterations: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the iterations of the frame: how many frames one run of the subset counts for."""
        return len(self.iterations) / len(self.frame.counts)

    @cached_property
    def plan(self) -> FramePlan:
        """The subset as the sampler takes it, with the counts and scales that its iterations have."""
        frame = self.frame
        return FramePlan(
            counts=tuple(frame.counts[i] for i in self.iterations),
            scales=tuple(frame.scales[i] for i in self.iterations),
            table=frame.table,
        )

    def order(self, order_BN: Tensor) -> Tensor:
        """The order of a whole frame with the tokens of these iterations first."""
        pieces = order_BN.split(list(self.frame.counts), dim=1)
        others = [i for i in range(len(pieces)) if i not in self.iterations]
        return torch.cat([pieces[i] for i in (*self.iterations, *others)], dim=1)

    def facts(self) -> dict[str, object]:
        """Which iterations, and tokens an iteration of them and of the frame."""
        means = {name: sum(plan.counts) / len(plan.counts) for name, plan in (("", self.plan), ("frame: ", self.frame))}
        tokens = {f"{name}tokens an iteration": mean for name, mean in means.items()}
        return {"iterations": list(self.iterations), "of": len(self.frame.counts)} | tokens


def iteration_subset(plan: FramePlan, every: int) -> IterationSubset:
    """One iteration of every ``every`` (of all, if there are fewer).

    Of each stretch it is the one that brings the tokens so far nearest to the share that they have in the frame; of
    several, the one nearest to the middle of the stretch.
    """
    counts, size = plan.counts, max(1, len(plan.counts) // every)
    chosen: list[int] = []
    tokens = 0
    for number in range(size):
        first, last = number * len(counts) // size, (number + 1) * len(counts) // size
        wanted, middle = sum(counts[:last]) * size / len(counts), (first + last - 1) / 2

        def distance(i: int, wanted: float = wanted - tokens, middle: float = middle) -> tuple[float, float]:
            return abs(counts[i] - wanted), abs(i - middle)

        chosen.append(min(range(first, last), key=distance))
        tokens += counts[chosen[-1]]
    return IterationSubset(plan, tuple(chosen))


def filled_sampler(
    model: Magi,
    config: SamplingConfig,
    batch: int,
    known: int = 15,
    execution: Execution | None = None,
    frames: int = 16,
) -> PreparedSampler:
    """The sampler that a pipeline prepares for ``batch`` videos, with ``known`` random frames in its history."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    conditions = labelled_conditions(model, batch)
    sampler = PreparedSampler(model, config, conditions, generators, frames, execution)
    sampler.begin(config, conditions, generators)
    history = sampler.history
    if known:
        cache = kv_cache(sampler)
        generator = torch.Generator(cache.stored.device).manual_seed(2)
        for layer in cache.stored:  # a layer at a time: the whole may be tens of gigabytes
            layer.normal_(generator=generator)
        cache.rewind(known)
        history.frame_pass.set_time(history.time_T[known])
        history.recent_BTNC = random_frame(sampler.model, batch)
    return sampler


def kv_cache(sampler: PreparedSampler) -> KVCache:
    """The keys and values of its history."""
    assert isinstance(sampler.history.cache, KVCache)
    return sampler.history.cache


def random_frame(model: Magi, batch: int) -> Tensor:
    """tokens_BTNC of one frame."""
    size = (batch, 1, model.tokens_per_frame, model.token_channels)
    return torch.randn(size, device=model.mask_token.device, dtype=model.mask_token.dtype)


def mar_style(ours: PreparedSampler, config: SamplingConfig, model: Magi | None = None) -> MarStyleSampler:
    """The baseline with the same frames in its cache; ``model`` is the same in another number format, if any."""
    model, batch, cache = model or ours.model, len(ours.generators), kv_cache(ours)
    sampler = MarStyleSampler(model, guided_conditions(model, batch), config, batch)
    sampler.cache = [
        (stored[:, :, 0].transpose(1, 2).contiguous(), stored[:, :, 1].transpose(1, 2).contiguous())
        for stored in (layer.to(model.mask_token.dtype) for layer in cache.stored[:, :, : cache.length])
    ]
    return sampler


def compiled_baseline(
    plain: MarStyleSampler, work: Callable[[MarStyleSampler], Work], setting: Setting
) -> tuple[dict[str, Work], dict[str, object]]:
    """What the compiled baseline does, by name, and what is recorded of it: its first seconds, why it is left out.

    A smoke test only traces.
    """
    began = time.perf_counter()
    compiler = "eager" if setting.smoke else "inductor"
    works, failed = run_each_once({"compiled": lambda: work(plain.compiled(compiler))})
    return works, {"left out": failed, "compiled: seconds to the first": time.perf_counter() - began}


def sorted_order(plan: FramePlan, batch: int, tokens: int) -> Tensor:
    """A random order whose tokens of one iteration are in the order of their positions, as a mask picks them."""
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(tokens, generator=generator) for _ in range(batch)]
    return torch.stack([torch.cat([part.sort().values for part in order.split(list(plan.counts))]) for order in orders])


def frame_parities(model: Magi, batch: int, config: SamplingConfig) -> tuple[Parity, ...]:
    """A frame of few iterations with given order and noise: against the baseline in float32, graphs against none."""
    few = config.changed(iterations=min(4, config.iterations), steps=min(10, config.steps))
    exact = in_format(model, torch.float32)
    ours = filled_sampler(exact, few.changed(precision="fp32"), batch)
    order_BN = sorted_order(ours.plan, batch, model.tokens_per_frame)
    plain = mar_style(ours, few)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    expected = plain.frame(order_BN, lambda steps, count, channels: draw_noise(generators, steps, count, channels))
    error, allowed = relative_error(ours.frame(order_BN), expected), EXACT_LIMIT[model.mask_token.device.type]
    found = [Parity("float32 frame", error, allowed)]
    del ours, plain, exact
    if choose_execution(model, few.precision).graphs:
        replayed = filled_sampler(model, few, batch).frame(order_BN)
        eager = without_graphs(model, few, batch).frame(order_BN)
        found.append(Parity("graphs against eager", float((replayed - eager).abs().max()), 0.0))
    return tuple(found)


def without_graphs(model: Magi, config: SamplingConfig, batch: int) -> PreparedSampler:
    """The same code as the graphs hold, rows padded as theirs, one operation at a time."""
    execution = replace(choose_execution(model, config.precision), graphs=False)
    sampler = filled_sampler(model, config, batch, execution=execution)
    sampler.history.padded = sampler.denoiser.padded = True
    return sampler


def shapes_of(ours: PreparedSampler, config: SamplingConfig) -> dict[str, object]:
    """What is recorded of a case."""
    model = ours.model
    return {
        "batch": len(ours.generators),
        "guidance": config.guidance,
        "iterations": config.iterations,
        "steps": config.steps,
        "frames in the history": ours.history.cache.length,
        "tokens": model.tokens_per_frame,
        "width": model.config.width,
        "blocks": model.config.blocks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention to the history": "kernel" if ours.history.frame_pass.kernels else "plain",
        "dtype": str(model.mask_token.dtype),
    }


def paper_settings(setting: Setting, **changes: object) -> SamplingConfig:
    """The paper's settings with ``changes``; those of a smoke test instead where it is one."""
    return PAPER.model_copy(update=SMOKE if setting.smoke else changes)


def frame_case(setting: Setting, batch: int, every: int | None = None) -> PreparedCase:
    """Whole frames, or one iteration of every ``every``, of all sides from the same order."""
    model, config = paper_model(setting), paper_settings(setting)
    videos = 2 if setting.smoke else batch
    # The parity first, while the memory is free: at batch 64 a cache is some fifty gigabytes.
    parities = frame_parities(model, min(videos, 2), config)
    free_memory()
    ours = filled_sampler(model, config, videos)
    plain = mar_style(ours, config)
    order_BN = sorted_order(ours.plan, videos, model.tokens_per_frame)
    subset = iteration_subset(ours.plan, every or EVERY)
    masks = plain.masks_before(order_BN, subset.iterations)

    def a_frame(sampler: MarStyleSampler) -> Work:
        return sampler.frame if every is None else partial(sampler.frame, order_BN, part=masks)

    run = ours.frame if every is None else partial(ours.frame, subset.order(order_BN), subset.plan)
    candidates = [Candidate(OURS, run, warmups=2), Candidate("eager", a_frame(plain))]
    works, facts = compiled_baseline(plain, a_frame, setting)
    candidates += [Candidate(name, work) for name, work in works.items()]
    units = 1.0 if every is None else subset.share

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        rate = videos / seconds[OURS]
        return {"fps SD": rate * SD_FRAMES, "fps Cosmos": rate * COSMOS_FRAMES}

    timed = {"timed": "whole frames" if every is None else subset.facts()}
    shapes = shapes_of(ours, config) | timed | facts
    return PreparedCase(tuple(candidates), lambda: parities, units, metrics, shapes)


def cheaper_case(setting: Setting) -> PreparedCase:
    """Frames of cheaper settings at batch 1; their speed only, whatever it costs in quality."""
    model = paper_model(setting)
    samplers = {name: filled_sampler(model, paper_settings(setting, **changes), 1) for name, changes in CHEAPER.items()}
    return PreparedCase(
        tuple(Candidate(name, ours.frame, warmups=2) for name, ours in samplers.items()),
        check=lambda: (),
        metrics=lambda seconds: {f"fps SD {name}": SD_FRAMES / seconds[name] for name in samplers},
        shapes={"guidance": PAPER.guidance, "frames in the history": 15},
    )


def first_frame_case(setting: Setting) -> PreparedCase:
    """From weights on the device to the first frame: kernels built, graphs recorded."""
    model, config = paper_model(setting), paper_settings(setting)

    def seconds() -> float:
        began = time.perf_counter()
        float(filled_sampler(model, config, 1).frame().sum())
        return time.perf_counter() - began

    cold, again = seconds(), seconds()
    return PreparedCase((), check=lambda: (), metrics=lambda _: {"cold s": cold, "again s": again})


EARLY, LATE = 10, 100
LONG = SamplingConfig(iterations=8, steps=5, guidance=3.0, longer="window", window_keep=8)


class LongVideo:
    """A video without end that can begin anew after any number of random frames."""

    def __init__(self, model: Magi, config: SamplingConfig = LONG) -> None:
        self.ours = filled_sampler(model, config, 1, known=0, frames=LATE + 2 * LONG.window_keep)

    def start(self, frames: int) -> Tensor:
        """Forget everything, then observe ``frames`` random frames one by one; tokens_BTNC of those in view."""
        past, observed = self.ours.history, [random_frame(self.ours.model, 1) for _ in range(frames)]
        past.cache.clear()
        past.recent_BTNC = None
        for tokens_BTNC in observed:
            past.observe(tokens_BTNC)
        return torch.cat(observed[-past.cache.length :], dim=1)

    def advance(self) -> None:
        """Generate and observe as many frames as lie between two slides of the window, so one slide is timed."""
        for _ in range(LONG.window_keep):
            self.ours.observe(self.ours.frame()[:, None])


def late_frame_parity(model: Magi) -> Parity:
    """A late frame against the same made by a sampler that was given the frames in view and nothing before them."""
    exact = in_format(model, torch.float32)
    late, fresh = (LongVideo(exact, LONG.changed(precision="fp32")) for _ in range(2))
    fresh.ours.observe(late.start(LATE))
    allowed = EXACT_LIMIT[model.mask_token.device.type]
    return Parity("float32 frame", relative_error(late.ours.frame(), fresh.ours.frame()), allowed)


def long_video_case(setting: Setting) -> PreparedCase:
    """Eight frames after 100 in a sliding window, against eight after 10: whether a frame costs the same for ever."""
    on_gpu = setting.device.type == "cuda"
    model = paper_model(setting) if on_gpu else small_model("smoke" if setting.smoke else "tiny", setting.device)
    video = LongVideo(model)
    advance = video.advance

    def side(name: str, frames: int) -> Candidate:
        return Candidate(name, advance, before=partial(video.start, frames))

    return PreparedCase(
        (side(OURS, LATE), side("early", EARLY)),
        check=lambda: (late_frame_parity(model),),
        units=LONG.window_keep,
        metrics=lambda seconds: {"late over early": seconds[OURS] / seconds["early"]},
        shapes=shapes_of(video.ours, LONG) | {"frames before": {OURS: LATE, "early": EARLY}},
    )
