"""``magi inspect cost``: what a run of a preset costs on given GPUs, before it is started."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from magi.cli.assemble import planned_latent
from magi.cli.options import parse, preset_or_file
from magi.config import Config, LatentShape
from magi.config_files import parse_config
from magi.presets import PAPER, PAPER_SIZE, VideoSet, resized

if TYPE_CHECKING:
    from magi.training.cost import Plan

# What magi encode writes: float16 mean and deviation; of a 3-D autoencoder some clips a video.
LATENT_BYTES = 2 * 2
CLIPS_PER_VIDEO = 4
STATE_BYTES = 2


@dataclass(frozen=True)
class CostOptions:
    """Print operations, memory by kind, steps a day, GPU-days and disk of a run, before it is started."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = ""
    """preset, config file or run directory"""
    gpu: str = "h200"
    """h200, h100, a100-80, a100-40, l40s or 4090"""
    gpus: int = 8
    """how many of them"""
    utilisation: float | None = None
    """share of the peak that training reaches; by default what the plan states"""
    size: str = ""
    """tiny, small, base or large instead of the preset's"""
    micro_batch: int | None = None
    """clips a forward pass; by default the preset's, 0 is the whole share of a process"""
    parallel: str | None = None
    """ddp or fsdp; by default the preset's"""
    activation_checkpointing: bool = False
    """compute blocks again in backward"""
    measure: bool = False
    """also train some steps of one micro-batch on this machine, on invented latents, and tell them beside the plan"""
    record: Annotated[Path | None, tyro.conf.arg(metavar="JSONL")] = None
    """with --measure, append what was measured to this file"""


def inspect_cost(words: list[str]) -> None:
    """Print the plan of a run, and whether it fits."""
    options = parse(CostOptions, "inspect cost", words)
    from magi.training.cost import GPUS, UTILISATION, plan, will_not_fit

    if not options.preset:
        raise ValueError(f"name a preset or a config file, as in: magi inspect cost {next(iter(PAPER))}")
    if options.gpu not in GPUS:
        raise ValueError(f"unknown --gpu '{options.gpu}'; there are: {', '.join(GPUS)}")
    config = _config(options)
    latent = planned_latent(config)
    utilisation = UTILISATION if options.utilisation is None else options.utilisation
    made = plan(config, latent, GPUS[options.gpu], options.gpus, utilisation)
    videos = PAPER_SIZE.get(options.preset)
    disk = disk_lines(config, latent, videos) if videos else []
    print("\n".join([*plan_lines(made, config, latent), *disk]))
    warning = will_not_fit(made, config, latent)
    print(f"warning: {warning}" if warning else "fits")
    if options.measure:
        print("\n".join(_measured(options, made, config, latent)), flush=True)


def _config(options: CostOptions) -> Config:
    config = preset_or_file(options.preset)
    if options.size:
        config = resized(config, options.size)
    changes = {
        "micro_batch": options.micro_batch,
        "parallel": options.parallel,
        "activation_checkpointing": options.activation_checkpointing or None,
    }
    training = config.training.model_dump() | {name: value for name, value in changes.items() if value is not None}
    return parse_config({**config.model_dump(), "training": training}, "command line")


