"""Times the denoising loop as one kernel, by number of warps: python runs/head_kernel.py OUT.json (needs a GPU).

Width 1024, 3 blocks, 16 channels, 8 tokens under guidance, 100 steps; each variant as a captured graph, the
modulations that it needs included and timed apart; the error is against the plain loop in float32. Kept beside the
bench, because the variants are no baselines of each other.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from magi.bench.case import Setting
from magi.bench.machine import machine_facts
from magi.bench.runner import time_calls
from magi.model.diffusion import cosine_schedule, respace, reverse_table
from magi.model.diffusion_head import DiffusionHead
from magi.model.head_kernels import PersistentDenoiser
from magi.sampling.denoise import denoise_tokens

STEPS = 100


def microseconds_a_step(run: Callable[[], object]) -> float:
    """Median of the time on the stream."""
    return time_calls(run, Setting(torch.device("cuda"), rounds=10), calls=1) / STEPS * 1e6


def recorded(function: Callable[[], object]) -> Callable[[], None]:
    """``function`` as a CUDA graph."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@torch.inference_mode()
def main(out: Path) -> None:
    """Measure the variants and write them."""
    torch.manual_seed(0)
    head = DiffusionHead(16, 1280, 1024, 3).cuda()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    for block in head.blocks:
        block.norm.weight.data.add_(1)  # type: ignore[union-attr, operator]
    table = reverse_table(respace(cosine_schedule(1000), STEPS), 10.0)
    table = replace(table, timesteps=table.timesteps.cuda())
    z_GMD, noise_IMC = torch.randn(2, 8, 1280).cuda(), torch.randn(STEPS, 8, 16).cuda()
    expected = denoise_tokens(head, z_GMD, noise_IMC, table, 2.5, 1.0)
    narrow, z_GMD = copy.deepcopy(head).bfloat16(), z_GMD.bfloat16()
    plain = denoise_tokens(narrow, z_GMD, noise_IMC, table, 2.5, 1.0)
    z_RD = z_GMD.flatten(0, 1)
    variants = []
    for programs, warps in ((128, 8), (128, 4)):
        kernel = PersistentDenoiser(narrow, table, programs, warps)
        made = kernel(z_GMD, noise_IMC, 2.5, 1.0)
        loop = recorded(partial(kernel, z_GMD, noise_IMC, 2.5, 1.0))
        modulations = recorded(partial(kernel.modulations, z_RD))
        variants.append(
            {
                "programs": programs,
                "warps": warps,
                "us a step": microseconds_a_step(loop),
                "of it modulations": microseconds_a_step(modulations),
                "relative error": float((made - expected).norm() / expected.norm()),
            }
        )
    report = {
        "machine": machine_facts(torch.device("cuda")),
        "relative error of the plain bf16 loop": float((plain - expected).norm() / expected.norm()),
        "variants": variants,
    }
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
