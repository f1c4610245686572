"""The whole denoising loop of the diffusion head as one kernel on a GPU (Triton), for the few rows of an iteration.

``sampling`` denoises a handful of tokens in 100 steps, one after another; each step is seven small matrix products with
a LayerNorm between them, so a step costs launches and round trips, not arithmetic. Here one persistent kernel keeps
``programs`` thread blocks alive over all steps: each owns some columns of every product, finds its slice of the weights
in its own cache from the second step on, and meets the others at a barrier after every product.

A LayerNorm needs whole rows, which nobody owns. Its modulated product is therefore split: with a = weight * (1 + scale)
and t = bias * (1 + scale) + shift,

    W (LN(h) a' + t) = (W (a h) - mean W a) / std + W t

where W a and W t depend on timestep and condition only, so they are computed for all steps at once beforehand
(``HeadTables``), and mean and std travel beside a h as sums over each program's columns.

It knows the head and the table of reverse steps; no transformer, no random numbers. Needs Triton; the plain path
is ``magi.sampling.denoise.denoise_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from magi.model.grid_exchange import exchange_place

if TYPE_CHECKING:
    from magi.model.diffusion import ReverseTable
    from magi.model.diffusion_head import DiffusionHead

ROWS = 16
"""Rows of the kernel's products: the smallest tile of a tensor core, and room for 8 tokens under guidance."""

COEFFICIENTS = 8
"""Numbers a reverse step takes from its table, padded to a power of two."""

# As if it were written here: Triton wants its language to be known where a function is from.
_place = triton.jit(FunctionType(exchange_place.__code__, globals()))


@triton.jit
def _wait_for_all(counter, target, PROGRAMS: tl.constexpr):
    """Barrier over the grid: what any program stored before it is visible to all programs after it."""
    if PROGRAMS > 1:
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        arrived = 0
        while arrived < target:
            arrived = tl.inline_asm_elementwise(
                "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [counter], dtype=tl.int32, is_pure=False, pack=1
            )
        tl.debug_barrier()


@triton.jit
def _load_weights(weights, offset, WIDTH: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr):
    """Rows ``offset`` .. of weights (.., WIDTH) as (SPLIT, WIDTH / SPLIT, BN), kept in this program's cache."""
    K: tl.constexpr = WIDTH // SPLIT
    index = tl.arange(0, SPLIT)[:, None, None] * K + tl.arange(0, K)[None, :, None]
    return tl.load(weights + index + (offset + tl.arange(0, BN)[None, None, :]) * WIDTH, eviction_policy="evict_last")


