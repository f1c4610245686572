"""Temporal attention of training as one Triton kernel forward and one backward (paper section 3, both streams).

A program has one position of one clip and one head. All keys it needs are the complete slots of that position, at most
32: one tile, loaded once. It goes over tiles of queries: the complete slots, causal, then one masked view after
another, strictly causal, where a slot's own key is one number a row and no matrix product. Every address is computed
in the layout of the linear layer, (B, S, P, columns), and gradients are written in the same one, so nothing is
permuted, copied or concatenated. The softmax is of one tile: it is computed again in the backward pass, which needs
neither the output nor statistics of it.

Two tiles cover a head width that is no power of two (80 = 64 + 16). Batch, position and head share the first grid
dimension, which has room for 2^31 programs. Needs Triton; the reference is ``slot_attention.dense_slot_attention``.
Importing it makes ``torch.ops.magi.slot_attention`` known, with gradients.
"""

# Arguments of kernels are pointers and compile-time numbers, which have no types in Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALLEST_TILE = 16


@triton.jit
def _load(base, row_T, slot_stride, keep_T, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Rows of a head as two tiles of columns, (T, LOW) and (T, HIGH); the second is the first again if HIGH is 0."""
    column = tl.arange(0, LOW)
    at = base + row_T[:, None] * slot_stride
    low = tl.load(at + column[None, :], mask=keep_T[:, None] & (column < WIDTH)[None, :], other=0.0)
    high = low
    if HIGH > 0:
        rest = LOW + tl.arange(0, HIGH)
        high = tl.load(at + rest[None, :], mask=keep_T[:, None] & (rest < WIDTH)[None, :], other=0.0)
    return low, high


@triton.jit
def _store(base, row_T, slot_stride, keep_T, low, high, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    column = tl.arange(0, LOW)
    at = base + row_T[:, None] * slot_stride
    tl.store(at + column[None, :], low.to(base.dtype.element_ty), mask=keep_T[:, None] & (column < WIDTH)[None, :])
    if HIGH > 0:
        rest = LOW + tl.arange(0, HIGH)
        tl.store(at + rest[None, :], high.to(base.dtype.element_ty), mask=keep_T[:, None] & (rest < WIDTH)[None, :])


@triton.jit
def _rows_by_rows(a_low, a_high, b_low, b_high, HIGH: tl.constexpr, PRECISION: tl.constexpr):
    """Product of each row of a with each row of b, (T, T) float32."""
    product = tl.dot(a_low, tl.trans(b_low), input_precision=PRECISION)
    if HIGH > 0:
        product += tl.dot(a_high, tl.trans(b_high), input_precision=PRECISION)
    return product


@triton.jit
def _row_by_row(a_low, a_high, b_low, b_high, HIGH: tl.constexpr):
    """Product of each row of a with the same row of b, (T,) float32."""
    product = tl.sum(a_low.to(tl.float32) * b_low.to(tl.float32), 1)
    if HIGH > 0:
        product += tl.sum(a_high.to(tl.float32) * b_high.to(tl.float32), 1)
    return product


@triton.jit
def _weights(score, own, keep, SCALE: tl.constexpr):
    """Softmax over the kept scores of a row and its own one (-inf: it has none); the weights of both."""
    score = tl.where(keep, score * SCALE, float("-inf"))
    top = tl.maximum(tl.max(score, 1), own)
    weight = tl.exp(score - top[:, None])
    own_weight = tl.exp(own - top)
    total = tl.sum(weight, 1) + own_weight
    return weight / total[:, None], own_weight / total


@triton.jit
def _place(POSITIONS: tl.constexpr, HEADS: tl.constexpr):
    """Batch (64 bit: offsets of a large batch exceed 32), position and head of this program."""
    program = tl.program_id(0)
    head = program % HEADS
    position = (program // HEADS) % POSITIONS
    batch = (program // (HEADS * POSITIONS)).to(tl.int64)
    return batch, position, head


# fmt: off
# Arguments in lines, not one a line.
@triton.jit
def _forward_tile(
    query, projected, mixed, slot_T, dead, keep_T, attend, k_low, k_high, v_low, v_high,
    query_stride, stride, mixed_stride, OWN: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr,
    SCALE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of the queries of slots ``slot_T`` to the keys they ``attend`` to and, if ``OWN``, to their own."""
    q_low, q_high = _load(query, slot_T - dead, query_stride, keep_T, WIDTH, LOW, HIGH)
    score = _rows_by_rows(q_low, q_high, k_low, k_high, HIGH, PRECISION)
    own = tl.full([T], float("-inf"), tl.float32)
    if OWN:
        own_k_low, own_k_high = _load(projected + KEY_AT, slot_T, stride, keep_T, WIDTH, LOW, HIGH)
        own = _row_by_row(q_low, q_high, own_k_low, own_k_high, HIGH) * SCALE
    weight, own_weight = _weights(score, own, attend, SCALE)
    weight = weight.to(v_low.dtype)
    low = tl.dot(weight, v_low, input_precision=PRECISION)
    high = low
    if HIGH > 0:
        high = tl.dot(weight, v_high, input_precision=PRECISION)
    if OWN:
        own_v_low, own_v_high = _load(projected + VALUE_AT, slot_T, stride, keep_T, WIDTH, LOW, HIGH)
        low += own_weight[:, None] * own_v_low.to(tl.float32)
        if HIGH > 0:
            high += own_weight[:, None] * own_v_high.to(tl.float32)
    _store(mixed, slot_T - dead, mixed_stride, keep_T, low, high, WIDTH, LOW, HIGH)


@triton.jit
def forward_kernel(
    query, projected, mixed, POSITIONS: tl.constexpr, HEADS: tl.constexpr, CAUSAL: tl.constexpr, FRAMES: tl.constexpr,
    VIEWS: tl.constexpr, DEAD: tl.constexpr, QUERY_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr, KEY_AT: tl.constexpr,
    VALUE_AT: tl.constexpr, SCALE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, PRECISION: tl.constexpr,
):
    """``query`` (B, S - DEAD, P, QUERY_COLUMNS), ``projected`` (B, S, P, COLUMNS) to ``mixed`` (B, S - DEAD, P, D)."""
    SLOTS: tl.constexpr = CAUSAL + VIEWS * FRAMES
    batch, position, head = _place(POSITIONS, HEADS)
    query += (batch * (SLOTS - DEAD) * POSITIONS + position) * QUERY_COLUMNS + head * WIDTH
    projected += (batch * SLOTS * POSITIONS + position) * COLUMNS + head * WIDTH
    mixed += (batch * (SLOTS - DEAD) * POSITIONS + position) * (HEADS * WIDTH) + head * WIDTH
    query_stride = POSITIONS * QUERY_COLUMNS
    stride = POSITIONS * COLUMNS
    mixed_stride = POSITIONS * HEADS * WIDTH
    row = tl.arange(0, T)
    known = (row < CAUSAL)[None, :]
    k_low, k_high = _load(projected + KEY_AT, row, stride, row < CAUSAL, WIDTH, LOW, HIGH)
    v_low, v_high = _load(projected + VALUE_AT, row, stride, row < CAUSAL, WIDTH, LOW, HIGH)
    if DEAD < CAUSAL:
        attend = (row[None, :] <= row[:, None]) & known
        _forward_tile(
            query, projected, mixed, row, DEAD, row < CAUSAL, attend, k_low, k_high, v_low, v_high,
            query_stride, stride, mixed_stride, False, KEY_AT, VALUE_AT, SCALE, T, WIDTH, LOW, HIGH, PRECISION,
        )
    for view in range(VIEWS):
        slot = CAUSAL + view * FRAMES + row
        attend = (row[None, :] < row[:, None]) & known
        _forward_tile(
            query, projected, mixed, slot, DEAD, row < FRAMES, attend, k_low, k_high, v_low, v_high,
            query_stride, stride, mixed_stride, True, KEY_AT, VALUE_AT, SCALE, T, WIDTH, LOW, HIGH, PRECISION,
        )


@triton.jit
def _backward_tile(
    query, projected, d_mixed, d_query, d_projected, slot_T, dead, keep_T, attend, k_low, k_high, v_low, v_high,
    d_k_low, d_k_high, d_v_low, d_v_high, query_stride, stride, mixed_stride, OWN: tl.constexpr, KEY_AT: tl.constexpr,
    VALUE_AT: tl.constexpr, SCALE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, PRECISION: tl.constexpr,
):
    """Gradients of the tile's queries and own keys, stored; those of the shared keys and values, added up, returned."""
    q_low, q_high = _load(query, slot_T - dead, query_stride, keep_T, WIDTH, LOW, HIGH)
    d_low, d_high = _load(d_mixed, slot_T - dead, mixed_stride, keep_T, WIDTH, LOW, HIGH)
    score = _rows_by_rows(q_low, q_high, k_low, k_high, HIGH, PRECISION)
    own = tl.full([T], float("-inf"), tl.float32)
    d_own_weight = tl.zeros([T], tl.float32)
    if OWN:
        own_k_low, own_k_high = _load(projected + KEY_AT, slot_T, stride, keep_T, WIDTH, LOW, HIGH)
        own_v_low, own_v_high = _load(projected + VALUE_AT, slot_T, stride, keep_T, WIDTH, LOW, HIGH)
        own = _row_by_row(q_low, q_high, own_k_low, own_k_high, HIGH) * SCALE
        d_own_weight = _row_by_row(d_low, d_high, own_v_low, own_v_high, HIGH)
    weight, own_weight = _weights(score, own, attend, SCALE)
    d_weight = _rows_by_rows(d_low, d_high, v_low, v_high, HIGH, PRECISION)
    mean = tl.sum(weight * d_weight, 1) + own_weight * d_own_weight
    d_score = (weight * (d_weight - mean[:, None]) * SCALE).to(k_low.dtype)
    weight = weight.to(k_low.dtype)
    d_q_low = tl.dot(d_score, k_low, input_precision=PRECISION)
    d_q_high = d_q_low
    d_k_low += tl.dot(tl.trans(d_score), q_low, input_precision=PRECISION)
    d_v_low += tl.dot(tl.trans(weight), d_low, input_precision=PRECISION)
    if HIGH > 0:
        d_q_high = tl.dot(d_score, k_high, input_precision=PRECISION)
        d_k_high += tl.dot(tl.trans(d_score), q_high, input_precision=PRECISION)
        d_v_high += tl.dot(tl.trans(weight), d_high, input_precision=PRECISION)
    if OWN:
        d_own = (own_weight * (d_own_weight - mean) * SCALE)[:, None]
        own_weight = own_weight[:, None]
        d_q_low += d_own * own_k_low.to(tl.float32)
        if HIGH > 0:
            d_q_high += d_own * own_k_high.to(tl.float32)
        own_low, own_high = d_own * q_low.to(tl.float32), d_own * q_high.to(tl.float32)
        _store(d_projected + KEY_AT, slot_T, stride, keep_T, own_low, own_high, WIDTH, LOW, HIGH)
        own_low, own_high = own_weight * d_low.to(tl.float32), own_weight * d_high.to(tl.float32)
        _store(d_projected + VALUE_AT, slot_T, stride, keep_T, own_low, own_high, WIDTH, LOW, HIGH)
    _store(d_query, slot_T - dead, query_stride, keep_T, d_q_low, d_q_high, WIDTH, LOW, HIGH)
    return d_k_low, d_k_high, d_v_low, d_v_high


@triton.jit
def backward_kernel(
    query, projected, d_mixed, d_query, d_projected, POSITIONS: tl.constexpr, HEADS: tl.constexpr,
    CAUSAL: tl.constexpr, FRAMES: tl.constexpr, VIEWS: tl.constexpr, DEAD: tl.constexpr, QUERY_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr, KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr, SCALE: tl.constexpr, T: tl.constexpr,
    WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PRECISION: tl.constexpr,
):
    """Gradients of ``query`` and ``projected`` from that of ``mixed``; layouts as in the forward kernel."""
    SLOTS: tl.constexpr = CAUSAL + VIEWS * FRAMES
    batch, position, head = _place(POSITIONS, HEADS)
    at_query = (batch * (SLOTS - DEAD) * POSITIONS + position) * QUERY_COLUMNS + head * WIDTH
    at = (batch * SLOTS * POSITIONS + position) * COLUMNS + head * WIDTH
    d_mixed += (batch * (SLOTS - DEAD) * POSITIONS + position) * (HEADS * WIDTH) + head * WIDTH
    query += at_query
    d_query += at_query
    projected += at
    d_projected += at
    query_stride = POSITIONS * QUERY_COLUMNS
    stride = POSITIONS * COLUMNS
    mixed_stride = POSITIONS * HEADS * WIDTH
    row = tl.arange(0, T)
    past = row < CAUSAL
    k_low, k_high = _load(projected + KEY_AT, row, stride, past, WIDTH, LOW, HIGH)
    v_low, v_high = _load(projected + VALUE_AT, row, stride, past, WIDTH, LOW, HIGH)
    # Sums over all tiles of queries. A second tile of no columns is not touched.
    SECOND: tl.constexpr = HIGH if HIGH > 0 else LOW
    d_k_low = tl.zeros([T, LOW], tl.float32)
    d_v_low = tl.zeros([T, LOW], tl.float32)
    d_k_high = tl.zeros([T, SECOND], tl.float32)
    d_v_high = tl.zeros([T, SECOND], tl.float32)
    if DEAD < CAUSAL:
        attend = (row[None, :] <= row[:, None]) & past[None, :]
        d_k_low, d_k_high, d_v_low, d_v_high = _backward_tile(
            query, projected, d_mixed, d_query, d_projected, row, DEAD, past, attend, k_low, k_high, v_low, v_high,
            d_k_low, d_k_high, d_v_low, d_v_high, query_stride, stride, mixed_stride, False, KEY_AT, VALUE_AT, SCALE,
            T, WIDTH, LOW, HIGH, PRECISION,
        )
    for view in range(VIEWS):
        slot, keep = CAUSAL + view * FRAMES + row, row < FRAMES
        attend = (row[None, :] < row[:, None]) & past[None, :]
        d_k_low, d_k_high, d_v_low, d_v_high = _backward_tile(
            query, projected, d_mixed, d_query, d_projected, slot, DEAD, keep, attend, k_low, k_high, v_low, v_high,
            d_k_low, d_k_high, d_v_low, d_v_high, query_stride, stride, mixed_stride, True, KEY_AT, VALUE_AT, SCALE,
            T, WIDTH, LOW, HIGH, PRECISION,
        )
    _store(d_projected + KEY_AT, row, stride, past, d_k_low, d_k_high, WIDTH, LOW, HIGH)
    _store(d_projected + VALUE_AT, row, stride, past, d_v_low, d_v_high, WIDTH, LOW, HIGH)


# fmt: on


FORWARD_WARPS, BACKWARD_WARPS = 1, 2
"""Warps of a program; more of them share the registers of its tiles."""


def _numbers(
    query: Tensor | None, projected: Tensor, heads: int, causal: int, frames: int, views: int
) -> dict[str, Any]:
    """The kernels' compile-time numbers; without a ``query`` its columns are in front of the others of each slot."""
    width = projected.shape[-1] // (3 if query is None else 2) // heads
    low = max(SMALLEST_TILE, 1 << (width.bit_length() - 1))
    rest = max(0, width - low)
    return {
        "POSITIONS": projected.shape[2],
        "HEADS": heads,
        "WIDTH": width,
        "CAUSAL": causal,
        "FRAMES": frames,
        "VIEWS": views,
        "DEAD": 0 if query is None else projected.shape[1] - query.shape[1],
        "QUERY_COLUMNS": (projected if query is None else query).shape[-1],
        "COLUMNS": projected.shape[-1],
        "KEY_AT": heads * width if query is None else 0,
        "VALUE_AT": heads * width * (2 if query is None else 1),
        "SCALE": width**-0.5,
        "T": max(SMALLEST_TILE, triton.next_power_of_2(max(causal, frames))),
        "LOW": low,
        "HIGH": max(SMALLEST_TILE, triton.next_power_of_2(rest)) if rest else 0,
        "PRECISION": "ieee" if projected.dtype == torch.float32 else "tf32",
    }


def _grid(projected: Tensor, heads: int) -> tuple[int]:
    return (projected.shape[0] * projected.shape[2] * heads,)


def _mixed_like(query: Tensor | None, projected: Tensor) -> Tensor:
    columns = projected.shape[3] // (3 if query is None else 2)
    return projected.new_empty((*(projected if query is None else query).shape[:3], columns))


def _gradients_like(query: Tensor | None, projected: Tensor) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (query, projected) if tensor is not None]


