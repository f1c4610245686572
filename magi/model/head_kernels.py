"""The whole denoising loop of the diffusion head as one kernel on a GPU (Triton), for the few rows of an iteration.

``sampling`` denoises a handful of tokens in 100 steps, one after another; each step is seven small matrix products with
a LayerNorm between them, so a step costs launches and round trips, not arithmetic. Here one persistent kernel keeps
``programs`` thread blocks alive over all steps: each owns some columns of every product, keeps its slice of the weights
in its multiprocessor's shared memory, and meets the others at a barrier after every product.

A LayerNorm needs whole rows, which nobody owns. Its modulated product is therefore split: with a = weight * (1 + scale)
and t = bias * (1 + scale) + shift,

    W (LN(h) a' + t) = (W (a h) - mean W a) / std + W t

where W a and W t depend on timestep and condition only, so they are computed for all steps at once beforehand, by one
product (``kernel_modulation``), and mean and std travel beside a h as sums over each program's columns.

It knows the head and the table of reverse steps; no transformer, no random numbers. Needs Triton; the plain path
is ``magi.sampling.denoise.denoise_tokens``.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from magi.model.grid_exchange import exchange_place
from magi.model.head_tables import coefficients, kernel_modulation, side_by_side

if TYPE_CHECKING:
    from magi.model.diffusion import ReverseTable
    from magi.model.diffusion_head import DiffusionHead

ROWS = 16
"""Rows of the kernel's products: the smallest tile of a tensor core, and room for 8 tokens under guidance."""

WARPS = 8
"""Of a program; each takes a part of the sums of a product."""

# As if it were written here: Triton wants its language to be known where a function is from.
_place = triton.jit(FunctionType(exchange_place.__code__, globals()))