def plan_lines(made: "Plan", config: Config, latent: LatentShape) -> list[str]:
    """The plan as lines of text."""
    from magi.training.cost import CORE_NUMBERS, GIB, USABLE_MEMORY, masked_tokens

    memory, training, shape = made.memory, config.training, f"{latent.channels} x {latent.height} x {latent.width}"
    kinds = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "EMA": memory.average,
        "copies for products": memory.copies,
        "activations": memory.activations,
        "gradients of those": memory.working,
    }
    # What would be 0.00 has two digits.
    seconds = f"{made.step_seconds:.2f}" if made.step_seconds >= 0.01 else f"{made.step_seconds:.2g}"
    return [
        f"model        {made.parameters:,} parameters, {latent.frames} frames of {shape} latents, "
        f"{config.model.teacher_forcing} teacher forcing",
        f"a clip       {made.clip.total / 1e12:.2f} TFLOP forward and backward, head included "
        f"({masked_tokens(config, latent):.0f} masked tokens on average, each noised {training.diffusion_batch_mul} "
        "times)",
        f"a step       {training.batch} clips, {made.share} a GPU in forward passes of {made.micro_batch}; "
        f"{training.parallel}{', activation checkpointing' if training.activation_checkpointing else ''}, "
        f"{training.precision}",
        *[f"memory       {name:<20} {value / GIB:7.2f} GiB" for name, value in kinds.items()],
        f"memory       {'peak of one GPU':<20} {memory.peak / GIB:7.2f} GiB of {made.gpu.memory_gib:.0f} "
        f"({USABLE_MEMORY:.0%} usable)",
        f"GPU          {made.gpus} x {made.gpu.name}, {made.gpu.tflops:g} TFLOP/s dense bf16 ({made.gpu.source})",
        f"speed        {seconds} s a step, {made.steps_a_day:,.0f} steps a day "
        f"at {made.utilisation:.0%} of the peak (stated, not measured)",
        f"data         {made.clips_a_second:.3g} clips/s a GPU, {made.numbers:,} random numbers each: "
        f"{made.cores:.2g} CPU cores a GPU from latents on disk, at {CORE_NUMBERS / 1e6:.0f} M a second (stated)",
        f"schedule     {made.steps:,} steps: {made.gpu_days:.1f} GPU-days, {made.gpu_days / made.gpus:.1f} days",
    ]


def disk_lines(config: Config, latent: LatentShape, videos: VideoSet) -> list[str]:
    """Disk for a data set's latents, every frame with a 2-D autoencoder, some clips a video with a 3-D one; and for
    the states of its captions, one a video, where a frozen encoder reads them.
    """
    clips = latent.frames < config.data.frames
    frames = CLIPS_PER_VIDEO * latent.frames if clips else videos.frames
    size = videos.videos * frames * latent.channels * latent.height * latent.width * LATENT_BYTES
    lines = [
        f"disk         {size / 1e9:,.0f} GB of latents: mean and deviation in float16, "
        f"{f'{CLIPS_PER_VIDEO} clips a video' if clips else 'every frame'}, {videos.videos:,} videos ({videos.source})"
    ]
    if config.model.text_width:
        length, width = config.model.text_length, config.model.text_width
        lines.append(
            f"disk         {videos.videos * length * width * STATE_BYTES / 1e9:,.0f} GB at most of captions: "
            f"{length} tokens of {width} numbers in float16"
        )
    return lines


def _measured(options: CostOptions, made: "Plan", config: Config, latent: LatentShape) -> list[str]:
    """Real steps of the plan's micro-batch, on one device, beside what the plan says of them."""
    import torch

    from magi.devices import resolve_device
    from magi.training.cost import GIB, measure_step

    seconds, peak_bytes = measure_step(config, latent, made.micro_batch, resolve_device("auto"))
    peak = None if peak_bytes is None else peak_bytes / GIB
    if options.record is not None:
        line = {
            "preset": options.preset,
            "gpu": made.gpu.name,
            "torch": torch.__version__,
            "micro_batch": made.micro_batch,
            "activation_checkpointing": config.training.activation_checkpointing,
            "compile": config.training.compile,
            "seconds": round(seconds, 4),
            "peak_gib": None if peak is None else round(peak, 2),
        }
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    clips, speed = made.micro_batch, made.micro_batch * made.clip.total / seconds / 1e12
    lines = [
        f"measured     {seconds:.3f} s a step of {clips} clips, {clips / seconds:.2f} clips/s, "
        f"{speed:.3g} TFLOP/s: {speed / made.gpu.tflops:.0%} of the peak of {made.gpu.name}"
    ]
    if peak is not None:
        lines.append(f"measured     {peak:.2f} GiB at the peak, the plan says {made.memory.peak / GIB:.2f}")
    return lines
