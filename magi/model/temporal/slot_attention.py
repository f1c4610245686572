"""Temporal attention of training under a ``SlotPattern``: the reference, two fast paths, and the choice (section 3).

All paths have one signature and one result. They take the projections as the linear layer leaves them, (B, S, P,
columns), and return (B, queries, P, D): positions stay between slots and columns, so the residual stream is never
permuted. ``projected`` holds query, key and value columns of every slot; if the queries of the first slots are dead,
``query_BUPD`` holds those of the others and ``projected`` key and value columns alone.

Of a mask with 2T - 1 slots a quarter is true. The split form has no mask: causal attention of the complete slots, and
for a predicted slot the earlier complete slots and its own key, one number a slot.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from magi.model.teacher_forcing import SlotPattern

SlotAttention = Callable[[Tensor | None, Tensor, SlotPattern, int], Tensor]
"""(query_BUPD or None, projected_BSPE, pattern, heads) -> (B, queries, P, D)."""

KERNEL_FRAMES = 32
"""Largest number of frames of the GPU kernel: keys of a position are one tile."""

KERNEL_HEAD_WIDTH = 128
"""Largest head width of the GPU kernel."""


def slot_attention(query_BUPD: Tensor | None, projected_BSPE: Tensor, pattern: SlotPattern, heads: int) -> Tensor:
    """The fastest path of this device and shape; the one place where it is chosen.

    On a GPU the kernel, on a CPU the split form, both by measurement (``magi bench``: attn.temporal.ctf, cpu.ctf).
    Shapes that the kernel does not take, and a GPU without Triton, go the reference path.
    """
    if projected_BSPE.device.type == "cpu":
        return split_slot_attention(query_BUPD, projected_BSPE, pattern, heads)
    columns = projected_BSPE.shape[-1] // (3 if query_BUPD is None else 2)
    fits = max(pattern.frames, pattern.causal) <= KERNEL_FRAMES and columns // heads <= KERNEL_HEAD_WIDTH
    if fits and projected_BSPE.dtype != torch.float64 and projected_BSPE.is_cuda and has_kernels():
        return kernel_slot_attention(query_BUPD, projected_BSPE, pattern, heads)
    return dense_slot_attention(query_BUPD, projected_BSPE, pattern, heads)


@torch.compiler.assume_constant_result
def has_kernels() -> bool:
    """Whether Triton is there; if so its operators are known to PyTorch afterwards."""
    if importlib.util.find_spec("triton") is None:
        return False
    import magi.model.kernels.temporal_attention  # noqa: F401

    return True


def kernel_slot_attention(
    query_BUPD: Tensor | None, projected_BSPE: Tensor, pattern: SlotPattern, heads: int
) -> Tensor:
    """One Triton kernel forward and one backward for both streams, reading and writing each number once.

    What a slot that attends to itself alone mixes is its own value.
    """
    numbers, alone = (heads, pattern.causal, pattern.frames, pattern.views), pattern.alone
    if not alone:
        return torch.ops.magi.slot_attention(query_BUPD, projected_BSPE, *numbers)
    width = projected_BSPE.shape[-1] // (3 if query_BUPD is None else 2)
    query_BUPD = None if query_BUPD is None else query_BUPD[:, :-alone].contiguous()
    mixed_BQPD = torch.ops.magi.slot_attention(query_BUPD, projected_BSPE[:, :-alone].contiguous(), *numbers)
    return torch.cat([mixed_BQPD, projected_BSPE[:, -alone:, :, -width:]], dim=1)


def dense_slot_attention(query_BUPD: Tensor | None, projected_BSPE: Tensor, pattern: SlotPattern, heads: int) -> Tensor:
    """The reference: PyTorch's fused attention under the boolean mask."""
    q, k, v = _by_position(query_BUPD, projected_BSPE, heads)
    mask = pattern.mask_SS(projected_BSPE.device)[pattern.slots - q.shape[-2] :]
    mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    return rearrange(mixed, "(B P) h Q d -> B Q P (h d)", B=projected_BSPE.shape[0])


def split_slot_attention(query_BUPD: Tensor | None, projected_BSPE: Tensor, pattern: SlotPattern, heads: int) -> Tensor:
    """The split form by plain matrix products, in float32 at least: batched products of bfloat16 are slow on a CPU."""
    q, k, v = _by_position(query_BUPD, projected_BSPE, heads)
    dtype, predicted = torch.promote_types(q.dtype, torch.float32), pattern.slots - pattern.causal
    live = q.shape[-2] - predicted  # queries of causal slots
    with torch.autocast(projected_BSPE.device.type, enabled=False):
        q, k, v = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
        past_k, own_k = k.split([pattern.causal, predicted], dim=-2)
        past_v, own_v = v.split([pattern.causal, predicted], dim=-2)
        past, own_q = _past_keys(pattern, live, q.device), q[..., live:, :]
        score = (q @ past_k.transpose(-1, -2)).masked_fill(~past, -torch.inf)
        # A key more, each row's own; of causal slots it is among the past ones.
        own = F.pad((own_q * own_k).sum(-1, keepdim=True), (0, 0, live, 0), value=-torch.inf)
        weight = torch.cat([score, own], dim=-1).softmax(dim=-1)
        mixed = weight[..., :-1] @ past_v
        mixed = torch.cat([mixed[..., :live, :], mixed[..., live:, :] + weight[..., live:, -1:] * own_v], dim=-2)
    return rearrange(mixed.to(projected_BSPE.dtype), "B P h Q d -> B Q P (h d)")


def _past_keys(pattern: SlotPattern, live: int, device: torch.device) -> Tensor:
    """Which causal slots the last ``live`` + predicted rows attend to, bool (rows, causal)."""
    past_C = torch.arange(pattern.causal, device=device)
    return past_C < torch.cat([past_C[:live] + 1, pattern.past_counts(device)])[:, None]


def _by_position(query_BUPD: Tensor | None, projected_BSPE: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as (B, P, heads, slots, head width), views without a copy."""
    parts = 3 if query_BUPD is None else 2
    columns = rearrange(projected_BSPE, "B S P (n h d) -> n B P h S d", n=parts, h=heads).unbind(0)
    if query_BUPD is None:
        return columns[0], columns[1], columns[2]
    return rearrange(query_BUPD, "B U P (h d) -> B P h U d", h=heads), columns[0], columns[1]