@triton.jit
def _meet(flags, program, meeting, PROGRAMS: tl.constexpr):
    """Barrier over the grid: what any program stored before it is visible to all programs after it.

    Every program raises its own flag to the number of the meeting, and its threads watch everybody's: no counter that
    all add to, and no thread that polls for more than its share.
    """
    tl.debug_barrier()
    if PROGRAMS > 1:
        tl.inline_asm_elementwise(
            """{
            .reg .pred first; .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first st.release.gpu.global.u32 [$1], $2;
            mov.u32 $0, $2;
            }""",
            "=&r,l,r",
            [flags + program, meeting],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.inline_asm_elementwise(
            """{
            .reg .pred early;
            again: ld.acquire.gpu.global.u32 $0, [$1];
            setp.lt.s32 early, $0, $2;
            @early bra again;
            }""",
            "=&r,l,r",
            [flags + tl.arange(0, PROGRAMS), meeting],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.debug_barrier()


@triton.jit
def _weights(weights, offset, WIDTH: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr):
    """Rows ``offset`` .. of weights (.., WIDTH) as (SPLIT, WIDTH / SPLIT, BN)."""
    K: tl.constexpr = WIDTH // SPLIT
    index = tl.arange(0, SPLIT)[:, None, None] * K + tl.arange(0, K)[None, :, None]
    return tl.load(weights + index + (offset + tl.arange(0, BN)[None, None, :]) * WIDTH)


@triton.jit
def _exchanged(rows, sums, WIDTH: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr, SPLIT: tl.constexpr):
    """Everybody's rows (SPLIT, ROWS, WIDTH / SPLIT), and sums of h and of its squares, (PROGRAMS, ROWS) each.

    Others wrote them, so they are read past this program's cache; all are on their way before any is used.
    """
    index = tl.arange(0, PROGRAMS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    row = _rows(rows, WIDTH, ROWS, SPLIT)
    total = tl.load(sums + index, cache_modifier=".cg")
    square = tl.load(sums + PROGRAMS * ROWS + index, cache_modifier=".cg")
    return row, total, square


@triton.jit
def _rows(rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    """Rows (ROWS, WIDTH) of everybody as (SPLIT, ROWS, WIDTH / SPLIT)."""
    K: tl.constexpr = WIDTH // SPLIT
    part = tl.arange(0, SPLIT)[:, None, None] * K
    index = part + tl.arange(0, ROWS)[None, :, None] * WIDTH + tl.arange(0, K)[None, None, :]
    return tl.load(rows + index, cache_modifier=".cg")


@triton.jit
def _product(row, weight):
    """(ROWS, BN) float32 of what ``_rows`` and ``_weights`` returned: parts of the sum are different warps'."""
    return tl.sum(tl.dot(row, weight, input_precision="ieee"), axis=0)


@triton.jit
def _both_sums(a, b, c, d):
    return a + c, b + d


@triton.jit
def _mean_and_rstd(total, square, WIDTH: tl.constexpr):
    """Mean and reciprocal standard deviation of every row, (ROWS,) each, from the sums of every program."""
    total, square = tl.reduce((total, square), 0, _both_sums)
    mean = total / WIDTH
    # The difference of two sums that are nearly equal may round to below 0.
    return mean, tl.rsqrt(tl.maximum(square / WIDTH - mean * mean, 0.0) + 1e-6)


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
    h, first, second, second_bias, modulation, exchange, step, block, met, program,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One residual block for this program's columns of h; publishes what the next LayerNorm needs.

    ``modulation`` points to this step's at this program's columns, so what does not depend on the other programs is
    loaded before a barrier.
    """
    BN: tl.constexpr = WIDTH // PROGRAMS
    rows_ptr, hidden_ptr, sums_ptr, flags_ptr = exchange
    own = tl.arange(0, ROWS)[:, None] * WIDTH + (program * BN + tl.arange(0, BN))[None, :]
    # Rows and sums alternate between two places: a slow program may still read what was there.
    read = _place(step, block, BLOCKS)
    write = _place(step, block + 1, BLOCKS)
    mean_term = tl.load(modulation + (2 * BLOCKS + 1 + block) * WIDTH).to(tl.float32)
    shift_term = tl.load(modulation + (3 * BLOCKS + 1 + block) * WIDTH).to(tl.float32)
    _meet(flags_ptr, program, met + 1, PROGRAMS)
    sums = sums_ptr + read * 2 * PROGRAMS * ROWS
    row, total, square = _exchanged(rows_ptr + read * ROWS * WIDTH, sums, WIDTH, ROWS, PROGRAMS, SPLIT)
    mean, rstd = _mean_and_rstd(total, square, WIDTH)
    u = (_product(row, first) - mean[:, None] * mean_term) * rstd[:, None] + shift_term
    tl.store(hidden_ptr + own, (u * tl.sigmoid(u)).to(hidden_ptr.dtype.element_ty))
    gate = tl.load(modulation + (BLOCKS + 1 + block) * WIDTH).to(tl.float32)
    factor = tl.load(modulation + (block + 1) * WIDTH).to(tl.float32)
    _meet(flags_ptr, program, met + 2, PROGRAMS)
    h += gate * (_product(_rows(hidden_ptr, WIDTH, ROWS, SPLIT), second) + second_bias[None, :])
    sums = sums_ptr + write * 2 * PROGRAMS * ROWS
    _publish(h, factor, own, rows_ptr + write * ROWS * WIDTH, sums, program, ROWS, PROGRAMS)
    return h


@triton.jit
def _last_layer(
    output, terms, exchange, step, met, program, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, PROGRAMS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Noise and variance (ROWS, CHANNELS) each: it has few outputs, so every program computes all, a barrier less."""
    rows_ptr, _hidden_ptr, sums_ptr, flags_ptr = exchange
    terms += tl.arange(0, 2 * CHANNELS)[None, :]
    mean_term = tl.load(terms).to(tl.float32)
    shift_term = tl.load(terms + 2 * CHANNELS).to(tl.float32)
    last = _place(step, BLOCKS, BLOCKS)
    _meet(flags_ptr, program, met, PROGRAMS)
    sums = sums_ptr + last * 2 * PROGRAMS * ROWS
    row, total, square = _exchanged(rows_ptr + last * ROWS * WIDTH, sums, WIDTH, ROWS, PROGRAMS, SPLIT)
    mean, rstd = _mean_and_rstd(total, square, WIDTH)
    prediction = (_product(row, output) - mean[:, None] * mean_term) * rstd[:, None] + shift_term
    return tl.split(tl.reshape(prediction, (ROWS, CHANNELS, 2)))


@triton.jit
def _denoise_kernel(
    x_ptr, noise_ptr, coefficient_ptr, input_weight_ptr, input_bias_ptr, output_ptr,
    first_ptr, second_ptr, second_bias_ptr, modulation_ptr,
    rows_ptr, hidden_ptr, sums_ptr, flags_ptr, x0_limit, steps,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, GUIDED: tl.constexpr,
    PROGRAMS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """All reverse steps; step-wise inputs lie in the order of execution."""
    BN: tl.constexpr = WIDTH // PROGRAMS
    TOKENS: tl.constexpr = ROWS // 2 if GUIDED else ROWS
    MODULATIONS: tl.constexpr = (4 * BLOCKS + 1) * WIDTH + 4 * CHANNELS
    program = tl.program_id(0)
    exchange = (rows_ptr, hidden_ptr, sums_ptr, flags_ptr)
    column = program * BN + tl.arange(0, BN)
    row, channel = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    own = row[:, None] * WIDTH + column[None, :]
    # Under guidance both halves of the rows are the same tokens.
    token = (row % TOKENS)[:, None] * CHANNELS + channel[None, :]
    x_RC = tl.load(x_ptr + token)
    input_weight = tl.load(input_weight_ptr + channel[:, None] + column[None, :] * CHANNELS)
    input_bias = tl.load(input_bias_ptr + column).to(tl.float32)
    # This program's weights stay in shared memory, where products want them, over all steps: a barrier empties caches.
    first, second, second_bias = (), (), ()
    for block in tl.static_range(BLOCKS):
        at = block * WIDTH * WIDTH
        first += (_weights(first_ptr + at, program * BN, WIDTH, BN, SPLIT),)  # type: ignore[assignment]
        second += (_weights(second_ptr + at, program * BN, WIDTH, BN, SPLIT),)  # type: ignore[assignment]
        bias = tl.load(second_bias_ptr + block * WIDTH + column).to(tl.float32)
        second_bias += (bias,)  # type: ignore[assignment]
    output = _weights(output_ptr, 0, WIDTH, 2 * CHANNELS, SPLIT)
    met = 0
    # One stage: nothing of a step may be fetched before the barrier after which it is there.
    for step in tl.range(0, steps, num_stages=1):
        at_row = modulation_ptr + (step * ROWS + row[:, None]) * MODULATIONS
        modulation = at_row + column[None, :]
        h = tl.dot(x_RC.to(input_weight.dtype), input_weight, input_precision="ieee") + input_bias[None, :]
        factor = tl.load(modulation).to(tl.float32)
        begin = _place(step, 0, BLOCKS)
        sums = sums_ptr + begin * 2 * PROGRAMS * ROWS
        _publish(h, factor, own, rows_ptr + begin * ROWS * WIDTH, sums, program, ROWS, PROGRAMS)
        for block in tl.static_range(BLOCKS):
            h = _residual_block(
                h, first[block], second[block], second_bias[block], modulation, exchange, step, block, met, program,
                WIDTH, BLOCKS, ROWS, PROGRAMS, SPLIT,
            )  # fmt: skip
            met += 2
        noise = tl.load(noise_ptr + step * TOKENS * CHANNELS + token)
        met += 1
        last_terms = at_row + (4 * BLOCKS + 1) * WIDTH
        predicted, spread = _last_layer(
            output, last_terms, exchange, step, met, program, WIDTH, CHANNELS, BLOCKS, ROWS, PROGRAMS, SPLIT
        )
        if GUIDED:
            with_label = row < TOKENS
            guidance = tl.load(coefficient_ptr + step * 8 + 7)
            predicted = _guided(predicted, tl.where(with_label, guidance, 1 - guidance), ROWS, CHANNELS)
            spread = _guided(spread, tl.where(with_label, 1.0, 0.0), ROWS, CHANNELS)
        x_RC = _reverse_step(x_RC, predicted, spread, noise, coefficient_ptr + step * 8, x0_limit)
    if program == 0:
        tl.store(x_ptr + token, x_RC, mask=(row < TOKENS)[:, None])


def shared_bytes(head: DiffusionHead, programs: int) -> int:
    """Shared memory of one of ``programs`` thread blocks: its share of the weights of L blocks of width W, the output
    layer, the rows of a product, and what reductions take. 193 KiB at the paper's head in bf16 and 128 of them.
    """
    width, size = head.input.out_features, head.input.weight.element_size()
    weights = 2 * len(head.blocks) * width * width // programs + head.output.out_features * width
    return size * (weights + ROWS * width) + 2048


def has_room(head: DiffusionHead, programs: int) -> bool:
    """Whether a thread block of the head's GPU may take so much: an H100's may take 227 KiB, an A100's 163."""
    device = head.input.weight.device
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return shared_bytes(head, programs) <= properties["max_shared_mem"]


class PersistentDenoiser:
    """The denoising loop of one head and one table of reverse steps.

    Weights are copied, so make it anew after they changed. ``programs`` thread blocks must all be on the GPU at once,
    so no more than it has multiprocessors, and ``has_room`` says whether one fits.
    """

    def __init__(self, head: DiffusionHead, table: ReverseTable, programs: int = 128, warps: int = WARPS) -> None:
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
        self.output = side_by_side(weight).contiguous()
        self.modulation = kernel_modulation(head)
        # The order of execution is from the last step to the first.
        self.time_I1W = head.timestep(table.timesteps.flip(0).to(device))[:, None]
        self.x0_limit = min(table.x0_limit, 1e30)
        self.coefficients = coefficients(table).to(device)
        self.rows = weight.new_zeros(2, ROWS, width)
        self.hidden = weight.new_zeros(ROWS, width)
        self.sums = torch.zeros(2, 2, programs, ROWS, device=device)
        self.flags = torch.zeros(programs, dtype=torch.int32, device=device)

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
        # The last step executed (index 0) adds no noise, which its coefficient says.
        noise_IMC = noise_IMC.flip(0).contiguous()
        steps = self.coefficients.clone()
        steps[:, 6] *= temperature
        steps[:, 7] = scale
        modulations_IRX = self.modulations(z_RD)
        self.flags.zero_()
        head = self.head
        options: dict[str, Any] = {"launch_cooperative_grid": True} if self.programs > 1 else {}
        _denoise_kernel[(self.programs,)](
            *(x_MC, noise_IMC, steps, head.input.weight, head.input.bias, self.output),
            *(self.first, self.second, self.second_bias, modulations_IRX),
            *(self.rows, self.hidden, self.sums, self.flags, self.x0_limit, self.steps),
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

    def modulations(self, z_RD: Tensor) -> Tensor:
        """What ``kernel_modulation`` gives for ROWS conditions at every step, (I, ROWS, (4 L + 1) W + 4 C)."""
        return F.linear(F.silu(self.time_I1W + self.head.condition(z_RD)), *self.modulation)
