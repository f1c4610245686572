"""Correctness on a GPU before anything is timed: python runs/gpu_checks.py [DEVICE]; exits with 1 if a check fails.

Each kernel and graph against the plain path, a whole continuation in bf16 against float32, and a training run that is
asked to stop. On a CPU it checks what can run there, at tiny shapes.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from magi import MagiPipeline
from magi.bench.attention import paper_shape, parities
from magi.bench.case import Parity, Setting, relative_error
from magi.bench.frame_parts import HeadLoop, loop_parities, pass_parity
from magi.bench.models import paper_model
from magi.bench.sampling import PAPER, frame_parities
from magi.model import frame_pass
from magi.model.frame_pass import EPSILON
from magi.model.temporal.softmax import cached_attention

STOPPED_CLEANLY = 75
PIXELS = 8.0
"""Mean difference of a continuation in bf16, of 255: trajectories drift apart, and it stays the same kind of video."""


@torch.inference_mode()
def kernels(device: torch.device) -> Iterator[Parity]:
    """The kernels of a pass against the plain functions in float64; bf16 is allowed the plain functions' own error."""
    from magi.model.kernels.add_norm import add_norm
    from magi.model.kernels.cache_attention import read_cache

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    for dtype in (torch.float32, torch.bfloat16):
        qkv, stored = normal(516, 3, 16, 80).to(dtype), normal(516, 41, 2, 16, 80).to(dtype)
        for length in (0, 1, 15, 40):
            count, known = torch.tensor([length], device=device), stored[:, :length]
            exact = cached_attention(qkv.double(), known.double())
            allowed = max(1e-5, 1.5 * relative_error(cached_attention(qkv, known), exact))
            yield Parity(
                f"history of {length}, {dtype}", relative_error(read_cache(qkv, stored, count), exact), allowed
            )
        x, change, weight, bias = (normal(*shape).to(dtype) for shape in [(516, 1280)] * 2 + [(1280,)] * 2)
        exact = frame_pass.add_norm(x.double(), change.double(), (weight.double(), bias.double()))[1]
        plain = frame_pass.add_norm(x, change, (weight, bias))[1]
        found = add_norm(x, change, (weight, bias), EPSILON)[1]
        allowed = max(1e-5, 1.5 * relative_error(plain, exact))
        yield Parity(f"sum and norm, {dtype}", relative_error(found, exact), allowed)


@torch.inference_mode()
def sampling(setting: Setting) -> Iterator[Parity]:
    """Passes, the denoising loop and frames of the paper's model: against the plain sampler, graphs against none."""
    model = paper_model(setting)
    config = PAPER.changed(iterations=4, steps=10)
    yield pass_parity(model, 1, config)
    yield from frame_parities(model, 1, config)
    yield from loop_parities(HeadLoop(model, 16, 10))


def continuation(device: torch.device) -> Iterator[Parity]:
    """The shipped model's 16 frames from 5, in bf16 and in float32 from the same random numbers."""
    pipe = MagiPipeline.from_pretrained("demo", device=device)
    size = pipe.config.data
    generator = torch.Generator().manual_seed(0)
    context = torch.randint(0, 256, (5, size.height, size.width, 3), generator=generator, dtype=torch.uint8)
    videos = [
        pipe(frames=16, context=context, labels=3, seeds=[0], sampling=pipe.config.sampling.changed(precision=format))
        for format in ("bf16", "fp32")
    ]
    rounded, exact = (result.video_BTHWC.float() for result in videos)
    for frames in (range(5, 8), range(8, 12), range(12, 16)):
        difference = float((rounded - exact)[:, list(frames)].abs().mean())
        yield Parity(f"levels of 255 in frames {frames[0]} to {frames[-1]}", difference, PIXELS)


def stopped_training(device: torch.device) -> Iterator[Parity]:
    """SIGTERM ends a training run after its step, with its state saved and the exit code of a clean stop."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        argv = [sys.executable, "-m", "magi", "train", "digits", "--run", str(run), "--device", str(device)]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while not (run / "metrics.jsonl").exists() and time.monotonic() - began < 120 and process.poll() is None:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    yield Parity(f"training ends with {STOPPED_CLEANLY}", abs(code - STOPPED_CLEANLY), 0)


def main(device: torch.device) -> int:
    """Print every difference with what is allowed; 1 if one is above it."""
    setting = Setting(device, smoke=device.type == "cpu")
    checks = [parities(paper_shape(setting, clips=2), device), sampling(setting), continuation(device)]
    if device.type == "cuda":
        checks += [kernels(device), stopped_training(device)]
    failed = 0
    for parity in (parity for check in checks for parity in check):
        failed += not parity.holds
        verdict = "" if parity.holds else "  FAILED"
        print(f"{parity.what:<50} {parity.difference:10.3g}  allowed {parity.allowed:.3g}{verdict}", flush=True)
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")))
