"""What the training cases share: the paper's model on a device, a batch drawn as in training, and one step of it.

The naive step is complete teacher forcing as it is first written: all T observation frames and T masked frames under a
dense mask, and the head on all tokens with the loss masked afterwards, as MAR does (arXiv 2406.11838).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from magi.bench.runner import free_memory
from magi.config import Config, DataConfig, LatentShape, ModelConfig, TrainingConfig
from magi.model.attention import TemporalAttention
from magi.model.diffusion import add_noise, diffusion_loss
from magi.model.magi import Magi
from magi.model.noise_injection import inject_noise
from magi.model.slot_attention import SlotAttention
from magi.model.teacher_forcing import ForcedSequence, SlotPattern
from magi.training.clip_batch import Batch, stack_draws
from magi.training.corruption import DrawShape, draw_corruption
from magi.training.ema import Ema
from magi.training.loss import MagiLoss
from magi.training.optimizer import make_optimizer

PEAK_TFLOPS = 989.5
"""Dense bfloat16 products of an H200 by its data sheet; the share of it is the model FLOPs utilisation."""

Loss = Callable[[Tensor, Batch, int], Tensor]
"""(tokens_BTNC, batch, masked tokens of the step) -> the scalar to be minimised."""


def setup(smoke: bool, **training: Any) -> tuple[Config, LatentShape]:
    """The paper's model on 16 latent frames of 32 x 32 (Stable Diffusion's autoencoder), or a tiny one."""
    if not smoke:
        return Config(training=TrainingConfig(**training)), LatentShape(frames=16, channels=4, height=32, width=32)
    shape: dict[str, int] = {"width": 16, "blocks": 2, "heads": 2, "head_width": 16, "head_blocks": 1, "frames": 3}
    model = ModelConfig(**shape, diffusion_steps=100)
    tiny = Config(data=DataConfig(frames=3), model=model, training=TrainingConfig(**training))
    return tiny, LatentShape(frames=3, channels=2, height=4, width=4)


def build_model(config: Config, latent: LatentShape, device: torch.device) -> Magi:
    """Random weights made on the device; those that start at zero are drawn too, since products of zeros are faster."""
    torch.manual_seed(0)
    with device:
        model = Magi(config.model, latent)
    for layer in (model.head.modulation, model.head.output):
        nn.init.normal_(layer.weight, std=0.02)
    return model.train()


@dataclass(frozen=True)
class Clips:
    """A batch of random clips on a device, as in training."""

    batch: Batch
    tokens_BTNC: Tensor

    @property
    def masked(self) -> int:
        """Masked tokens, over all views."""
        return len(self.batch.picked_M)


def draw_clips(config: Config, model: Magi, clips: int, device: torch.device, first: int = 0) -> Clips:
    """``clips`` random clips with the draws of samples ``first``.. of a run."""
    shape = DrawShape(model.latent.frames, model.tokens_per_frame, model.token_channels)
    samples = tuple(range(first, first + clips))
    draws = [draw_corruption(config.training, config.model, shape, sample) for sample in samples]
    batch = stack_draws(draws, config, samples=samples, interval_B=torch.ones(clips, dtype=torch.long)).to(device)
    generator = torch.Generator(device).manual_seed(first)
    size = (clips, shape.frames, shape.tokens, shape.channels)
    return Clips(batch, torch.randn(size, device=device, generator=generator))


def our_loss(model: Magi, config: Config, device: torch.device, low: bool = True) -> Loss:
    """The loss of training, the model's products in bfloat16 on a GPU if ``low``."""
    measured = MagiLoss(config.model, device)

    def forward(*inputs: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low and device.type == "cuda"):
            return model(*inputs)

    def loss(tokens_BTNC: Tensor, batch: Batch, total: int) -> Tensor:
        parts = measured(forward, tokens_BTNC, batch, total)
        return parts.mse + parts.vlb

    return loss


def naive_sequence(tokens_BTNC: Tensor, masked_BTN: Tensor, dense: bool) -> ForcedSequence:
    """All T observation frames, then the T masked ones, under a dense mask or the pattern of slots."""
    frames = tokens_BTNC.shape[1]
    time_T = torch.arange(frames, device=tokens_BTNC.device)
    pattern = SlotPattern(causal=frames, frames=frames, views=1)
    return ForcedSequence(
        tokens_BSNC=torch.cat([tokens_BTNC, tokens_BTNC], dim=1),
        masked_BSN=torch.cat([torch.zeros_like(masked_BTN), masked_BTN], dim=1),
        observations=frames,
        time_S=torch.cat([time_T, time_T]),
        attend=pattern.mask_SS(tokens_BTNC.device) if dense else pattern,
    )


