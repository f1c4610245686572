"""Attention of one new slot to the cache as one Triton kernel: what ``frame_pass.cached_attention`` computes.

One program takes one head of one position: it reads that position's past keys and values once, in long runs, and the
new slot's own straight from the projections. The number of past frames is read on the device, so one recorded graph
serves a cache however full. Needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 16
"""Past frames that a program takes at a time."""


@triton.jit
def _read_cache(
    qkv,
    stored,
    rows,
    length_at,
    out,
    row_stride,
    slot_stride,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
    INDEXED: tl.constexpr,
):
    row = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    source = row.to(tl.int64)
    if INDEXED:
        source = tl.load(rows + row)
    length = tl.load(length_at).to(tl.int32)
    d = tl.arange(0, PADDED)
    inside = d < WIDTH
    mine = qkv + row.to(tl.int64) * (3 * HEADS * WIDTH) + head * WIDTH + d
    q = tl.load(mine, mask=inside, other=0.0).to(tl.float32) * scale
    top = tl.sum(q * tl.load(mine + HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32), 0)
    mixed = tl.load(mine + 2 * HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32)
    total = tl.full((), 1.0, tl.float32)
    first = stored + source * row_stride + head * WIDTH + d
    for start in range(0, length, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        seen = (slot < length)[:, None] & inside[None, :]
        at = first[None, :] + slot[:, None].to(tl.int64) * slot_stride
        key = tl.load(at, mask=seen, other=0.0).to(tl.float32)
        value = tl.load(at + HEADS * WIDTH, mask=seen, other=0.0).to(tl.float32)
        score = tl.where(slot < length, tl.sum(q[None, :] * key, 1), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        shrink = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        mixed = mixed * shrink + tl.sum(weight[:, None] * value, 0)
        total = total * shrink + tl.sum(weight, 0)
        top = higher
    target = out + row.to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + d
    tl.store(target, (mixed / total).to(out.dtype.element_ty), mask=inside)


def read_cache(qkv_R3hd: Tensor, stored_RT2hd: Tensor, length: Tensor, rows_M: Tensor | None = None) -> Tensor:
    """Attention of R new slots to the first ``length`` (1,) of T stored ones and themselves: (R, heads, d).

    The new slots are rows ``rows_M`` (long) of the stored ones, or all of them in order.
    """
    count, _, heads, width = qkv_R3hd.shape
    assert qkv_R3hd.is_contiguous() and stored_RT2hd.stride()[2:] == (heads * width, width, 1)
    out_Rhd = torch.empty(count, heads, width, device=qkv_R3hd.device, dtype=qkv_R3hd.dtype)
    _read_cache[(count * heads,)](
        qkv_R3hd,
        stored_RT2hd,
        qkv_R3hd if rows_M is None else rows_M,
        length,
        out_Rhd,
        stored_RT2hd.stride(0),
        stored_RT2hd.stride(1),
        width**-0.5,
        HEADS=heads,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        SLOTS=SLOTS,
        INDEXED=rows_M is not None,
        num_warps=1,
    )
    return out_Rhd
