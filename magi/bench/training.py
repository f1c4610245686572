"""Speed of a training step of the paper's model: its useful FLOPs, what the naive form costs, and where the rest goes.

16 latent frames of 32 x 32 (256 tokens), bfloat16 products, dropout as configured, forward, backward, gradient norm,
AdamW and average. Contenders that need more memory take the same clips in more passes; the passes of each are recorded.
Useful FLOPs are those of the pruned step (``magi.model.flops``), whoever takes it.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from magi.bench.attention import packed_flex
from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.runner import free_memory, reason_of
from magi.bench.training_parts import PARTS
from magi.bench.training_setup import (
    PEAK_TFLOPS,
    Clips,
    Compilation,
    Loss,
    Stepper,
    build_model,
    draw_clips,
    largest_that_fits,
    naive_loss,
    our_loss,
    setup,
    split_clips,
)
from magi.config import Config, LatentShape
from magi.model.flops import clip_flops
from magi.model.slot_attention import SlotAttention, dense_slot_attention
from magi.model.teacher_forcing import SlotPattern

CLIPS = 8
SIZES = (4, 2, 1)
"""Clips of a pass, the first that fits. Six take 107 of the 139 GiB of an H200 (results/measured_steps.jsonl), so eight
do not fit, and to find that out anew would cost a compilation; at four all contenders take equal passes."""


def useful_flops(config: Config, latent: LatentShape, clips: Clips) -> float:
    """Of one step over these clips."""
    count = len(clips.tokens_BTNC)
    one = clip_flops(config.model, latent, clips.masked / count, config.training.diffusion_batch_mul)
    return one.total * count


class _Bench:
    """A model on a device, made for one case, and what takes a step of it."""

    def __init__(self, setting: Setting, micro: int = CLIPS, compiled: bool = True) -> None:
        self.device, self.smoke = setting.device, setting.smoke
        self.count = 2 if setting.smoke else micro
        self.config, self.latent = setup(setting.smoke)
        self.model = build_model(self.config, self.latent, self.device)
        self.compilation = Compilation(self.model, compiled and self.device.type == "cuda")
        self.stepper = Stepper(self.model, self.config)
        self.clips = draw_clips(self.config, self.model, self.count, self.device)
        self.passes: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def contender(self, name: str, loss: Loss) -> Contender:
        """A whole step over the clips, in passes that fit."""

        def make(size: int) -> Callable[[], Tensor]:
            parts = split_clips(self.clips, size)
            return lambda: self.stepper.take(loss, parts)

        size, work = largest_that_fits(make, tuple(size for size in SIZES if size <= self.count))
        self.passes[name] = -(-self.count // size)
        return Contender(name, work, warmups=1)

    def try_contender(self, name: str, loss: Loss) -> tuple[Contender, ...]:
        """The same for a baseline, which is left out, with the reason, where it does not run."""
        try:
            return (self.contender(name, loss),)
        except Exception as error:
            self.failed[name] = reason_of(error)
        self.stepper.optimizer.zero_grad(set_to_none=True)
        free_memory()
        return ()

    def eagerly(self, loss: Loss, path: SlotAttention | None = None) -> Loss:
        """The same loss without compilation, its backward included, since that runs what forward recorded."""

        def run(*inputs: object) -> Tensor:
            with self.compilation.eager(path):
                return loss(*inputs)  # type: ignore[arg-type]

        return run

    def peak_gb(self) -> float:
        """Most memory of tensors since the last call."""
        if self.device.type != "cuda":
            return float("nan")
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak

    def shapes(self) -> dict[str, object]:
        return {
            "clips": self.count,
            "parameters": sum(value.numel() for value in self.model.parameters()),
            "masked tokens": self.clips.masked,
            "passes": self.passes,
            "left out": self.failed,
        }

    def close(self) -> None:
        """Drop everything on the device."""
        self.__dict__.clear()
        free_memory()


def flex_path(positions: int, device: torch.device) -> SlotAttention:
    """Packed FlexAttention in place of ours; the last layer, which reads few queries, takes the dense mask."""
    packed: dict[int, SlotAttention] = {}

    def attend(query: Tensor | None, projected: Tensor, pattern: SlotPattern, heads: int) -> Tensor:
        if query is not None:
            return dense_slot_attention(query, projected, pattern, heads)
        if pattern.slots not in packed:
            packed[pattern.slots] = packed_flex(pattern, positions, device)
        return packed[pattern.slots](query, projected, pattern, heads)

    return attend


def host_waits(work: Callable[[], object]) -> int:
    """How often the host waits for the device in a piece of work, by PyTorch's own detection."""
    import warnings

    if not torch.cuda.is_available():
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def _loss_parities(bench: _Bench) -> tuple[Parity, ...]:
    """Pruned against naive without dropout; compiled against eager with it, a mean over thousands of tokens."""
    one = split_clips(bench.clips, 1)[0]
    ours = our_loss(bench.model, bench.config, bench.device)
    naive = naive_loss(bench.model, bench.config, bench.device)

    def value(loss: Loss, clips: Clips) -> Tensor:
        with torch.no_grad():
            return loss(clips.tokens_BTNC, clips.batch, clips.masked)

    bench.model.eval()
    pruned = relative_error(value(bench.eagerly(ours), one), value(bench.eagerly(naive), one))
    bench.model.train()
    found = [Parity("loss against the naive form", pruned, 2e-3)]
    fitting = split_clips(bench.clips, -(-bench.count // bench.passes[OURS]))[0]
    if bench.device.type == "cuda":
        # With gradients on, as it was compiled; without them it would be compiled once more.
        compiled = ours(fitting.tokens_BTNC, fitting.batch, fitting.masked).detach()
        difference = relative_error(compiled, value(bench.eagerly(ours), fitting))
        found.append(Parity("compiled loss against eager, other dropout", difference, 2e-2))
    return tuple(found)


def ctf_trial(setting: Setting) -> Trial:
    """A step as trained, against the naive step, FlexAttention, and ours without compilation."""
    bench = _Bench(setting)
    ours = our_loss(bench.model, bench.config, bench.device)
    naive = naive_loss(bench.model, bench.config, bench.device)
    bench.peak_gb()
    contenders = [bench.contender(OURS, ours)]
    memory = bench.peak_gb()
    waits = host_waits(contenders[0].run)
    contenders += bench.try_contender("eager dense mask", bench.eagerly(naive))
    contenders += bench.try_contender("eager, ours", bench.eagerly(ours))
    if setting.device.type == "cuda":
        flex = bench.eagerly(ours, flex_path(bench.model.positions, setting.device))
        contenders += bench.try_contender("eager, Flex", flex)
    flops = useful_flops(bench.config, bench.latent, bench.clips)
    count = bench.count

    def check() -> tuple[Parity, ...]:
        return (*_loss_parities(bench), Parity("waits of the host in a step", waits, 0))

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        achieved = flops / count / seconds[OURS] / 1e12
        return {
            "clips/s": 1 / seconds[OURS],
            "useful TFLOP/s": achieved,
            "MFU": achieved / PEAK_TFLOPS,
            "peak GB": memory,
            "TFLOP a clip": flops / count / 1e12,
        }

    return Trial(tuple(contenders), check, float(count), metrics, bench.shapes(), bench.close)


def ratio_trial(setting: Setting) -> Trial:
    """Complete against masked teacher forcing on the same code, and four masks a clip, for as many masked clips."""
    bench = _Bench(setting)
    device = bench.device
    masked_config = bench.config.model_copy(
        update={"model": bench.config.model.model_copy(update={"teacher_forcing": "masked"})}
    )
    ours = our_loss(bench.model, bench.config, device)
    contenders = [bench.contender(OURS, ours)]
    contenders.append(bench.contender("MTF", our_loss(bench.model, masked_config, device)))
    views = 2 if setting.smoke else 4
    several, _ = setup(setting.smoke, masks_per_clip=views)
    shared = draw_clips(several, bench.model, max(1, bench.count // views), device)

    def make(size: int) -> Callable[[], Tensor]:
        parts = split_clips(shared, size)
        return lambda: bench.stepper.take(ours, parts)

    name = f"{views} masks a clip"
    try:
        _, work = largest_that_fits(make, (2, 1))
        contenders.append(Contender(name, work))
    except Exception as error:
        bench.failed[name] = reason_of(error)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        found = {"CTF over MTF": seconds[OURS] / seconds["MTF"]}
        if name in seconds:
            found[f"{name} over MTF"] = seconds[name] / seconds["MTF"]
        return found

    check = partial(_loss_parities, bench)
    return Trial(tuple(contenders), check, float(bench.count), metrics, bench.shapes(), bench.close)


def prune_trial(setting: Setting) -> Trial:
    """The pruned step against all 2T slots on the same path, both eager, forward and backward."""
    bench = _Bench(setting, micro=4, compiled=False)
    losses = {OURS: our_loss(bench.model, bench.config, bench.device)}
    losses["all 2T slots"] = naive_loss(bench.model, bench.config, bench.device, dense=False, gather=True)

    def gradients(loss: Loss, clips: Clips) -> list[Tensor]:
        value = loss(clips.tokens_BTNC, clips.batch, clips.masked)
        return list(torch.autograd.grad(value, list(bench.model.parameters())))

    def check() -> Parity:
        # In float32 and on the reference path: what is left is the pruning.
        bench.model.eval()
        one = split_clips(bench.clips, 1)[0]
        exact = (
            our_loss(bench.model, bench.config, bench.device, low=False),
            naive_loss(bench.model, bench.config, bench.device, dense=False, gather=True, low=False),
        )
        with bench.compilation.eager(dense_slot_attention):
            pruned, naive = (gradients(loss, one) for loss in exact)
        bench.model.train()
        worst = max(relative_error(a, b) for a, b in zip(pruned, naive, strict=True))
        return Parity("largest relative difference of a float32 gradient", worst, 1e-3)

    works = tuple(Contender(name, partial(gradients, loss, bench.clips)) for name, loss in losses.items())
    return Trial(works, check, float(bench.count), shapes=bench.shapes(), close=bench.close)


def share_trial(setting: Setting) -> Trial:
    """The products of matrices of a step alone, at the same shapes, against the whole compiled step."""
    bench = _Bench(setting)
    ours = our_loss(bench.model, bench.config, bench.device)
    contenders = [bench.contender(OURS, ours)]
    passes = bench.passes[OURS]
    products = _products(bench, bench.count // passes)
    contenders.append(Contender("products alone", lambda: [one() for _ in range(passes) for one in products]))
    flops = useful_flops(bench.config, bench.latent, bench.clips) / bench.count

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        alone = seconds["products alone"]
        return {"share": alone / seconds[OURS], "TFLOP/s of the products": flops / alone / 1e12}

    check = partial(_loss_parities, bench)
    return Trial(tuple(contenders), check, float(bench.count), metrics, bench.shapes(), bench.close)


def _products(bench: _Bench, clips: int) -> list[Callable[[], object]]:
    """Every linear layer of the blocks and of the head, once forward and twice backward."""
    config, frames = bench.config.model, bench.latent.frames
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    places = clips * (2 * frames - 1) * bench.model.positions
    rows = bench.clips.masked * clips // bench.count * bench.config.training.diffusion_batch_mul
    head = config.head_width
    layers = [(places, width, 3 * width), (places, width, width), (places, width, hidden), (places, hidden, width)]
    shapes = layers * (2 * config.blocks) + [(rows, head, head)] * (2 * config.head_blocks + 1)
    shapes.append((rows, head, (3 * config.head_blocks + 2) * head))
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    made: dict[tuple[int, int], Tensor] = {}

    def matrix(*size: int) -> Tensor:
        if size not in made:
            made[size] = torch.randn(size, device=bench.device, dtype=dtype)  # type: ignore[index]
        return made[size]  # type: ignore[index]

    def product(count: int, inputs: int, outputs: int) -> Callable[[], object]:
        x, weight, gradient = matrix(count, inputs), matrix(outputs, inputs), matrix(count, outputs)
        return lambda: (x @ weight.t(), gradient @ weight, gradient.t() @ x)

    return [product(*shape) for shape in shapes]


CASES = (
    Case(
        "train.ctf",
        "cuda",
        "a step of complete teacher forcing, 850 M parameters, 8 clips",
        "clip",
        ctf_trial,
        (Goal("MFU", 0.48, 0.55), Goal("x eager dense mask", 1.15, 1.3)),
        1.2,
    ),
    Case(
        "train.ctf_vs_mtf",
        "cuda",
        "the same step against masked teacher forcing, and with 4 masks a clip",
        "clip",
        ratio_trial,
        (Goal("CTF over MTF", 1.92, 1.87, smaller=True), Goal("4 masks a clip over MTF", 1.25, 1.23, smaller=True)),
        0.9,
    ),
    Case(
        "train.prune",
        "cuda",
        "forward and backward without dead slots, against all 2T slots",
        "clip",
        prune_trial,
        (Goal("x all 2T slots", 1.03, 1.04),),
        0.15,
    ),
    Case(
        "train.gemm_share",
        "cuda",
        "share of a step that its matrix products take alone",
        "clip",
        share_trial,
        (Goal("share", 0.75, 0.83),),
        0.3,
    ),
    *PARTS,
)
