"""Speed of a training step of the paper's model, complete and masked teacher forcing, and of its update alone.

16 latent frames of 32 x 32 (256 tokens), bfloat16 products, dropout as configured: forward, backward, gradient norm,
AdamW and average. Useful FLOPs are those of the pruned step (``magi.model.flops``), whichever candidate takes it. The
naive baseline is complete teacher forcing as first written down: all T observation frames and T masked frames under a
dense mask, and the head on all tokens with the loss masked afterwards, as MAR does (arXiv 2406.11838).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.models import random_model
from magi.bench.runner import Work, free_memory, run_each_once
from magi.config import Config, DataConfig, LatentShape, ModelConfig
from magi.latents.dataset import LatentClip
from magi.model.flops import clip_flops
from magi.model.magi import Magi
from magi.model.noise_injection import inject_noise
from magi.model.teacher_forcing import ForcedSequence, SlotPattern
from magi.training.batch import Batch, make_batch
from magi.training.corruption import TokenShape, draw_corruption
from magi.training.ema import Ema
from magi.training.loss import MagiLoss
from magi.training.optimizer import decayed_parameters, make_optimizer

PEAK_TFLOPS = 989.5
"""Dense bfloat16 products of an H200 by its data sheet; the share of it is the model FLOPs utilisation."""
CLIPS = 8
SIZES = (4, 2, 1)
"""Clips of a micro-batch, the first that fits. Six take 107 of the 139 GiB of an H200 (results/measured_steps.jsonl),
so eight do not fit, and to try would cost a compilation; at four all candidates take equal passes."""

Loss = Callable[[Tensor, Batch, int], Tensor]
"""(tokens_BTNC, batch, masked tokens of the step) -> the scalar to be minimised."""


def setup(smoke: bool) -> tuple[Config, LatentShape]:
    """The paper's model on 16 latent frames of 32 x 32 (Stable Diffusion's autoencoder), or a tiny one."""
    if not smoke:
        return Config(), LatentShape(frames=16, channels=4, height=32, width=32)
    shape: dict[str, int] = {"width": 16, "blocks": 2, "heads": 2, "head_width": 16, "head_blocks": 1, "frames": 3}
    model = ModelConfig(**shape, diffusion_steps=100)
    return Config(data=DataConfig(frames=3), model=model), LatentShape(frames=3, channels=2, height=4, width=4)


@dataclass(frozen=True)
class RandomClips:
    """A batch of random clips on a device, corrupted as in training."""

    batch: Batch
    tokens_BTNC: Tensor

    @property
    def masked(self) -> int:
        """Masked tokens, over all masked views."""
        return len(self.batch.picked_M)


def draw_clips(config: Config, model: Magi, clips: int, device: torch.device, first: int = 0) -> RandomClips:
    """``clips`` random clips, corrupted as samples ``first``.. of a run; a clip depends on its number alone."""
    latent, samples = model.latent, range(first, first + clips)
    shape = TokenShape(latent.frames, model.tokens_per_frame, model.token_channels)
    size = (latent.frames, latent.channels, latent.height, latent.width)
    random = [np.random.default_rng(sample).standard_normal(size, np.float32) for sample in samples]
    drawn = [LatentClip(latents, 1, None, sample) for sample, latents in zip(samples, random, strict=True)]
    corruptions = [draw_corruption(config.training, config.model, shape, sample) for sample in samples]
    batch = make_batch(drawn, corruptions, config.model).to(device)
    assert batch.latents_BTCHW is not None
    return RandomClips(batch, model.patchify(batch.latents_BTCHW))


def micro_batches(config: Config, model: Magi, clips: int, size: int, device: torch.device) -> list[RandomClips]:
    """The first ``clips`` clips in micro-batches of at most ``size``."""
    return [draw_clips(config, model, min(size, clips - first), device, first) for first in range(0, clips, size)]


def training_loss(model: Magi, config: Config, device: torch.device) -> Loss:
    """The loss of training; on a GPU the model's products are in bfloat16."""
    measured = MagiLoss(config.model, device)

    def forward(*inputs: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return model(*inputs)

    def loss(tokens_BTNC: Tensor, batch: Batch, total: int) -> Tensor:
        parts = measured(forward, tokens_BTNC, batch, total)
        return parts.mse + parts.vlb

    return loss


def naive_sequence(tokens_BTNC: Tensor, masked_BTN: Tensor) -> ForcedSequence:
    """All T observation frames, then the T masked ones, under a dense mask."""
    frames = tokens_BTNC.shape[1]
    time_T = torch.arange(frames, device=tokens_BTNC.device)
    return ForcedSequence(
        tokens_BSNC=torch.cat([tokens_BTNC, tokens_BTNC], dim=1),
        masked_BSN=torch.cat([torch.zeros_like(masked_BTN), masked_BTN], dim=1),
        observations=frames,
        time_S=torch.cat([time_T, time_T]),
        attend=SlotPattern(causal=frames, frames=frames, views=1).mask_SS(tokens_BTNC.device),
    )


def naive_loss(model: Magi, config: Config, device: torch.device) -> Loss:
    """The same loss with nothing pruned."""
    objective = MagiLoss(config.model, device).objective

    def loss(tokens_BTNC: Tensor, batch: Batch, total: int) -> Tensor:
        sequence = naive_sequence(tokens_BTNC, batch.masked_BUN)
        sequence = inject_noise(sequence, batch.noise_BTNC, batch.amplitude_B)
        count = sequence.observations
        timestep, noise = batch.timestep_RBUN.flatten(1), batch.diffusion_noise_RBUNC.flatten(1, 3)
        clean, weight = tokens_BTNC.flatten(0, 2).expand_as(noise), batch.masked_BUN.flatten().float()
        noisy = objective.corrupt(clean, noise, timestep)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            is_observation_S = torch.arange(2 * count, device=device) < count
            x_BSPD = model._embed(
                sequence.tokens_BSNC, sequence.masked_BSN, is_observation_S, sequence.time_S, batch.conditions
            )
            z_ND = model._condition(model.transformer(x_BSPD, sequence.attend)[:, count:]).flatten(0, 2)
            prediction = model.head(noisy, timestep, z_ND).to(noise.dtype)
        parts = objective.loss(prediction, clean, noisy, noise, timestep)
        return ((parts.mse + parts.vlb) * weight).sum() / (total * len(timestep))

    return loss


def compile_parts(model: Magi) -> None:
    """Compile blocks and head, as ``training.compile`` does; ``eagerly`` turns it off for a loss."""
    # Each number of slots is compiled for itself; beyond the limit PyTorch would silently go on uncompiled.
    torch._dynamo.config.recompile_limit = 64
    for block in model.transformer.blocks:
        block.compile(dynamic=False)
    model.head.compile(dynamic=True)


def eagerly(loss: Loss) -> Loss:
    """The same loss without compilation, its backward included, since that runs what forward recorded."""

    def run(tokens_BTNC: Tensor, batch: Batch, total: int) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return loss(tokens_BTNC, batch, total)

    return run


def largest_that_fits(make: Callable[[int], Work], sizes: tuple[int, ...]) -> tuple[int, Work]:
    """The first micro-batch of ``sizes`` whose work runs once without running out of memory, and the work."""
    for size in sizes:
        try:
            work = make(size)
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return size, work
        except torch.OutOfMemoryError:
            if size == sizes[-1]:
                raise
        free_memory()
    raise ValueError("no micro-batch given")


class TrainingBench:
    """A model on a device with its optimizer and average, and whole steps of it under several losses."""

    def __init__(self, setting: Setting) -> None:
        self.device, self.clips = setting.device, 2 if setting.smoke else CLIPS
        self.config, self.latent = setup(setting.smoke)
        self.model = random_model(self.config.model, self.latent, self.device).train()
        if self.device.type == "cuda":
            compile_parts(self.model)
        self.optimizer = make_optimizer(self.model, self.config.training)
        self.ema = Ema(self.model, self.config.training.ema_decay)
        self.micro_batch: dict[str, int] = {}

    def step(self, loss: Loss, parts: list[RandomClips]) -> None:
        """Forward and backward of each micro-batch, then one update; the host does not wait."""
        total = sum(part.masked for part in parts)
        for part in parts:
            loss(part.tokens_BTNC, part.batch, total).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.gradient_clip, foreach=True)
        self.optimizer.step()
        self.ema.update(self.model, 100)
        self.optimizer.zero_grad(set_to_none=True)

    def work(self, name: str, loss: Loss) -> Work:
        """A whole step over the clips, in the largest micro-batches that fit."""

        def make(size: int) -> Work:
            self.optimizer.zero_grad(set_to_none=True)  # of an attempt that failed
            parts = micro_batches(self.config, self.model, self.clips, size, self.device)
            return lambda: self.step(loss, parts)

        sizes = tuple(size for size in SIZES if size <= self.clips)
        self.micro_batch[name], work = largest_that_fits(make, sizes)
        return work

    def parities(self, ours: Loss, naive: Loss) -> tuple[Parity, ...]:
        """The pruned loss against the naive one without dropout; compiled against eager with it."""

        def value(loss: Loss, clips: RandomClips) -> Tensor:
            return loss(clips.tokens_BTNC, clips.batch, clips.masked).detach()

        one = draw_clips(self.config, self.model, 1, self.device)
        self.model.eval()
        with torch.no_grad():
            difference = relative_error(value(eagerly(ours), one), value(eagerly(naive), one))
        self.model.train()
        found = [Parity("loss against the naive form", difference, 2e-3)]
        if self.device.type == "cuda":
            fitting = draw_clips(self.config, self.model, self.micro_batch[OURS], self.device)
            compiled = value(ours, fitting)  # with gradients on, as it was compiled
            with torch.no_grad():
                difference = relative_error(compiled, value(eagerly(ours), fitting))
            found.append(Parity("compiled loss against eager, other dropout", difference, 2e-2))
        return tuple(found)

    @cached_property
    def masked(self) -> int:
        """Masked tokens of a step."""
        return sum(part.masked for part in micro_batches(self.config, self.model, self.clips, 1, self.device))

    def utilisation(self, seconds: float, teacher_forcing: str = "complete") -> dict[str, float]:
        """Useful FLOPs a second of ``seconds`` a clip, and the share of the peak (MFU)."""
        model = self.config.model.model_copy(update={"teacher_forcing": teacher_forcing})
        repeats = self.config.training.diffusion_batch_mul
        achieved = clip_flops(model, self.latent, self.masked / self.clips, repeats).total / seconds / 1e12
        return {"useful TFLOP/s": achieved, "MFU": achieved / PEAK_TFLOPS}


