"""Writes docs/plans.md: what the paper's runs and text at their size cost on all GPUs; measured steps beside plans.

    python runs/plans.py

Steps are measured, and added to results/measured_steps.jsonl, by
``magi inspect cost PRESET --measure --record results/measured_steps.jsonl``.
"""

import json
from pathlib import Path
from typing import Any

from magi.cli.assemble import planned_latent
from magi.cli.cost import disk_lines, plan_lines
from magi.config import Config, LatentShape
from magi.files import write_text
from magi.presets import PAPER_SIZE, preset
from magi.training.cost import GIB, GPUS, USABLE_MEMORY, UTILISATION, Gpu, changed, fitting, plan, ways

ROOT = Path(__file__).parents[1]
PROCESSES = 8


def document() -> str:
    """The plans of the presets of the paper's size on all GPUs, as Markdown, and what was measured beside its plan."""
    lines = [
        "# What the paper's runs cost",
        "",
        "And text to video at their size, the preset `text`, which is not in the paper.",
        f"Written by `python runs/plans.py`; {PROCESSES} GPUs",
        f"each, at a stated utilisation of {UTILISATION:.0%} of the dense bfloat16 peak, {USABLE_MEMORY:.0%} of the "
        "memory usable, exchange between",
        "GPUs not counted. Operations are checked against PyTorch's counter and activations against what autograd",
        "keeps (tests/model/test_flops.py), and both against real steps (below, where they were measured).",
        "The micro-batch is the largest that fits; a GPU that holds no clip otherwise gets activation",
        "checkpointing, then FSDP.",
        "",
    ]
    for name in PAPER_SIZE:
        config = preset(name)
        latent = planned_latent(config)
        first = plan(config, latent, GPUS["h200"], PROCESSES)
        lines += [
            f"## `{name}`",
            "",
            "```",
            *plan_lines(first, config, latent),
            *disk_lines(config, latent, PAPER_SIZE[name]),
            "```",
            "",
            "| GPU | way | micro-batch | memory, GiB | s a step | steps a day | GPU-days | days |",
            "|---|---|---|---|---|---|---|---|",
            *[_gpu_row(config, latent, gpu) for gpu in GPUS.values()],
            "",
        ]
    recorded = (ROOT / "results/measured_steps.jsonl").read_text(encoding="utf-8").splitlines()
    lines += [
        "## Measured",
        "",
        "One optimizer step of one micro-batch on one GPU, invented latents (`magi inspect cost PRESET --measure`).",
        "",
        "| preset | GPU | micro-batch | with | s a step | of the peak | memory, GiB | planned, GiB | torch |",
        "|---|---|---|---|---|---|---|---|---|",
        *[_measured_row(json.loads(line)) for line in recorded],
        "",
    ]
    lines += ["## GPUs", "", "| GPU | TFLOP/s, dense bf16 | memory, GiB | source |", "|---|---|---|---|"]
    lines += [f"| {gpu.name} | {gpu.tflops:g} | {gpu.memory_gib:.0f} | {gpu.source} |" for gpu in GPUS.values()]
    return "\n".join(lines) + "\n"


def _gpu_row(config: Config, latent: LatentShape, gpu: Gpu) -> str:
    for way in ways(PROCESSES, config.training):
        made = fitting(changed(config, **way), latent, gpu, PROCESSES)
        if made is not None:
            told = ("FSDP" if "parallel" in way else "DDP") + (" + recompute" * ("activation_checkpointing" in way))
            return (
                f"| {gpu.name} | {told} | {made.micro_batch} | {made.memory.peak / GIB:.1f} | {made.step_seconds:.2f} "
                f"| {made.steps_a_day:,.0f} | {made.gpu_days:.1f} | {made.gpu_days / PROCESSES:.1f} |"
            )
    return f"| {gpu.name} | does not fit | | | | | | |"


def _measured_row(one: dict[str, Any]) -> str:
    settings = {name: one[name] for name in ("micro_batch", "activation_checkpointing", "compile")}
    config = changed(preset(one["preset"]), **settings)
    gpu = next(gpu for gpu in GPUS.values() if gpu.name == one["gpu"])
    made = plan(config, planned_latent(config), gpu, gpus=1)
    reached = one["micro_batch"] * made.clip.total / one["seconds"] / (gpu.tflops * 1e12)
    told = [name for name, key in (("recompute", "activation_checkpointing"), ("compile", "compile")) if one[key]]
    return (
        f"| `{one['preset']}` | {gpu.name} | {one['micro_batch']} | {', '.join(told) or '-'} | {one['seconds']:.3f} | "
        f"{reached:.0%} | {one['peak_gib']:.1f} | {made.memory.peak / GIB:.1f} | {one['torch']} |"
    )


if __name__ == "__main__":
    write_text(ROOT / "docs/plans.md", document())
