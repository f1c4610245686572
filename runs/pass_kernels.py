"""Checks and times the kernels of a masked pass by variant: python runs/pass_kernels.py OUT.json (needs a GPU).

One video under guidance of the paper's model: 516 rows of width 1280, 16 heads, bf16. Everything is timed as a captured
graph that goes through more memory than the GPU's caches hold, as a pass does. Kept beside the bench, because the
variants are no baselines of each other.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from magi.bench.case import Setting
from magi.bench.machine import machine_facts
from magi.bench.runner import time_calls
from magi.model import frame_pass
from magi.model.frame_pass import EPSILON, FramePass, cached_attention
from magi.model.kernels.add_norm import add_norm
from magi.model.kernels.cache_attention import Reading, read_cache
from magi.model.kv_cache import KVCache
from magi.sampling.cuda_graphs import Replayed

HALVES, TOKENS, WIDTH, HEADS, LAYERS, ROOM = 2, 256, 1280, 16, 8, 100
ROWS = HALVES * (TOKENS + 2)
READINGS = (
    *(Reading(4, 4, 1, stages) for stages in (1, 2, 3)),
    *(Reading(8, 2, 1, stages) for stages in (1, 2, 3)),
    Reading(4, 4, 1, 1, past_l1=False),
    *(Reading(16, 1, 1, stages) for stages in (1, 4)),
    Reading(2, 8, 1, 1),
    Reading(1, 16, 1, 1),
    Reading(16, 2, 2, 3),
    Reading(16, 4, 4, 1),
    Reading(16, 4, 4, 2),
)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Drawn on the device."""
    return torch.randn(shape, device="cuda", dtype=dtype)


def microseconds(run: Callable[[], object]) -> float:
    """Median of the time on the stream."""
    return time_calls(run, Setting(torch.device("cuda"), rounds=10), calls=1) * 1e6


def recorded(function: Callable[[], object]) -> Callable[[], object]:
    """``function`` as a CUDA graph."""
    return Replayed(function)  # type: ignore[arg-type]


def error(got: Tensor, exact: Tensor) -> float:
    """Relative to the size of what is exact."""
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def checks() -> dict[str, dict[str, float]]:
    """Relative errors against the plain functions in float64, beside those of the plain functions."""
    found = {}
    for dtype, readings in ((torch.float32, READINGS[::4]), (torch.bfloat16, READINGS)):
        qkv, stored = normal(ROWS, 3, HEADS, 80, dtype=dtype), normal(ROWS, 41, 2, HEADS, 80, dtype=dtype)
        rows = torch.randint(0, ROWS, (16,), device="cuda")
        for length in (0, 1, 15, 40):
            count = torch.tensor([length], device="cuda")
            known = stored[:, :length]
            exact = cached_attention(qkv.double(), known.double())
            some = cached_attention(qkv[:16].double(), known[rows].double())
            found[f"cache, {length} frames, {dtype}"] = {
                "picked rows": error(read_cache(qkv[:16].contiguous(), stored, count, rows), some),
                "plain": error(cached_attention(qkv, known), exact),
            } | {str(reading): error(read_cache(qkv, stored, count, reading=reading), exact) for reading in readings}
        x, change, weight, bias = (normal(*shape, dtype=dtype) for shape in [(ROWS, WIDTH)] * 2 + [(WIDTH,)] * 2)
        total, normed = add_norm(x, change, (weight, bias), EPSILON)
        exact = frame_pass.add_norm(x.double(), change.double(), (weight.double(), bias.double()))[1]
        plain_total, plain_normed = frame_pass.add_norm(x, change, (weight, bias))
        found[f"add and norm, {dtype}"] = {
            "sum differs": float((total != plain_total).sum()),
            "normed": error(normed, exact),
            "plain": error(plain_normed, exact),
        }
    return found


def read_layers(qkv: Tensor, stored: Tensor, length_1: Tensor, reading: Reading) -> None:
    """The caches of all layers, one after another."""
    for layer in stored:
        read_cache(qkv, layer, length_1, reading=reading)


def cache_times() -> list[dict[str, Any]]:
    """Reading the cache of one layer after another, by variant and number of past frames."""
    stored = normal(LAYERS, ROWS, ROOM + 1, 2, HEADS, 80)
    qkv = normal(ROWS, 3, HEADS, 80)
    length_1 = torch.tensor([ROOM], device="cuda")
    found = []
    for reading in READINGS:
        run = recorded(partial(read_layers, qkv, stored, length_1, reading))
        times: dict[str, Any] = {"reading": str(reading)}
        for length in (0, 15, ROOM):
            length_1.fill_(length)
            taken = microseconds(run) / LAYERS
            times[f"us at {length}"] = taken
            times[f"GB/s at {length}"] = (length + 2) * ROWS * 2 * WIDTH * 2 / taken / 1e3
        times["us a frame of a pass of 20"] = (times[f"us at {ROOM}"] - times["us at 15"]) / (ROOM - 15) * 20
        found.append(times)
    return found


def repeat(run: Callable[[], object], times: int) -> None:
    """Its results are dropped at once, as a pass drops them."""
    for _ in range(times):
        run()


