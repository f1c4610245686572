"""Attention of one new slot to the cache as one Triton kernel: what ``softmax.cached_attention`` computes.

A program takes some heads of one position and goes over its past frames a few at a time, so that what it reads at once
lies side by side; two tiles of columns cover a head width that is no power of two (80 = 64 + 16), and no lane is idle.
Each of those few slots has a softmax of its own, which grows along the loop without asking the others; they are put
together once, at the end. The number of past frames is read on the device, so one recorded graph serves a cache however
full. Needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Reading:
    """How the cache is read: ``heads`` and ``slots`` (powers of two) a program takes at a time, with ``warps``.

    ``stages`` above 1 fetch the next slots into shared memory while these are computed with. ``past_l1``: what is read
    once does not stay in the small cache.
    """

    heads: int = 4
    slots: int = 4
    warps: int = 1
    stages: int = 1
    past_l1: bool = True


READING = Reading()


# fmt: off
# Arguments in lines, not one a line.
@triton.jit
def _load(base, at_R, keep_R, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, HINT: tl.constexpr):
    """Rows that begin at ``base + at_R`` as tiles (R, LOW) and (R, HIGH); the second is the first if HIGH is 0."""
    column = tl.arange(0, LOW)
    low = tl.load(base + at_R[:, None] + column[None, :], mask=keep_R[:, None], other=0.0, cache_modifier=HINT)
    high = low
    if HIGH > 0:
        rest = LOW + tl.arange(0, HIGH)
        keep = keep_R[:, None] & (rest < WIDTH)[None, :]
        high = tl.load(base + at_R[:, None] + rest[None, :], mask=keep, other=0.0, cache_modifier=HINT)
    return low, high


@triton.jit
def _dot(q_low, q_high, k_low, k_high, HIGH: tl.constexpr):
    """Product of each row with the same row of the keys, (R,) float32."""
    product = tl.sum(q_low * k_low.to(tl.float32), 1)
    if HIGH > 0:
        product += tl.sum(q_high * k_high.to(tl.float32), 1)
    return product


@triton.jit
def _store_heads(
    out, mixed, total, factor, first, HEADS: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sum over the slots' own softmaxes, each times ``factor`` (SLOTS, HEADS), to HEADS rows of ``out``."""
    parts = tl.reshape(mixed, (SLOTS, HEADS, COLUMNS)) * factor[:, :, None]
    column = first + tl.arange(0, COLUMNS)
    at = tl.arange(0, HEADS)[:, None] * WIDTH + column[None, :]
    made = tl.sum(parts, 0) / total[:, None]
    tl.store(out + at, made.to(out.dtype.element_ty), mask=(column < WIDTH)[None, :])


@triton.jit
def read_cache_kernel(
    qkv, stored, rows, length_at, out, row_stride, scale, ALL_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr,
    INDEXED: tl.constexpr, HINT: tl.constexpr,
):
    """``qkv`` (R, 3, heads, width) and ``stored`` (R, T, 2, heads, width) to ``out``."""
    PROGRAMS: tl.constexpr = ALL_HEADS // HEADS
    row = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    first_column = tl.program_id(0) % PROGRAMS * (HEADS * WIDTH)
    source = row
    if INDEXED:
        source = tl.load(rows + row)
    length = tl.load(length_at).to(tl.int32)
    # A row of a tile is one head of one slot.
    r = tl.arange(0, SLOTS * HEADS)
    slot_R = r // HEADS
    head_R = (r % HEADS) * WIDTH
    mine = qkv + row * (3 * ALL_HEADS * WIDTH) + first_column
    k_at = ALL_HEADS * WIDTH
    q_low, q_high = _load(mine, head_R, slot_R >= 0, WIDTH, LOW, HIGH, "")
    k_low, k_high = _load(mine + k_at, head_R, slot_R >= 0, WIDTH, LOW, HIGH, "")
    v_low, v_high = _load(mine + 2 * k_at, head_R, slot_R == 0, WIDTH, LOW, HIGH, "")
    q_low, q_high = q_low.to(tl.float32) * scale, q_high.to(tl.float32) * scale
    # The new slot itself counts with the first of the slots; for the others its score is where they begin.
    top = _dot(q_low, q_high, k_low, k_high, HIGH)
    total = tl.where(slot_R == 0, 1.0, 0.0)
    mixed_low, mixed_high = v_low.to(tl.float32), v_high.to(tl.float32)
    past = stored + source * row_stride + first_column
    at_R = slot_R * (2 * ALL_HEADS * WIDTH) + head_R
    for start in tl.range(0, length, SLOTS, num_stages=STAGES):
        seen = start + slot_R < length
        keys = past + start * (2 * ALL_HEADS * WIDTH)
        k_low, k_high = _load(keys, at_R, seen, WIDTH, LOW, HIGH, HINT)
        v_low, v_high = _load(keys + k_at, at_R, seen, WIDTH, LOW, HIGH, HINT)
        score = tl.where(seen, _dot(q_low, q_high, k_low, k_high, HIGH), float("-inf"))
        higher = tl.maximum(top, score)
        shrink = tl.exp2(top - higher)
        weight = tl.exp2(score - higher)
        top = higher
        total = total * shrink + weight
        mixed_low = mixed_low * shrink[:, None] + weight[:, None] * v_low.to(tl.float32)
        if HIGH > 0:
            mixed_high = mixed_high * shrink[:, None] + weight[:, None] * v_high.to(tl.float32)
    top_SH = tl.reshape(top, (SLOTS, HEADS))
    factor = tl.exp2(top_SH - tl.max(top_SH, 0)[None, :])
    total_H = tl.sum(tl.reshape(total, (SLOTS, HEADS)) * factor, 0)
    out += row * (ALL_HEADS * WIDTH) + first_column
    _store_heads(out, mixed_low, total_H, factor, 0, HEADS, SLOTS, LOW, WIDTH)
    if HIGH > 0:
        _store_heads(out, mixed_high, total_H, factor, LOW, HEADS, SLOTS, HIGH, WIDTH)


# fmt: on


def read_cache(
    qkv_R3hd: Tensor, stored_RT2hd: Tensor, length: Tensor, rows_M: Tensor | None = None, reading: Reading = READING
) -> Tensor:
    """Attention of R new slots to the first ``length`` (1,) of T stored ones and themselves: (R, heads, d).

    The new slots are rows ``rows_M`` (long) of the stored ones, or all of them in order.
    """
    count, _, heads, width = qkv_R3hd.shape
    assert qkv_R3hd.is_contiguous() and stored_RT2hd.stride()[1:] == (2 * heads * width, heads * width, width, 1)
    assert rows_M is None or rows_M.is_contiguous()
    out_Rhd = torch.empty(count, heads, width, device=qkv_R3hd.device, dtype=qkv_R3hd.dtype)
    low = 1 << (width.bit_length() - 1)
    together = min(reading.heads, heads & -heads)  # the largest power of two that divides the heads
    read_cache_kernel[(count * heads // together,)](
        qkv_R3hd,
        stored_RT2hd,
        qkv_R3hd if rows_M is None else rows_M,
        length,
        out_Rhd,
        stored_RT2hd.stride(0),
        width**-0.5 * LOG2_E,
        ALL_HEADS=heads,
        WIDTH=width,
        LOW=low,
        HIGH=triton.next_power_of_2(width - low) if width > low else 0,
        HEADS=together,
        SLOTS=reading.slots,
        STAGES=reading.stages,
        INDEXED=rows_M is not None,
        HINT=".cg" if reading.past_l1 else "",
        num_warps=reading.warps,
    )
    return out_Rhd