def host_waits(work: Work) -> int:
    """How often the host waits for the device in a piece of work, by PyTorch's own detection."""
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


def step_case(setting: Setting) -> PreparedCase:
    """A step of complete teacher forcing, against the naive step, ours without compilation, and masked forcing."""
    bench = TrainingBench(setting)
    model, config, device = bench.model, bench.config, bench.device
    masked = config.model_copy(update={"model": config.model.model_copy(update={"teacher_forcing": "masked"})})
    ours, naive = training_loss(model, config, device), naive_loss(model, config, device)
    losses = {
        OURS: ours,
        "MTF": training_loss(model, masked, device),
        "eager dense mask": eagerly(naive),
        "eager, ours": eagerly(ours),
    }
    works, failed = run_each_once({name: partial(bench.work, name, loss) for name, loss in losses.items()})
    waits = host_waits(works[OURS])

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        found = {"clips/s": 1 / seconds[OURS], **bench.utilisation(seconds[OURS])}
        if "MTF" in seconds:
            found["MFU of MTF"] = bench.utilisation(seconds["MTF"], "masked")["MFU"]
            found["CTF over MTF"] = seconds[OURS] / seconds["MTF"]
        return found

    return PreparedCase(
        tuple(Candidate(name, work) for name, work in works.items()),
        check=lambda: (*bench.parities(ours, naive), Parity("waits of the host in a step", waits, 0)),
        units=float(bench.clips),
        metrics=metrics,
        shapes={
            "clips": bench.clips,
            "parameters": sum(value.numel() for value in model.parameters()),
            "masked tokens": bench.masked,
            "micro-batch": bench.micro_batch,
            "left out": failed,
        },
    )