def run_forward(query: Tensor | None, projected: Tensor, heads: int, causal: int, frames: int, views: int) -> Tensor:
    """The forward kernel: (B, S - DEAD, P, D)."""
    query, projected = None if query is None else query.contiguous(), projected.contiguous()
    mixed, numbers = _mixed_like(query, projected), _numbers(query, projected, heads, causal, frames, views)
    if mixed.numel():
        read = projected if query is None else query
        forward_kernel[_grid(projected, heads)](read, projected, mixed, **numbers, num_warps=FORWARD_WARPS)
    return mixed


def run_backward(
    d_mixed: Tensor, query: Tensor | None, projected: Tensor, heads: int, causal: int, frames: int, views: int
) -> list[Tensor]:
    """Gradients of ``query``, if there is one, and of ``projected``."""
    query, projected = None if query is None else query.contiguous(), projected.contiguous()
    gradients, numbers = _gradients_like(query, projected), _numbers(query, projected, heads, causal, frames, views)
    if d_mixed.numel():
        read = projected if query is None else query
        tensors = (read, projected, d_mixed.contiguous(), gradients[0], gradients[-1])
        backward_kernel[_grid(projected, heads)](*tensors, **numbers, num_warps=BACKWARD_WARPS)
    return gradients


_forward = torch.library.custom_op("magi::slot_attention", run_forward, mutates_args=())
_backward = torch.library.custom_op("magi::slot_attention_backward", run_backward, mutates_args=())
_forward.register_fake(lambda query, projected, *numbers: _mixed_like(query, projected))
_backward.register_fake(lambda d_mixed, query, projected, *numbers: _gradients_like(query, projected))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.numbers = inputs[2:]


def _gradient(ctx: Any, d_mixed: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.magi.slot_attention_backward(d_mixed, *ctx.saved_tensors, *ctx.numbers)
    return *([None] if len(gradients) == 1 else []), *gradients, None, None, None, None


_forward.register_autograd(_gradient, setup_context=_keep)