def norm_times() -> dict[str, float]:
    """A residual sum and its norm, in us."""
    x, change, weight, bias = normal(ROWS, WIDTH), normal(ROWS, WIDTH), normal(WIDTH), normal(WIDTH)
    weights, times = (weight, bias), 20
    variants: dict[str, Callable[[], object]] = {"plain": partial(frame_pass.add_norm, x, change, weights)}
    for warps in (1, 2, 4, 8):
        variants[f"{warps} warps"] = partial(add_norm, x, change, weights, EPSILON, warps)
    return {name: microseconds(recorded(partial(repeat, run, times))) / times for name, run in variants.items()}


def attention_times() -> dict[str, object]:
    """Spatial attention as the pass has it, by what computes it, in us, and how the result lies."""
    qkv, times = normal(HALVES, TOKENS + 2, 3, HEADS, 80), 20
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    run = partial(repeat, partial(F.scaled_dot_product_attention, q, k, v), times)
    found: dict[str, object] = {"chosen": microseconds(recorded(run)) / times}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                strides = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).stride()
                found[backend.name] = {"us": microseconds(recorded(run)) / times, "strides (B, P, h, d)": strides}
        except RuntimeError as refused:
            found[backend.name] = str(refused).splitlines()[0]
    return found


class Parts(nn.Module):
    """What a pass reads of a model, with drawn weights."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=HEADS, width=WIDTH, teacher_forcing="complete")
        self.tokens_per_frame, self.positions = TOKENS, TOKENS + 2
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList(self._block() for _ in range(blocks))
        self.norm, self.embed_token = nn.LayerNorm(WIDTH), nn.Linear(16, WIDTH)
        self.mask_token = nn.Parameter(torch.randn(WIDTH))
        for name, rows in (("observation_position", TOKENS + 2), ("masked_position", TOKENS + 2)):
            setattr(self, name, nn.Parameter(torch.randn(rows, WIDTH)))
        self.head_position = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.space_PD, self.time_TD = normal(TOKENS + 2, WIDTH), normal(16, WIDTH)

    def _block(self) -> nn.Module:
        parts: dict[str, nn.Module] = {}
        for half in ("spatial", "temporal"):
            parts |= {f"{half}_norm": nn.LayerNorm(WIDTH), f"{half}_mlp_norm": nn.LayerNorm(WIDTH)}
            attention = {"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}
            parts[f"{half}_attention"] = nn.ModuleDict(attention)
            parts[f"{half}_mlp"] = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        return nn.ModuleDict(parts)

    def conditioning(self, conditions: object) -> tuple[Tensor, Tensor]:
        """Two condition tokens, and nothing added."""
        return normal(HALVES, 2, WIDTH), normal(HALVES, WIDTH)


Parts.conditioning.tokens = 2  # type: ignore[attr-defined]


def pass_times() -> dict[str, Any]:
    """A masked pass with and without kernels, a block of it, and the kernels of one with their times."""
    tokens_BNC = normal(1, TOKENS, 16)
    masked_BN, picked_Bm = torch.rand(1, TOKENS, device="cuda") < 0.5, torch.arange(8, device="cuda")[None]
    found: dict[str, Any] = {}
    outputs = {}
    for blocks in (2, 8):
        with torch.device("cuda"):
            model = Parts(blocks).bfloat16()
        cache = KVCache.allocate(blocks, ROWS, HEADS, ROOM, 80, model.mask_token)
        cache.stored.normal_()
        for kernels in (False, True):
            torch.manual_seed(0)
            passes = FramePass(model, SimpleNamespace(interval_B=range(HALVES)), HALVES, kernels)  # type: ignore[arg-type]
            run = partial(passes.predict, tokens_BNC, masked_BN, picked_Bm, cache)
            for length in (15, ROOM):
                cache.rewind(length)
                found[f"us, {blocks} blocks, {length} frames, kernels {kernels}"] = microseconds(recorded(run))
            outputs[kernels] = run()
        found[f"difference of kernels, {blocks} blocks"] = error(outputs[True], outputs[False])
    for kernels in (False, True):
        for length in (15, ROOM):
            few, many = (found[f"us, {blocks} blocks, {length} frames, kernels {kernels}"] for blocks in (2, 8))
            found[f"ms, 20 blocks by these, {length} frames, kernels {kernels}"] = (few + (many - few) * 3) / 1e3
    cache.rewind(15)
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        run()
        torch.cuda.synchronize()
    events = sorted(watched.key_averages(), key=lambda event: -event.self_device_time_total)
    found["kernels of 8 blocks"] = [
        {"name": e.key[:100], "calls": e.count, "us a call": e.self_device_time_total / e.count} for e in events[:24]
    ]
    return found


@torch.inference_mode()
def main(out: Path) -> None:
    """Check and measure, and write what was found after each part."""
    torch.manual_seed(0)
    report: dict[str, object] = {"machine": machine_facts(torch.device("cuda"))}
    # Last what a build may not have: a recording that fails can spoil those after it.
    parts = (checks, norm_times, pass_times, cache_times, attention_times)
    for part in parts:
        report[part.__name__] = part()
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