@triton.jit
def _product(rows, weight, WIDTH: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    """(ROWS, BN) float32: rows (ROWS, WIDTH) of everybody times what ``_load_weights`` returned.

    The sum over WIDTH is split in SPLIT parts that different warps take. Rows were written by other programs, so they
    are read past this one's cache.
    """
    K: tl.constexpr = WIDTH // SPLIT
    part = tl.arange(0, SPLIT)[:, None, None] * K
    index = part + tl.arange(0, ROWS)[None, :, None] * WIDTH + tl.arange(0, K)[None, None, :]
    row = tl.load(rows + index, cache_modifier=".cg")
    return tl.sum(tl.dot(row, weight, input_precision="ieee"), axis=0)


@triton.jit
def _mean_and_rstd(sums, WIDTH: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Mean and reciprocal standard deviation of every row, (ROWS,) each, from the sums (2, PROGRAMS, ROWS)."""
    index = tl.arange(0, PROGRAMS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    mean = tl.sum(tl.load(sums + index, cache_modifier=".cg"), axis=0) / WIDTH
    square = tl.sum(tl.load(sums + PROGRAMS * ROWS + index, cache_modifier=".cg"), axis=0) / WIDTH
    # The difference of two sums that are nearly equal may round to below 0.
    return mean, tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + 1e-6)


@triton.jit
def _publish(h, factor, own, rows, sums, program, ROWS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Store factor * h of this program's columns, and its part of the sums of h and of its squares."""
    tl.store(rows + own, (h * factor).to(rows.dtype.element_ty))
    index = program * ROWS + tl.arange(0, ROWS)
    tl.store(sums + index, tl.sum(h, axis=1))
    tl.store(sums + PROGRAMS * ROWS + index, tl.sum(h * h, axis=1))


@triton.jit
def _guided(prediction, weight, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sum over the two halves of the rows with ``weight`` (ROWS,), for both halves again."""
    halves = tl.reshape(prediction * weight[:, None], (2, ROWS // 2, CHANNELS))
    both = tl.broadcast_to(tl.sum(halves, axis=0)[None], (2, ROWS // 2, CHANNELS))
    return tl.reshape(both, (ROWS, CHANNELS))


@triton.jit
def _reverse_step(x_RC, predicted, spread, noise, c, x0_limit):
    """``ReverseTable.step`` with the coefficients at ``c``."""
    clean = tl.load(c) * x_RC + tl.load(c + 1) * predicted
    clean = tl.minimum(tl.maximum(clean, -x0_limit), x0_limit)
    scale = tl.load(c + 6)
    # The last step adds no noise, however large a variance is predicted: inf * 0 is not a number.
    deviation = tl.where(scale == 0, 0.0, tl.exp(tl.load(c + 4) + tl.load(c + 5) * spread) * scale)
    return tl.load(c + 2) * clean + tl.load(c + 3) * x_RC + deviation * noise


@triton.jit
def _residual_block(
    h, weights, tables, exchange, step, block, met, program,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One residual block for this program's columns of h; publishes what the next LayerNorm needs.

    Whatever does not depend on the other programs is loaded before the barrier.
    """
    BN: tl.constexpr = WIDTH // PROGRAMS
    first_ptr, second_ptr, second_bias_ptr = weights
    factor_ptr, gate_ptr, mean_term_ptr, shift_term_ptr = tables
    rows_ptr, hidden_ptr, sums_ptr, counter_ptr = exchange
    column = program * BN + tl.arange(0, BN)
    own = tl.arange(0, ROWS)[:, None] * WIDTH + column[None, :]
    at = (step * BLOCKS + block) * ROWS * WIDTH + own
    # Rows and sums alternate between two places: a slow program may still read what was there.
    read = _place(step, block, BLOCKS)
    write = _place(step, block + 1, BLOCKS)
    first = _load_weights(first_ptr + block * WIDTH * WIDTH, program * BN, WIDTH, BN, SPLIT)
    mean_term = tl.load(mean_term_ptr + at)
    shift_term = tl.load(shift_term_ptr + at)
    _wait_for_all(counter_ptr, met + PROGRAMS, PROGRAMS)
    product = _product(rows_ptr + read * ROWS * WIDTH, first, WIDTH, ROWS, SPLIT)
    mean, rstd = _mean_and_rstd(sums_ptr + read * 2 * PROGRAMS * ROWS, WIDTH, ROWS, PROGRAMS)
    u = (product - mean[:, None] * mean_term) * rstd[:, None] + shift_term
    tl.store(hidden_ptr + own, (u * tl.sigmoid(u)).to(hidden_ptr.dtype.element_ty))
    second = _load_weights(second_ptr + block * WIDTH * WIDTH, program * BN, WIDTH, BN, SPLIT)
    gate = tl.load(gate_ptr + at)
    factor = tl.load(factor_ptr + (step * (BLOCKS + 1) + block + 1) * ROWS * WIDTH + own)
    bias = tl.load(second_bias_ptr + block * WIDTH + column).to(tl.float32)
    _wait_for_all(counter_ptr, met + 2 * PROGRAMS, PROGRAMS)
    h += gate * (_product(hidden_ptr, second, WIDTH, ROWS, SPLIT) + bias[None, :])
    sums = sums_ptr + write * 2 * PROGRAMS * ROWS
    _publish(h, factor, own, rows_ptr + write * ROWS * WIDTH, sums, program, ROWS, PROGRAMS)
    return h


@triton.jit
def _denoise_kernel(
    x_ptr, noise_ptr, coefficient_ptr, input_weight_ptr, input_bias_ptr, output_ptr,
    first_ptr, second_ptr, second_bias_ptr,
    factor_ptr, gate_ptr, mean_term_ptr, shift_term_ptr, output_mean_term_ptr, output_shift_term_ptr,
    rows_ptr, hidden_ptr, sums_ptr, counter_ptr, x0_limit, steps,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, GUIDED: tl.constexpr,
    PROGRAMS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """All reverse steps; step-wise inputs lie in the order of execution."""
    BN: tl.constexpr = WIDTH // PROGRAMS
    TOKENS: tl.constexpr = ROWS // 2 if GUIDED else ROWS
    program = tl.program_id(0)
    weights = (first_ptr, second_ptr, second_bias_ptr)
    tables = (factor_ptr, gate_ptr, mean_term_ptr, shift_term_ptr)
    exchange = (rows_ptr, hidden_ptr, sums_ptr, counter_ptr)
    column = program * BN + tl.arange(0, BN)
    row, channel = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    own = row[:, None] * WIDTH + column[None, :]
    out = row[:, None] * 2 * CHANNELS + tl.arange(0, 2 * CHANNELS)[None, :]
    # Under guidance both halves of the rows are the same tokens.
    token = (row % TOKENS)[:, None] * CHANNELS + channel[None, :]
    x_RC = tl.load(x_ptr + token)
    input_weight = tl.load(input_weight_ptr + channel[:, None] + column[None, :] * CHANNELS)
    input_bias = tl.load(input_bias_ptr + column).to(tl.float32)
    met = 0
    for step in range(steps):
        h = tl.dot(x_RC.to(input_weight.dtype), input_weight, input_precision="ieee") + input_bias[None, :]
        factor = tl.load(factor_ptr + step * (BLOCKS + 1) * ROWS * WIDTH + own)
        begin = _place(step, 0, BLOCKS)
        sums = sums_ptr + begin * 2 * PROGRAMS * ROWS
        _publish(h, factor, own, rows_ptr + begin * ROWS * WIDTH, sums, program, ROWS, PROGRAMS)
        for block in tl.static_range(BLOCKS):
            h = _residual_block(
                h, weights, tables, exchange, step, block, met, program, WIDTH, BLOCKS, ROWS, PROGRAMS, SPLIT
            )
            met += 2 * PROGRAMS
        # The last layer has few outputs: every program computes all of them, which saves one barrier.
        output = _load_weights(output_ptr, 0, WIDTH, 2 * CHANNELS, SPLIT)
        mean_term = tl.load(output_mean_term_ptr + step * ROWS * 2 * CHANNELS + out)
        shift_term = tl.load(output_shift_term_ptr + step * ROWS * 2 * CHANNELS + out)
        noise = tl.load(noise_ptr + step * TOKENS * CHANNELS + token)
        met += PROGRAMS
        last = _place(step, BLOCKS, BLOCKS)
        _wait_for_all(counter_ptr, met, PROGRAMS)
        prediction = _product(rows_ptr + last * ROWS * WIDTH, output, WIDTH, ROWS, SPLIT)
        mean, rstd = _mean_and_rstd(sums_ptr + last * 2 * PROGRAMS * ROWS, WIDTH, ROWS, PROGRAMS)
        prediction = (prediction - mean[:, None] * mean_term) * rstd[:, None] + shift_term
        predicted, spread = tl.split(tl.reshape(prediction, (ROWS, CHANNELS, 2)))
        if GUIDED:
            with_label = row < TOKENS
            guidance = tl.load(coefficient_ptr + step * 8 + 7)
            predicted = _guided(predicted, tl.where(with_label, guidance, 1 - guidance), ROWS, CHANNELS)
            spread = _guided(spread, tl.where(with_label, 1.0, 0.0), ROWS, CHANNELS)
        x_RC = _reverse_step(x_RC, predicted, spread, noise, coefficient_ptr + step * 8, x0_limit)
    if program == 0:
        tl.store(x_ptr + token, x_RC, mask=(row < TOKENS)[:, None])


@dataclass(frozen=True)
class HeadTables:
    """All that an iteration's steps need and that does not depend on the noisy tokens, in the order of execution.

    ``factor`` (I, L + 1, ROWS, W), ``gate``, ``mean_term`` and ``shift_term`` (I, L, ROWS, W), ``output_mean_term`` and
    ``output_shift_term`` (I, ROWS, 2C), noise and variance of a channel side by side; all products are float32.
    """

    factor: Tensor
    gate: Tensor
    mean_term: Tensor
    shift_term: Tensor
    output_mean_term: Tensor
    output_shift_term: Tensor


def head_tables(head: DiffusionHead, z_RD: Tensor, timesteps_I: Tensor) -> HeadTables:
    """Modulations of ROWS conditions at every step, and their products with the weights they go into."""
    blocks: Any = head.blocks
    modulations_IRX = head.modulations(timesteps_I[:, None], z_RD[None])
    *parts, shift, scale = modulations_IRX.chunk(3 * len(blocks) + 2, dim=-1)
    factors, gates, means, shifts = [], [], [], []
    for i, block in enumerate(blocks):
        block_shift, block_scale, gate = parts[3 * i : 3 * i + 3]
        factor = block.norm.weight * (1 + block_scale)
        first = block.mlp[0]
        factors.append(factor)
        gates.append(gate)
        means.append(F.linear(factor, first.weight).float())
        shifts.append(F.linear(block.norm.bias * (1 + block_scale) + block_shift, first.weight, first.bias).float())
    factors.append(1 + scale)
    return HeadTables(
        factor=torch.stack(factors, dim=1),
        gate=torch.stack(gates, dim=1),
        mean_term=torch.stack(means, dim=1),
        shift_term=torch.stack(shifts, dim=1),
        output_mean_term=_side_by_side(F.linear(1 + scale, head.output.weight).float(), -1),
        output_shift_term=_side_by_side(F.linear(shift, head.output.weight, head.output.bias).float(), -1),
    )


def _side_by_side(outputs: Tensor, dim: int) -> Tensor:
    """Reorder 2C outputs so that noise and variance of a channel are neighbours."""
    dim %= outputs.ndim
    return torch.stack(outputs.chunk(2, dim=dim), dim=dim + 1).flatten(dim, dim + 1)


class PersistentDenoiser:
    """The denoising loop of one head and one table of reverse steps.

    Weights are copied, so make it anew after they changed. ``programs`` thread blocks must all be on the GPU at once,
    so no more than it has multiprocessors.
    """

    def __init__(self, head: DiffusionHead, table: ReverseTable, programs: int = 128, warps: int = 4) -> None:
        weight = head.output.weight
        blocks: Any = head.blocks
        width = weight.shape[1]
        self.head, self.programs, self.warps, self.steps = head, programs, warps, len(table)
        self.width, self.channels, self.blocks = width, weight.shape[0] // 2, len(blocks)
        self.split = max(1, min(warps, width // 64))
        device = weight.device
        self.first = torch.stack([block.mlp[0].weight for block in blocks]).contiguous()
        self.second = torch.stack([block.mlp[2].weight for block in blocks]).contiguous()
        self.second_bias = torch.stack([block.mlp[2].bias for block in blocks]).contiguous()
        self.output = _side_by_side(weight, 0).contiguous()
        self.timesteps_I = table.timesteps.flip(0).to(device)
        self.x0_limit = min(table.x0_limit, 1e30)
        self.coefficients = _coefficients(table).to(device)
        self.rows = weight.new_zeros(2, ROWS, width)
        self.hidden = weight.new_zeros(ROWS, width)
        self.sums = torch.zeros(2, 2, programs, ROWS, device=device)
        self.counter = torch.zeros(1, dtype=torch.int32, device=device)

    def __call__(self, z_GMD: Tensor, noise_IMC: Tensor, scale: float | Tensor, temperature: float) -> Tensor:
        """Tokens x_MC float32 of conditions ``z_GMD`` (G halves of M tokens, G M at most ROWS).

        ``noise_IMC`` is as in ``denoise_tokens``: row 0 the start, row i the noise of reverse step i.
        A ``scale`` () on the device may change between replays of a captured call.
        """
        halves, tokens = z_GMD.shape[:2]
        room = ROWS // halves
        assert tokens <= room, f"{tokens} tokens in a kernel for {room}"
        z_RD = F.pad(z_GMD, (0, 0, 0, room - tokens)).flatten(0, 1)
        noise_IMC = F.pad(noise_IMC.float(), (0, 0, 0, room - tokens))
        x_MC = noise_IMC[0].contiguous().clone()
        # Executed last to first; the last step (index 0) adds no noise, which its coefficient says.
        noise_IMC = noise_IMC.flip(0).contiguous()
        coefficients = self.coefficients.clone()
        coefficients[:, 6] *= temperature
        coefficients[:, 7] = scale
        tables = head_tables(self.head, z_RD, self.timesteps_I)
        self.counter.zero_()
        head = self.head
        options: dict[str, Any] = {"launch_cooperative_grid": True} if self.programs > 1 else {}
        _denoise_kernel[(self.programs,)](
            *(x_MC, noise_IMC, coefficients, head.input.weight, head.input.bias, self.output),
            *(self.first, self.second, self.second_bias),
            *(tables.factor, tables.gate, tables.mean_term, tables.shift_term),
            *(tables.output_mean_term, tables.output_shift_term),
            *(self.rows, self.hidden, self.sums, self.counter, self.x0_limit, self.steps),
            WIDTH=self.width,
            CHANNELS=self.channels,
            BLOCKS=self.blocks,
            ROWS=ROWS,
            GUIDED=halves == 2,
            PROGRAMS=self.programs,
            SPLIT=self.split,
            num_warps=self.warps,
            **options,
        )
        return x_MC[:tokens]


def _coefficients(table: ReverseTable) -> Tensor:
    """(I, COEFFICIENTS) float32 in the order of execution; column 6 multiplies the noise and is 0 in the last step,
    column 7 is left for the guidance scale."""
    noise_factor = [0.0] + [1.0] * (len(table) - 1)
    columns = [
        table.x0_from_xt,
        table.x0_from_noise,
        table.mean_from_x0,
        table.mean_from_xt,
        table.log_std,
        table.log_std_slope,
        noise_factor,
        [0.0] * len(table),
    ]
    assert len(columns) == COEFFICIENTS
    return torch.tensor(columns, dtype=torch.float32).T.flip(0).contiguous()
