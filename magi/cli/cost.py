"""``magi inspect cost``: what a preset costs on given GPUs, on the screen or as the document of the paper's runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from magi.cli.assemble import planned_latent
from magi.cli.options import parse, preset_or_file
from magi.config import Config, LatentShape
from magi.presets import PAPER, VideoSet, preset, resized

if TYPE_CHECKING:
    from magi.training.cost import Gpu, Plan

# What magi encode writes: float16 mean and deviation; of a 3-D autoencoder some clips a video.
LATENT_BYTES = 2 * 2
CLIPS_PER_VIDEO = 4


@dataclass(frozen=True)
class CostOptions:
    """Print operations, memory by kind, steps a day, GPU-days and disk of a run, before it is started."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = ""
    """preset, config file or run directory; may be left out with --write"""
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
    parallel: str = ""
    """ddp or fsdp; by default the preset's"""
    activation_checkpointing: bool = False
    """compute blocks again in backward"""
    measure: bool = False
    """also train some steps of one micro-batch on this machine, on invented latents, and tell them beside the plan"""
    record: Annotated[Path | None, tyro.conf.arg(metavar="JSONL")] = None
    """with --measure, append what was measured to this file; with --write, put its lines into the document"""
    write: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """write the plans of the paper's presets on all GPUs as Markdown"""


def inspect_cost(words: list[str]) -> None:
    """Print the plan of a run, or write the document of the paper's."""
    options = parse(CostOptions, "inspect cost", words)
    from magi.training.cost import GPUS, UTILISATION, plan, will_not_fit

    if options.write is not None:
        utilisation = options.utilisation or UTILISATION
        measured = _recorded(options.record) if options.record is not None else []
        text = document([options.preset] if options.preset else list(PAPER), options.gpus, utilisation, measured)
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")
        print(f"wrote {options.write}")
        return
    if not options.preset:
        raise ValueError(f"name a preset or a config file, as in: magi inspect cost {next(iter(PAPER))}")
    if options.gpu not in GPUS:
        raise ValueError(f"unknown --gpu '{options.gpu}'; there are: {', '.join(GPUS)}")
    config = _config(options)
    latent = planned_latent(config)
    utilisation = UTILISATION if options.utilisation is None else options.utilisation
    made = plan(config, latent, GPUS[options.gpu], options.gpus, utilisation)
    print("\n".join([*_lines(made, config, latent), *_disk(options.preset, config, latent)]))
    warning = will_not_fit(made, config, latent)
    print(f"warning: {warning}" if warning else "fits")
    if options.measure:
        print("\n".join(_measured(options, made, config, latent)), flush=True)


def _measured(options: CostOptions, made: "Plan", config: Config, latent: LatentShape) -> list[str]:
    """Real steps of the plan's micro-batch, on one device, beside what the plan says of them."""
    import torch

    from magi.training.cost import GIB, measure_step
    from magi.training.parallelize import resolve_device

    step = measure_step(config, latent, made.micro_batch, resolve_device("auto"))
    if options.record is not None:
        line = {
            "preset": options.preset,
            "gpu": made.gpu.name,
            "torch": torch.__version__,
            "micro_batch": step.clips,
            "activation_checkpointing": config.training.activation_checkpointing,
            "compile": config.training.compile,
            "seconds": round(step.seconds, 4),
            "peak_gib": None if step.peak_bytes is None else round(step.peak_bytes / GIB, 2),
        }
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    speed = step.clips * made.clip.total / step.seconds / 1e12
    lines = [
        f"measured     {step.seconds:.3f} s a step of {step.clips} clips, {step.clips / step.seconds:.2f} clips/s, "
        f"{speed:.3g} TFLOP/s: {speed / made.gpu.tflops:.0%} of the peak of {made.gpu.name}"
    ]
    if step.peak_bytes is not None:
        lines.append(
            f"measured     {step.peak_bytes / GIB:.2f} GiB at the peak, the plan says {made.memory.peak / GIB:.2f}"
        )
    return lines


def _config(options: CostOptions) -> Config:
    config = preset_or_file(options.preset)
    if options.size:
        config = resized(config, options.size)
    changes = config.training.model_dump()
    if options.micro_batch is not None:
        changes["micro_batch"] = options.micro_batch
    if options.parallel:
        changes["parallel"] = options.parallel
    if options.activation_checkpointing:
        changes["activation_checkpointing"] = True
    from magi.config import parse_config

    return parse_config({**config.model_dump(), "training": changes}, "command line")


def _lines(made: "Plan", config: Config, latent: LatentShape) -> list[str]:
    """The plan as lines of text."""
    from magi.training.cost import GIB, USABLE_MEMORY, masked_tokens

    memory, training = made.memory, config.training
    kinds = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "EMA": memory.average,
        "copies for products": memory.copies,
        "activations": memory.activations,
        "gradients of those": memory.working,
    }
    return [
        f"model        {made.parameters:,} parameters, {latent.frames} frames of {latent.channels} x {latent.height} x "
        f"{latent.width} latents, {config.model.teacher_forcing} teacher forcing",
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
        f"speed        {_seconds(made.step_seconds)} s a step, {made.steps_a_day:,.0f} steps a day "
        f"at {made.utilisation:.0%} of the peak (stated, not measured)",
        f"schedule     {made.steps:,} steps: {made.gpu_days:.1f} GPU-days, {made.gpu_days / made.gpus:.1f} days",
    ]


