"""Speed of whole frames, with 15 finished frames in the cache."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.frame_part import FramePart, frame_part
from magi.bench.mar_baseline import GrownCache, MarStyleSampler
from magi.bench.models import in_format, paper_model, told
from magi.bench.runner import Work, free_memory, those_that_run
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.presets import SPEEDS, at_speed
from magi.sampling.cuda_graphs import Replayed
from magi.sampling.denoise import Denoiser, draw_noise
from magi.sampling.fast_path import FastPath
from magi.sampling.generate import FramePlan, generate_frame, plan_frame
from magi.sampling.history import History

SD_FRAMES, COSMOS_FRAMES = 1, 4
"""Video frames of a latent frame with a 2-D autoencoder and with one that compresses time four times."""
EXACT_LIMIT = {"cpu": 1e-4, "cuda": 1e-3}
"""Of a frame in float32: rounding grows through 40 layers and from iteration to iteration."""
PAPER = SamplingConfig(iterations=64, steps=100, guidance=3.0)
SMOKE = {"iterations": 16, "steps": 2, "last_steps": 0}
BATCH_PART, PRESET_PART = 8, 4
"""Of so many iterations one is timed: where a frame of the baseline takes long, and of the named speeds, of which the
fastest has 16. ``frame_part`` says what that stands for."""


@dataclass(frozen=True)
class Ours:
    """Our sampler over ``batch`` videos with a cache filled at random; ``frame`` makes the next frame."""

    model: Magi
    batch: int
    plan: FramePlan
    past: History
    denoiser: Denoiser
    generators: list[torch.Generator]

    @property
    def graphs(self) -> tuple[Replayed, ...]:
        """What is replayed as CUDA graphs; nothing on a CPU."""
        parts = (self.past.graphs, self.past.observation_graphs, self.denoiser.graph)
        return tuple(part for part in parts if part is not None)

    def frame(self, order_BN: Tensor | None = None) -> Tensor:
        """tokens_BNC of the frame after those in the cache."""
        return generate_frame(self.model, self.past, self.generators, self.plan, self.denoiser, order_BN)

    def part(self, part: FramePart, order_BN: Tensor) -> Tensor:
        """The same with only these iterations of a frame in this order; others stay masked, which costs the same."""
        order_BN = part.order(order_BN)
        return generate_frame(self.model, self.past, self.generators, part.plan, self.denoiser, order_BN)


class GraphCount:
    """How many calls since the last ``mark`` replayed a graph that was there already; marked before every frame."""

    def __init__(self, graphs: Sequence[Replayed]) -> None:
        self.graphs = graphs
        self.mark()

    def mark(self) -> None:
        """Count from here on."""
        self._then = self._now()

    def metrics(self, units: float = 1.0) -> dict[str, float]:
        """Graphs in all; replays a unit since the mark, and the share of them that recorded nothing."""
        if not self.graphs:
            return {}
        recorded, replayed = (now - then for now, then in zip(self._now(), self._then, strict=True))
        hits = 1 - recorded / max(1, replayed)
        return {"graphs": self._now()[0], "graph replays": replayed / units, "graph hit rate": hits}

    def _now(self) -> tuple[int, int]:
        return sum(graph.recordings for graph in self.graphs), sum(graph.replays for graph in self.graphs)


def make_ours(
    model: Magi, config: SamplingConfig, batch: int, known: int = 15, path: FastPath | None = None, frames: int = 16
) -> Ours:
    """A sampler with ``known`` frames in its cache."""
    path = path or FastPath.of(model)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    past = path.past(model, told(model, batch), generators, frames, config)
    generator = torch.Generator(past.cache.stored.device).manual_seed(2)
    if known:
        for layer in past.cache.stored:  # a layer at a time: the whole may be tens of gigabytes
            layer.normal_(generator=generator)
        past.cache.rewind(known)
        past.frame_pass.place(past.time_T[known])
        past.recent_BTNC = random_frame(model, batch)
    return Ours(model, batch, plan_frame(model, config), past, path.denoiser(model, config), generators)


def random_frame(model: Magi, batch: int) -> Tensor:
    """tokens_BTNC of one frame."""
    size = (batch, 1, model.tokens_per_frame, model.token_channels)
    return torch.randn(size, device=model.mask_token.device, dtype=model.mask_token.dtype)


def make_plain(ours: Ours, config: SamplingConfig) -> MarStyleSampler:
    """The baseline with the same frames in its cache."""
    sampler = MarStyleSampler(ours.model, told(ours.model, ours.batch), config, ours.batch)
    cache = ours.past.cache
    sampler.cache = GrownCache(
        [
            (stored[:, :, 0].transpose(1, 2).contiguous(), stored[:, :, 1].transpose(1, 2).contiguous())
            for stored in cache.stored[:, :, : cache.length]
        ]
    )
    return sampler


def compiled_side(
    plain: MarStyleSampler, work: Callable[[MarStyleSampler], Work], setting: Setting
) -> tuple[dict[str, Work], dict[str, object]]:
    """What the compiled baseline does, by name, and what is recorded of it: its first seconds, why it is left out.

    A smoke test only traces.
    """
    began = time.perf_counter()
    compiler = "eager" if setting.smoke else "inductor"
    works, failed = those_that_run({"compiled": lambda: work(plain.compiled(compiler))})
    return works, {"left out": failed, "compiled: seconds to the first": time.perf_counter() - began}


def sorted_order(plan: FramePlan, batch: int, tokens: int) -> Tensor:
    """A random order whose tokens of one iteration are in the order of their positions, as a mask picks them."""
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(tokens, generator=generator) for _ in range(batch)]
    return torch.stack([torch.cat([part.sort().values for part in order.split(list(plan.counts))]) for order in orders])


def frame_parities(model: Magi, batch: int, config: SamplingConfig) -> tuple[Parity, ...]:
    """A frame of few iterations with given order and noise: against the baseline in float32, graphs against none."""
    few = config.model_copy(update={"iterations": min(4, config.iterations), "steps": min(10, config.steps)})
    exact = in_format(model, torch.float32)
    ours = make_ours(exact, few, batch)
    order_BN = sorted_order(ours.plan, batch, model.tokens_per_frame)
    plain = make_plain(ours, few)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    expected = plain.frame(order_BN, lambda steps, count, channels: draw_noise(generators, steps, count, channels))
    found = [
        Parity(
            "float32 frame", relative_error(ours.frame(order_BN), expected), EXACT_LIMIT[model.mask_token.device.type]
        )
    ]
    del ours, plain, exact
    path = FastPath.of(model)
    if path.graphs:
        replayed = make_ours(model, few, batch).frame(order_BN)
        eager = _without_graphs(model, few, batch, path).frame(order_BN)
        found.append(Parity("graphs against eager", float((replayed - eager).abs().max()), 0.0))
    return tuple(found)


def _without_graphs(model: Magi, config: SamplingConfig, batch: int, path: FastPath) -> Ours:
    """The same code as the graphs hold, rows padded as theirs, one operation at a time."""
    ours = make_ours(model, config, batch, path=FastPath(graphs=False, kernels=path.kernels))
    ours.past.padded = True
    ours.denoiser.padded = True
    return ours


def shapes_of(ours: Ours, config: SamplingConfig) -> dict[str, object]:
    model = ours.model
    return {
        "batch": ours.batch,
        "guidance": config.guidance,
        "iterations": config.iterations,
        "steps": config.steps,
        "frames in the cache": ours.past.cache.length,
        "tokens": model.tokens_per_frame,
        "positions": model.positions,
        "width": model.config.width,
        "blocks": model.config.blocks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention to the cache": "kernel" if ours.past.frame_pass.kernels else "plain",
        "dtype": str(model.mask_token.dtype),
    }


def _sample(batch: int, every: int | None = None) -> Callable[[Setting], Trial]:
    """Whole frames, or one iteration of every ``every``, of all sides from the same order."""

    @torch.inference_mode()
    def prepare(setting: Setting) -> Trial:
        model = paper_model(setting)
        videos = 2 if setting.smoke else batch
        config = PAPER.model_copy(update=SMOKE) if setting.smoke else PAPER
        # The parity first, while the memory is free: at batch 64 a cache is some fifty gigabytes.
        parities = frame_parities(model, min(videos, 2), config)
        free_memory()
        ours = make_ours(model, config, videos)
        plain = make_plain(ours, config)
        count = GraphCount(ours.graphs)
        order_BN = sorted_order(ours.plan, videos, model.tokens_per_frame)
        part = frame_part(ours.plan, every or BATCH_PART)
        masks = plain.masks_before(order_BN, part.iterations)

        def a_frame(sampler: MarStyleSampler, whole: bool = every is None) -> Work:
            return torch.inference_mode()(sampler.frame if whole else partial(sampler.frame, order_BN, part=masks))

        run = ours.frame if every is None else partial(ours.part, part, order_BN)
        contenders = [Contender(OURS, torch.inference_mode()(run), warmups=2, before=count.mark)]
        contenders.append(Contender("eager", a_frame(plain), warm=a_frame(plain, whole=False)))
        works, facts = compiled_side(plain, a_frame, setting)
        contenders += [Contender(name, work) for name, work in works.items()]
        units = 1.0 if every is None else part.share

        def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
            rate = videos / seconds[OURS]
            speeds = {"latent frames a second": rate, "fps SD": rate * SD_FRAMES, "fps Cosmos": rate * COSMOS_FRAMES}
            return speeds | count.metrics(units)

        timed = {"timed": "whole frames" if every is None else part.facts(videos)}
        return Trial(
            tuple(contenders),
            check=lambda: parities,
            units=units,
            metrics=metrics,
            shapes=shapes_of(ours, config) | timed | facts,
            close=torch.compiler.reset,
        )

    return prepare


@torch.inference_mode()
def _presets(setting: Setting) -> Trial:
    """Parts of frames of cheaper settings, batch 1 and 8; speed only, their quality is among the evaluation's."""
    model = paper_model(setting)
    contenders, rates, timed = [], {}, {}
    for batch in (1, 8):
        for name in SPEEDS:
            config = at_speed(PAPER, name)
            if setting.smoke:
                config = config.model_copy(update=SMOKE)
            ours = make_ours(model, config, batch)
            part = frame_part(ours.plan, PRESET_PART)
            order_BN = sorted_order(ours.plan, batch, model.tokens_per_frame)
            label = f"{name} b{batch}"
            assert part.share == 1 / PRESET_PART, name
            rates[label], timed[label] = batch, part.facts(batch)
            run = torch.inference_mode()(partial(ours.part, part, order_BN))
            contenders.append(Contender(label, run, warmups=2))
    return Trial(
        tuple(contenders),
        check=lambda: (),
        units=1 / PRESET_PART,
        metrics=lambda seconds: {f"fps SD {name}": batch / seconds[name] for name, batch in rates.items()},
        shapes={"guidance": PAPER.guidance, "frames in the cache": 15, "quality": "speed only", "timed": timed},
    )


