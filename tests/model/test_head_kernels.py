"""The denoising loop as one kernel: equal to the plain loop, in Triton's interpreter, with one program."""

import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.model.diffusion import cosine_schedule, respace, reverse_table
from magi.model.diffusion_head import DiffusionHead
from magi.sampling.denoise import denoise_tokens

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="pip install -e '.[kernels]'")
STEPS, WIDTH, CHANNELS, CONDITION = 6, 64, 16, 24


def head(blocks: int) -> DiffusionHead:
    """A head whose every weight matters."""
    torch.manual_seed(0)
    made = DiffusionHead(CHANNELS, CONDITION, WIDTH, blocks)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for block in made.blocks:
        block.norm.weight.data.add_(1)  # type: ignore[union-attr, operator]
    return made


CASES = ((3, 2, 8), (3, 2, 5), (3, 1, 16), (3, 1, 9), (2, 2, 8))
"""Residual blocks, halves of guidance and tokens: with every row in use or some of them padding."""


def errors(blocks: int, halves: int, tokens: int) -> tuple[float, float]:
    """Of the plain loop and of the kernel in float32, against the plain loop in float64, over the largest token."""
    from magi.model.head_kernels import PersistentDenoiser

    table = reverse_table(respace(cosine_schedule(1000), STEPS), 10.0)
    made = head(blocks)
    z_GMD, noise_IMC = torch.randn(halves, tokens, CONDITION), torch.randn(STEPS, tokens, CHANNELS)
    with torch.inference_mode():
        plain = denoise_tokens(made, z_GMD, noise_IMC, table, 2.5, 0.8)
        fused = PersistentDenoiser(made, table, programs=1, warps=4)(z_GMD, noise_IMC, 2.5, 0.8)
        exact = denoise_tokens(made.double(), z_GMD.double(), noise_IMC.double(), table, 2.5, 0.8)
    largest = float(exact.abs().max())
    return float((plain - exact).abs().max()) / largest, float((fused - exact).abs().max()) / largest


def tokens_of_equal_columns() -> Tensor:
    """Tokens of a head whose first rows are so nearly constant that rounding takes their variance below 0."""
    from magi.model.head_kernels import PersistentDenoiser

    made = head(1)
    made.input.weight.data.mul_(1e-6)
    made.input.bias.data.fill_(10.1)
    table = reverse_table(respace(cosine_schedule(1000), 2), 10.0)
    with torch.inference_mode():
        return PersistentDenoiser(made, table, programs=1)(
            torch.randn(1, 16, CONDITION), torch.randn(2, 16, CHANNELS), 1, 1
        )


def in_the_interpreter(expression: str) -> Any:
    """What it gives in a process of its own, because the interpreter is chosen when Triton is first imported."""
    words = f"from tests.model.test_head_kernels import *; print(json.dumps({expression}))"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_the_kernel_equals_the_plain_loop() -> None:
    """As near to float64 as the plain loop is: a step may enlarge rounding a hundred times, for both."""
    found, finite = in_the_interpreter(
        "[[errors(*case) for case in CASES], bool(tokens_of_equal_columns().isfinite().all())]"
    )
    assert finite
    for case, (plain, fused) in zip(CASES, found, strict=True):
        assert plain < 1e-3 and fused <= 3 * plain + 1e-6, (case, plain, fused)


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("triton") is None, reason="needs a GPU and Triton")
def test_many_programs_equal_the_plain_loop() -> None:
    """All programs of the grid, in bfloat16, within the error that bfloat16 has against float32.

    Of most tokens: the last bits of a few grow over the steps as they like, on either path.
    """
    from magi.model.head_kernels import PersistentDenoiser

    torch.manual_seed(0)
    made = DiffusionHead(16, 128, 512, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    table = reverse_table(respace(cosine_schedule(1000), 50), 10.0)
    z_GMD, noise_IMC = torch.randn(2, 8, 128), torch.randn(50, 8, 16)
    half = copy.deepcopy(made).cuda().bfloat16()
    inputs = (z_GMD.cuda().bfloat16(), noise_IMC.cuda())
    with torch.inference_mode():
        plain = denoise_tokens(half, *inputs, table, 2.5, 1.0)
        fused = PersistentDenoiser(half, table, programs=64)(*inputs, 2.5, 1.0)
        exact = denoise_tokens(copy.deepcopy(half).float(), inputs[0].float(), inputs[1], table, 2.5, 1.0)
    error = (plain - exact).norm(dim=1).median()
    assert (fused - exact).norm(dim=1).median() <= 1.5 * error
