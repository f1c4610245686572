"""What a run will cost on given GPUs: memory by kind, steps a day, GPU-days, disk; and whether it fits at all.

Operations and activations come from ``magi.model.flops``, the rest is counted here. Assumed, and told with every plan:
the share of a GPU's peak that training reaches, and the share of its memory that tensors can have. Exchange between
processes is not in the time. It knows configs, sizes and data sheets; no tensors, files or running processes.
"""

import math
import time
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from magi.config import Config, LatentShape, ModelConfig, TrainingConfig
from magi.latents.dataset import LatentClip
from magi.model.flops import (
    ClipFlops,
    block_activation_bytes,
    clip_activation_bytes,
    clip_flops,
    clip_shape,
    mean_mask_ratio,
)
from magi.model.magi import Magi
from magi.training.parallelize import Distributed
from magi.training.trainer import Trainer

GIB = 2**30
UTILISATION = 0.4
"""Share of the dense bfloat16 peak; one H200 reached 36 to 43 % (docs/plans.md, `magi inspect cost --measure`)."""
USABLE_MEMORY = 0.92
"""Share of a GPU's memory that tensors can have: the rest is the driver's, the libraries' and fragmentation."""
CORE_NUMBERS = 5e7
"""Random numbers of clips that a CPU core draws and stacks a second: stated, `magi bench data --beside` measures."""
SECONDS_A_DAY = 86_400
_WARM_UP = 2


@dataclass(frozen=True)
class Gpu:
    """Peak of dense bfloat16 products in TFLOP/s (accumulated in float32) and memory, from the vendor's data sheet."""

    name: str
    tflops: float
    memory_gib: float
    source: str


