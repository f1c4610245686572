"""Residual addition and the LayerNorm after it as one Triton kernel: what ``frame_pass.add_norm`` computes.

A program takes one row: it is read once and written twice, where the two operations by themselves read it twice more.
At the few rows of one video such operations are launches rather than traffic. Sums are float32. Needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
"""Warps a row: 1,280 numbers in bf16 are 160 loads of 16 bytes."""


# fmt: off
@triton.jit
def add_norm_kernel(
    x, change, weight, bias, total, normed, epsilon, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):
    """``total`` = ``x`` + ``change`` and its LayerNorm ``normed``, rows of WIDTH."""
    first = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    row = tl.load(x + first + column, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(change + first + column, mask=inside, other=0.0).to(tl.float32)
    # What is normed is what is stored, rounded.
    rounded = row.to(total.dtype.element_ty)
    tl.store(total + first + column, rounded, mask=inside)
    row = rounded.to(tl.float32)
    centred = tl.where(inside, row - tl.sum(row, 0) / WIDTH, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    tl.store(normed + first + column, (scaled * factor + shift).to(normed.dtype.element_ty), mask=inside)


# fmt: on


def add_norm(
    x: Tensor, change: Tensor, weights: tuple[Tensor, Tensor], epsilon: float, warps: int = WARPS
) -> tuple[Tensor, Tensor]:
    """x + change and its LayerNorm over the last axis, both as x is; ``weights`` are weight and bias."""
    assert x.is_contiguous() and change.is_contiguous() and x.shape == change.shape
    total, normed = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    add_norm_kernel[(x.numel() // width,)](
        x, change, *weights, total, normed, epsilon, WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=warps
    )
    return total, normed
