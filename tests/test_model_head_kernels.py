"""The denoising loop as one kernel: equal to the plain loop, in Triton's interpreter, with one program."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from magi.model.diffusion import cosine_schedule, respace, reverse_table
from magi.model.diffusion_head import DiffusionHead
from magi.sampling.denoise import denoise_tokens

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with GPU builds of torch only")
STEPS, WIDTH, CHANNELS, CONDITION = 6, 64, 16, 24


def head() -> DiffusionHead:
    """A head whose every weight matters."""
    torch.manual_seed(0)
    made = DiffusionHead(CHANNELS, CONDITION, WIDTH, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for block in made.blocks:
        block.norm.weight.data.add_(1)  # type: ignore[union-attr, operator]
    return made


def largest_difference(halves: int, tokens: int, scale: float, temperature: float) -> float:
    """Between kernel and plain loop, over the largest token."""
    from magi.model.head_kernels import PersistentDenoiser

    table = reverse_table(respace(cosine_schedule(1000), STEPS), 10.0)
    z_GMD, noise_IMC = torch.randn(halves, tokens, CONDITION), torch.randn(STEPS, tokens, CHANNELS)
    with torch.inference_mode():
        plain = denoise_tokens(head(), z_GMD, noise_IMC, table, scale, temperature)
        made = PersistentDenoiser(head(), table, programs=1, warps=4)(z_GMD, noise_IMC, scale, temperature)
    return float((plain - made).abs().max() / plain.abs().max())


@needs_triton
@pytest.mark.parametrize(("halves", "tokens"), [(2, 8), (2, 5), (1, 16), (1, 9)])
def test_the_kernel_equals_the_plain_loop(halves: int, tokens: int) -> None:
    """Guided or not, with every row in use or some of them padding."""
    # The interpreter is chosen when Triton is first imported, so it runs in a process of its own.
    words = f"from tests.test_model_head_kernels import *; print(largest_difference({halves}, {tokens}, 2.5, 0.8))"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("triton") is None, reason="needs a GPU and Triton")
def test_many_programs_equal_the_plain_loop() -> None:
    """All programs of the grid, in bfloat16, within the error that bfloat16 has against float32."""
    from magi.model.head_kernels import PersistentDenoiser

    torch.manual_seed(0)
    made = DiffusionHead(16, 128, 512, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    table = reverse_table(respace(cosine_schedule(1000), 50), 10.0)
    z_GMD, noise_IMC = torch.randn(2, 8, 128), torch.randn(50, 8, 16)
    half = made.cuda().bfloat16()
    with torch.inference_mode():
        exact = denoise_tokens(made.float(), z_GMD.cuda(), noise_IMC.cuda(), table, 2.5, 1.0)
        inputs = (z_GMD.cuda().bfloat16(), noise_IMC.cuda())
        plain = denoise_tokens(half, *inputs, table, 2.5, 1.0)
        fused = PersistentDenoiser(half, table, programs=64, warps=4)(*inputs, 2.5, 1.0)
    error = (plain - exact).norm()
    assert (fused - exact).norm() <= 1.5 * error