# The update of the weights


def optimizer_case(setting: Setting) -> PreparedCase:
    """AdamW and average of all parameters, fused and over lists, against PyTorch's foreach AdamW and a loop."""
    config, latent = setup(setting.smoke)
    model = random_model(config.model, latent, setting.device)
    for value in model.parameters():
        value.grad = torch.randn_like(value) * 1e-3
    ours, ema = make_optimizer(model, config.training), Ema(model, config.training.ema_decay)
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in ours.param_groups]
    plain = AdamW(groups, lr=ours.defaults["lr"], betas=ours.defaults["betas"], foreach=True)

    def update() -> None:
        ours.step()
        ema.update(model, 10**6)

    @torch.no_grad()
    def plain_update() -> None:
        plain.step()
        for name, value in model.named_parameters():
            ema.average[name].lerp_(value, 1e-4)

    def check() -> tuple[Parity, ...]:
        return (Parity("three steps of a layer against AdamW on the CPU", _optimizer_difference(setting.device), 1e-5),)

    # Weight, both moments and average are read and written, the gradient is read.
    parameters = sum(value.numel() for value in model.parameters())
    traffic = 9 * 4 * parameters
    sides = {OURS: update, "foreach, loop over averages": plain_update}
    return PreparedCase(
        tuple(Candidate(name, run, warmups=2, calls=2) for name, run in sides.items()),
        check=check,
        metrics=lambda seconds: {"ms": seconds[OURS] * 1e3, "GB/s": traffic / seconds[OURS] / 1e9},
        shapes={"parameters": parameters, "decayed": len(decayed_parameters(model))},
    )


def _optimizer_difference(device: torch.device) -> float:
    """Relative difference of weights after the same three steps on the device and on the CPU."""
    config, _ = setup(smoke=True)
    weights = []
    for place in (device, torch.device("cpu")):
        layer = nn.Linear(16, 16, bias=False, device=place)
        nn.init.constant_(layer.weight, 0.5)
        optimizer = make_optimizer(layer, config.training)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            layer.weight.grad = torch.randn(16, 16, generator=generator).to(place)
            optimizer.step()
        weights.append(layer.weight)
    return relative_error(weights[0], weights[1])