GPUS = {
    "h200": Gpu("H200 SXM", 989.0, 141, "NVIDIA H200 data sheet (1,979 with sparsity)"),
    "h100": Gpu("H100 SXM", 989.0, 80, "NVIDIA H100 data sheet (1,979 with sparsity)"),
    "a100-80": Gpu("A100 80 GB", 312.0, 80, "NVIDIA A100 data sheet"),
    "a100-40": Gpu("A100 40 GB", 312.0, 40, "NVIDIA A100 data sheet"),
    "l40s": Gpu("L40S", 362.0, 48, "NVIDIA L40S data sheet (733 with sparsity)"),
    "4090": Gpu("RTX 4090", 165.2, 24, "NVIDIA Ada GPU architecture white paper, appendix A"),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by kind. ``peak`` is the larger of backward's and the optimizer step's."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    copies: float
    """Weights in bfloat16 for products, and under FSDP the whole weights of what runs."""
    activations: float
    working: float
    """Gradients of activations while backward passes through one layer."""
    update: float
    """Temporaries of the optimizer step, when activations are gone."""

    @property
    def states(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def peak(self) -> float:
        """The most at any time."""
        return self.states + max(self.copies + self.activations + self.working, self.update)


@dataclass(frozen=True)
class Plan:
    """A run on ``gpus`` GPUs; of one of them, ``micro_batch`` clips are in a forward pass and ``share`` in a step."""

    gpu: Gpu
    gpus: int
    parameters: int
    clip: ClipFlops
    share: int
    micro_batch: int
    memory: Memory
    utilisation: float
    step_seconds: float
    steps: int
    numbers: int
    """Random numbers of a clip, read from latents on disk."""

    @property
    def clips_a_second(self) -> float:
        """What one GPU trains on."""
        return self.share / self.step_seconds

    @property
    def cores(self) -> float:
        """CPU cores that prepare as much for one GPU."""
        return self.clips_a_second * self.numbers / CORE_NUMBERS

    @property
    def fits(self) -> bool:
        """Whether the peak is within the usable memory."""
        return self.memory.peak <= self.gpu.memory_gib * GIB * USABLE_MEMORY

    @property
    def steps_a_day(self) -> float:
        """Optimizer steps in 24 hours."""
        return SECONDS_A_DAY / self.step_seconds

    @property
    def gpu_days(self) -> float:
        """Days of the whole schedule, times GPUs."""
        return self.gpus * self.steps / self.steps_a_day


def count_parameters(config: Config, latent: LatentShape) -> int:
    """Parameters of a config's model, counted without memory for them."""
    return _count(config.model, latent)


@lru_cache(maxsize=64)
def _count(model: ModelConfig, latent: LatentShape) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Magi(model, latent).parameters())


def masked_tokens(config: Config, latent: LatentShape) -> float:
    """Masked tokens of a clip on average, over all frames and views."""
    training, patch = config.training, config.model.patch_size
    ratio = mean_mask_ratio(training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min)
    tokens = (latent.height // patch) * (latent.width // patch)
    return ratio * tokens * (latent.frames * training.masked_views + training.first_frame_views)


def plan(config: Config, latent: LatentShape, gpu: Gpu, gpus: int, utilisation: float = UTILISATION) -> Plan:
    """Cost of a config on ``gpus`` GPUs of a kind.

    ``ValueError`` for a number of GPUs that the batch cannot be shared by, or a utilisation outside 0..1.
    """
    training = config.training
    if not 1 <= gpus <= training.batch:
        raise ValueError(f"--gpus {gpus}: expected 1..{training.batch}, which is training.batch")
    if training.parallel == "fsdp" and training.batch % gpus:
        raise ValueError(f"--gpus {gpus}: fsdp needs a divisor of training.batch {training.batch}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation {utilisation}: expected a share of the peak, above 0 and at most 1")
    share = math.ceil(training.batch / gpus)
    micro_batch = min(training.micro_batch or share, share)
    masked = masked_tokens(config, latent)
    views, more = training.masked_views, training.first_frame_views
    clip = clip_flops(config.model, latent, masked, training.diffusion_batch_mul, views, more)
    parameters = count_parameters(config, latent)
    number = 4 if training.precision == "fp32" else 2
    work = share * (clip.total + (clip.recomputed if training.activation_checkpointing else 0.0))
    return Plan(
        gpu=gpu,
        gpus=gpus,
        parameters=parameters,
        clip=clip,
        share=share,
        micro_batch=micro_batch,
        memory=_memory(config, latent, parameters, micro_batch, gpus, number),
        utilisation=utilisation,
        step_seconds=work / (gpu.tflops * 1e12 * utilisation),
        steps=training.steps,
        numbers=random_numbers(config, latent),
    )


def random_numbers(config: Config, latent: LatentShape) -> int:
    """Numbers drawn for a clip: its posterior, noise on observations, and noise of every masked frame and noising."""
    training = config.training
    masked = training.masked_views * latent.frames + training.first_frame_views
    frames = latent.frames * (config.data.sample_posterior + 1) + masked * training.diffusion_batch_mul
    return frames * latent.channels * latent.height * latent.width


def _memory(
    config: Config, latent: LatentShape, parameters: int, micro_batch: int, gpus: int, compute_bytes: int
) -> Memory:
    training, model = config.training, config.model
    views, more, recompute = training.masked_views, training.first_frame_views, training.activation_checkpointing
    sharded = training.parallel == "fsdp" and gpus > 1
    held = 4.0 * parameters / (gpus if sharded else 1)  # float32
    block = 12 * model.width**2 * 2  # parameters of a block, nearly
    rest = parameters - block * model.blocks
    copies = float(parameters * compute_bytes) if compute_bytes < 4 else 0.0
    if sharded:  # two blocks are whole at a time, what is outside blocks all the time
        copies += 4.0 * (2 * block + rest)
    shape = clip_shape(model, latent, views, more)
    one_block = block_activation_bytes(model, shape, compute_bytes)
    kept = clip_activation_bytes(
        model,
        latent,
        masked_tokens(config, latent),
        training.diffusion_batch_mul,
        compute_bytes,
        views,
        recompute,
        more,
    )
    # Of the widest layer: the gradient of the MLP's inner width, before and after its non-linearity, and the stream's.
    wide = shape.slots * shape.positions * model.width * (2 * model.mlp_ratio * compute_bytes + 8)
    return Memory(
        weights=held,
        gradients=held,
        optimizer=2 * held,
        average=held,
        copies=copies,
        activations=micro_batch * kept,
        working=micro_batch * (wide + (one_block if recompute else 0.0)),
        update=held,  # square roots of second moments
    )


def fitting(config: Config, latent: LatentShape, gpu: Gpu, gpus: int, utilisation: float = UTILISATION) -> Plan | None:
    """The plan with the largest micro-batch that fits, up to a process's share; None if no single clip does."""

    def at(micro_batch: int) -> Plan:
        return plan(changed(config, micro_batch=micro_batch), latent, gpu, gpus, utilisation)

    low, high = 0, math.ceil(config.training.batch / gpus)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).fits else (low, middle - 1)
    return at(low) if low else None


def changed(config: Config, **training: object) -> Config:
    """The config with other training settings."""
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def ways(gpus: int, training: TrainingConfig) -> list[dict[str, object]]:
    """What can be switched on to save memory, the cheapest first."""
    sharded: list[dict[str, object]] = [{"parallel": "fsdp"}] if gpus > 1 and training.batch % gpus == 0 else []
    return [
        {},
        {"activation_checkpointing": True},
        *sharded,
        *[{**one, "activation_checkpointing": True} for one in sharded],
    ]


def advice(config: Config, latent: LatentShape, gpu: Gpu, gpus: int) -> str:
    """Options under which the run fits, or that none do."""
    for way in ways(gpus, config.training):
        found = fitting(changed(config, **way), latent, gpu, gpus)
        if found is not None:
            settings: dict[str, object] = {**way, "micro_batch": found.micro_batch}
            return "; it fits with " + " ".join(f"--training.{_option(key, value)}" for key, value in settings.items())
    return "; not even one clip fits: take a smaller --size, or more memory"


def _option(name: str, value: object) -> str:
    dashed = name.replace("_", "-")
    return dashed if value is True else f"{dashed} {value}"


def will_not_fit(made: Plan, config: Config, latent: LatentShape) -> str | None:
    """The one-line warning before a run whose memory is not enough; None if it is."""
    if made.fits:
        return None
    return (
        f"will not fit: about {made.memory.peak / GIB:.1f} GiB are needed at micro-batch {made.micro_batch}, "
        f"{made.gpu.memory_gib * USABLE_MEMORY:.1f} of {made.gpu.memory_gib:.0f} GiB can be used on {made.gpu.name}"
        f"{advice(config, latent, made.gpu, made.gpus)}"
    )


class _InventedClips:
    """Latents of unit variance without any action, and the longest text; a pure function of the sample number."""

    def __init__(self, latent: LatentShape, model: ModelConfig) -> None:
        self.size, self.classes = (latent.frames, latent.channels, latent.height, latent.width), model.classes
        self.actions_TA = np.full((latent.frames, model.actions), np.nan, np.float32) if model.actions else None
        self.caption = "x" * model.text_length if model.text_encoder else None
        self.text_LE = np.ones((model.text_length, model.text_width), np.float32) if model.text_width else None

    def __getitem__(self, sample: int) -> LatentClip:
        latents_TCHW = np.random.default_rng(sample).standard_normal(self.size).astype(np.float32)
        label = sample % self.classes if self.classes else None
        return LatentClip(latents_TCHW, 1, label, sample, self.actions_TA, self.caption, self.text_LE)


def measure_step(
    config: Config, latent: LatentShape, clips: int, device: torch.device, steps: int = 5
) -> tuple[float, int | None]:
    """Train ``steps`` steps of one micro-batch of ``clips`` clips in this process, after two that warm up.

    Returned are (seconds of a step, the median; bytes of the device at the peak, None on a CPU).
    """
    total = _WARM_UP + steps
    one = changed(config, batch=clips, micro_batch=0, steps=total, parallel="ddp")
    model = Magi(config.model, latent, torch.Generator().manual_seed(0))
    trainer = Trainer(one, _InventedClips(latent, config.model), None, model, Distributed(0, 1, device))
    seconds = []
    with closing(trainer):
        trainer.start()
        for _ in range(total):
            _wait(device)
            began = time.perf_counter()
            trainer.take_step()
            _wait(device)
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return float(np.median(seconds[_WARM_UP:])), peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