@torch.inference_mode()
def _first_frame(setting: Setting) -> Trial:
    """From weights on the device to the first frame: kernels built, graphs recorded."""
    model = paper_model(setting)
    config = PAPER.model_copy(update=SMOKE) if setting.smoke else PAPER
    began = time.perf_counter()
    ours = make_ours(model, config, 1)
    float(ours.frame().sum())
    first = time.perf_counter() - began
    began = time.perf_counter()
    again = make_ours(model, config, 1)
    float(again.frame().sum())
    second = time.perf_counter() - began
    return Trial(
        (),
        check=lambda: (),
        metrics=lambda seconds: {"cold s": first, "again s": second},
        shapes=shapes_of(ours, config),
    )


CASES = (
    Case(
        "compile.time",
        "cuda",
        "weights on the device to the first frame, cold",
        "frame",
        _first_frame,
        (Goal("cold s", 120, 60, smaller=True),),
        minutes=0.1,
    ),
    Case(
        "sample.b1",
        "cuda",
        "a latent frame, 64 x 100, guidance, 15 past frames",
        "frame",
        _sample(1),
        (Goal("x eager", 12, 20), Goal("x compiled", 2.2, 4), Goal("seconds", 0.34, 0.20, smaller=True)),
        minutes=1.3,
    ),
    Case(
        "sample.b8",
        "cuda",
        "a latent frame, 64 x 100, of 8 videos at once; one iteration in 8 timed, figures are of the whole",
        "batch",
        _sample(8, BATCH_PART),
        (Goal("x eager", 4, 4.9),),
        minutes=0.5,
    ),
    Case(
        "sample.b64",
        "cuda",
        "a latent frame, 64 x 100, of 64 videos at once; one iteration in 8 timed, figures are of the whole",
        "batch",
        _sample(64, BATCH_PART),
        (Goal("x eager", 1.6, 2.0),),
        minutes=0.85,
    ),
    Case(
        "sample.presets",
        "cuda",
        "a latent frame at each named speed (speed only); one iteration in 4 timed, figures are of the whole",
        "frame",
        _presets,
        (Goal("fps SD faster b1", 12, 22), Goal("fps SD fastest b1", 20, 27)),
        minutes=0.3,
    ),
)