def latent_gigabytes(config: Config, latent: LatentShape, videos: VideoSet, clips: int = CLIPS_PER_VIDEO) -> float:
    """Disk for a data set's latents: every frame with a 2-D autoencoder, ``clips`` clips a video with a 3-D one."""
    compressed = latent.frames < config.data.frames
    frames = clips * latent.frames if compressed else videos.frames
    return videos.videos * frames * latent.channels * latent.height * latent.width * LATENT_BYTES / 1e9


def _disk(name: str, config: Config, latent: LatentShape) -> list[str]:
    if name not in PAPER:
        return []
    videos = PAPER[name]
    how = f"{CLIPS_PER_VIDEO} clips a video" if latent.frames < config.data.frames else "every frame"
    return [
        f"disk         {latent_gigabytes(config, latent, videos):,.0f} GB of latents: mean and deviation in float16, "
        f"{how}, {videos.videos:,} videos ({videos.source})"
    ]


def _recorded(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected lines of JSON that --measure --record wrote ({error})") from None


def _measured_rows(measured: list[dict[str, Any]]) -> list[str]:
    """Recorded steps beside the plan's, each one optimizer step of one micro-batch on one GPU."""
    from magi.training.cost import GIB, GPUS, changed, plan

    lines = [
        "## Measured",
        "",
        "One optimizer step of one micro-batch on one GPU, invented latents (`magi inspect cost PRESET --measure`).",
        "",
        "| preset | GPU | micro-batch | with | s a step | of the peak | memory, GiB | planned, GiB | torch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in measured:
        config = changed(
            preset(one["preset"]),
            micro_batch=one["micro_batch"],
            activation_checkpointing=one["activation_checkpointing"],
            compile=one["compile"],
        )
        gpu = next(gpu for gpu in GPUS.values() if gpu.name == one["gpu"])
        made = plan(config, planned_latent(config), gpu, gpus=1)
        reached = one["micro_batch"] * made.clip.total / one["seconds"] / (gpu.tflops * 1e12)
        ways = [name for name, key in (("recompute", "activation_checkpointing"), ("compile", "compile")) if one[key]]
        lines.append(
            f"| `{one['preset']}` | {gpu.name} | {one['micro_batch']} | {', '.join(ways) or '-'} | "
            f"{one['seconds']:.3f} | {reached:.0%} | {one['peak_gib']:.1f} | "
            f"{made.memory.peak / GIB:.1f} | {one['torch']} |"
        )
    return [*lines, ""]


def document(names: list[str], gpus: int, utilisation: float, measured: list[dict[str, Any]]) -> str:
    """The plans of presets on all GPUs, as Markdown, and what was measured beside its plan."""
    from magi.training.cost import GPUS, USABLE_MEMORY, plan

    lines = [
        "# What the paper's runs cost",
        "",
        f"Written by `magi inspect cost --write docs/plans.md --record results/measured_steps.jsonl`; {gpus} GPUs",
        f"each, at a stated utilisation of {utilisation:.0%} of the dense bfloat16 peak, {USABLE_MEMORY:.0%} of the "
        "memory usable, exchange between",
        "GPUs not counted. Operations are checked against PyTorch's counter and activations against what autograd",
        "keeps (tests/model/test_flops.py), and both against real steps (below, where they were measured).",
        "The micro-batch is the largest that fits; a GPU that holds no clip otherwise gets activation",
        "checkpointing, then FSDP.",
        "",
    ]
    for name in names:
        config = preset(name)
        latent = planned_latent(config)
        first = plan(config, latent, GPUS["h200"], gpus, utilisation)
        lines += [
            f"## `{name}`",
            "",
            "```",
            *_lines(first, config, latent),
            *_disk(name, config, latent),
            "```",
            "",
            "| GPU | way | micro-batch | memory, GiB | s a step | steps a day | GPU-days | days |",
            "|---|---|---|---|---|---|---|---|",
            *[_row(config, latent, gpu, gpus, utilisation) for gpu in GPUS.values()],
            "",
        ]
    lines += _measured_rows(measured) if measured else []
    lines += ["## GPUs", "", "| GPU | TFLOP/s, dense bf16 | memory, GiB | source |", "|---|---|---|---|"]
    lines += [f"| {gpu.name} | {gpu.tflops:g} | {gpu.memory_gib:.0f} | {gpu.source} |" for gpu in GPUS.values()]
    return "\n".join(lines) + "\n"


def _row(config: Config, latent: LatentShape, gpu: "Gpu", gpus: int, utilisation: float) -> str:
    from magi.training.cost import GIB, changed, fitting, ways

    for way in ways(gpus, config.training):
        made = fitting(changed(config, **way), latent, gpu, gpus, utilisation)
        if made is not None:
            told = " + ".join(
                [
                    "FSDP" if way.get("parallel") else "DDP",
                    *(["recompute"] if way.get("activation_checkpointing") else []),
                ]
            )
            return (
                f"| {gpu.name} | {told} | {made.micro_batch} | {made.memory.peak / GIB:.1f} | "
                f"{made.step_seconds:.2f} | {made.steps_a_day:,.0f} | {made.gpu_days:.1f} | "
                f"{made.gpu_days / gpus:.1f} |"
            )
    return f"| {gpu.name} | does not fit | | | | | | |"


def _seconds(value: float) -> str:
    """Two decimals, or two digits of what would be 0.00."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"
