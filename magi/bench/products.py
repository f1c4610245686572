"""What the machine can do: matrix products, copies, launches, nodes of a graph; and bf16 products on a CPU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, no_check, relative_error
from magi.bench.runner import time_calls

LAUNCHES = 200


@torch.inference_mode()
def _calibrate(setting: Setting) -> Trial:
    """Peak of a large product and of the model's own shapes, copy bandwidth, cost of a launch and of a graph's node."""
    device, figures = setting.device, {}
    dtype = torch.bfloat16
    shapes = [(64, 64, 64)] if setting.smoke else [(8192, 8192, 8192)]
    if not setting.smoke:
        shapes += [(rows, n, k) for rows in (516, 4128, 33024) for n, k in MODEL_SHAPES]
    for rows, n, k in shapes:
        x = torch.randn(rows, k, device=device, dtype=dtype)
        w = torch.randn(n, k, device=device, dtype=dtype)
        seconds = time_calls(lambda x=x, w=w: F.linear(x, w), setting)  # type: ignore[misc]
        figures[f"TFLOP/s {rows}x{n}x{k}"] = 2 * rows * n * k / seconds / 1e12
    source = torch.empty(2**16 if setting.smoke else 2**31, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    figures["copy GB/s"] = 2 * len(source) / time_calls(lambda: target.copy_(source), setting) / 1e9
    x = torch.zeros(8, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    figures["us a launch"] = time_calls(launches, setting, 3) / LAUNCHES * 1e6
    if device.type == "cuda":
        figures["us a graph node"] = _graph_node(launches, setting)
    return Trial((), check=no_check, metrics=lambda seconds: figures, shapes={"dtype": str(dtype)})


MODEL_SHAPES = ((3840, 1280), (1280, 1280), (5120, 1280), (1280, 5120))
"""Outputs and inputs of the paper's layers."""


def _graph_node(launches: Callable[[], None], setting: Setting) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    return time_calls(graph.replay, setting, 3) / LAUNCHES * 1e6


@torch.inference_mode()
def _cpu_linear(setting: Setting) -> Trial:
    """A layer of the paper's model on 512 rows."""
    rows, inner, outer = (8, 16, 16) if setting.smoke else (512, 1280, 5120)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, inner, generator=generator), torch.randn(outer, inner, generator=generator) / inner**0.5
    x16, w16 = x.bfloat16(), w.bfloat16()

    def check() -> Parity:
        return Parity("bf16 product", relative_error(F.linear(x16, w16), F.linear(x, w)), 1e-2)

    flops = 2 * rows * inner * outer
    return Trial(
        (
            Contender(OURS, torch.inference_mode()(lambda: F.linear(x16, w16)), warmups=3, calls=5),
            Contender("fp32", torch.inference_mode()(lambda: F.linear(x, w)), warmups=3, calls=5),
        ),
        check=torch.inference_mode()(check),
        metrics=lambda seconds: {f"GFLOP/s {name}": flops / time / 1e9 for name, time in seconds.items()},
        shapes={"rows": rows, "inputs": inner, "outputs": outer},
    )


CASES = (
    Case("calib", "cuda", "what the GPU does in this run", "", _calibrate, minutes=0.1),
    Case(
        "cpu.linear",
        "cpu",
        "a layer of the paper's model in bf16",
        "product",
        _cpu_linear,
        (Goal("x fp32", 1.8, 2.2),),
        minutes=0.1,
    ),
)