def naive_loss(
    model: Magi, config: Config, device: torch.device, dense: bool = True, gather: bool = False, low: bool = True
) -> Loss:
    """The same loss, nothing pruned; ``dense`` masks attention, ``gather`` gives the head the masked tokens alone."""
    schedule = MagiLoss(config.model, device).schedule

    def loss(tokens_BTNC: Tensor, batch: Batch, total: int) -> Tensor:
        sequence = naive_sequence(tokens_BTNC, batch.masked_BUN, dense)
        sequence = inject_noise(sequence, batch.noise_BTNC, batch.amplitude_B)
        count = sequence.observations
        clean, timestep = tokens_BTNC.flatten(0, 2), batch.timestep_RBUN.flatten(1)
        noise, weight = batch.diffusion_noise_RBUNC.flatten(1, 3), batch.masked_BUN.flatten().float()
        if gather:
            clean, weight = clean[batch.picked_M], weight[batch.picked_M]
            timestep, noise = timestep[:, batch.picked_M], noise[:, batch.picked_M]
        clean = clean.expand_as(noise)
        noisy = add_noise(schedule, clean, noise, timestep)
        with torch.autocast(device.type, torch.bfloat16, enabled=low and device.type == "cuda"):
            is_observation_S = torch.arange(2 * count, device=device) < count
            x_BSPD = model._embed(
                sequence.tokens_BSNC, sequence.masked_BSN, is_observation_S, sequence.time_S, batch.conditions
            )
            z_ND = model._condition(model.transformer(x_BSPD, sequence.attend)[:, count:]).flatten(0, 2)
            prediction = model.head(noisy, timestep, z_ND[batch.picked_M] if gather else z_ND).to(noise.dtype)
        parts = diffusion_loss(schedule, prediction, clean, noisy, noise, timestep)
        return ((parts.mse + parts.vlb) * weight).sum() / (total * len(timestep))

    return loss


class Stepper:
    """A model with its optimizer and average: whole optimizer steps, without waiting for the device."""

    def __init__(self, model: Magi, config: Config) -> None:
        self.model, self.clip = model, config.training.gradient_clip
        self.optimizer = make_optimizer(model, config.training)
        self.ema = Ema(model, config.training.ema_decay)

    def take(self, loss: Loss, parts: list[Clips]) -> Tensor:
        """Forward and backward of each part, then one update; returns the loss."""
        total = sum(part.masked for part in parts)
        summed = torch.zeros((), device=parts[0].tokens_BTNC.device)
        for part in parts:
            one = loss(part.tokens_BTNC, part.batch, total)
            one.backward()
            summed += one.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=True)
        self.optimizer.step()
        self.ema.update(self.model, 100)
        self.optimizer.zero_grad(set_to_none=True)
        return summed


class Compilation:
    """Blocks and head of a model, compiled; contexts turn it and the path of temporal attention on and off."""

    def __init__(self, model: Magi, wanted: bool) -> None:
        self.modules: list[nn.Module] = [*model.transformer.blocks, model.head]
        self.temporal = [layer for layer in model.modules() if isinstance(layer, TemporalAttention)]
        if wanted:
            # Each number of slots is compiled for itself; beyond the limit PyTorch would silently go on uncompiled.
            torch._dynamo.config.recompile_limit = 64
            for module in self.modules[:-1]:
                module.compile(dynamic=False)
            model.head.compile(dynamic=True)
        self.compiled = [module._compiled_call_impl for module in self.modules]

    @contextmanager
    def eager(self, path: SlotAttention | None = None) -> Iterator[None]:
        """Without compilation, under another path of temporal attention."""
        before = [temporal.mix for temporal in self.temporal]
        for module in self.modules:
            module._compiled_call_impl = None
        for temporal in self.temporal:
            temporal.mix = path or temporal.mix
        try:
            yield
        finally:
            for module, call in zip(self.modules, self.compiled, strict=True):
                module._compiled_call_impl = call
            for temporal, mix in zip(self.temporal, before, strict=True):
                temporal.mix = mix


def split_clips(clips: Clips, micro_batch: int) -> list[Clips]:
    """The same clips in parts of ``micro_batch``."""
    parts = []
    for first in range(0, len(clips.tokens_BTNC), micro_batch):
        here = slice(first, first + micro_batch)
        batch = clips.batch
        masked_BUN = batch.masked_BUN[here]
        parts.append(
            Clips(
                replace(
                    batch,
                    samples=batch.samples[here],
                    interval_B=batch.interval_B[here],
                    noise_level_B=batch.noise_level_B[here],
                    masked_BUN=masked_BUN,
                    picked_M=masked_BUN.flatten().nonzero().squeeze(1),
                    amplitude_B=batch.amplitude_B[here],
                    noise_BTNC=batch.noise_BTNC[here],
                    timestep_RBUN=batch.timestep_RBUN[:, here],
                    diffusion_noise_RBUNC=batch.diffusion_noise_RBUNC[:, here],
                ),
                clips.tokens_BTNC[here],
            )
        )
    return parts


def largest_that_fits(
    make: Callable[[int], Callable[[], object]], sizes: tuple[int, ...]
) -> tuple[int, Callable[[], object]]:
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
