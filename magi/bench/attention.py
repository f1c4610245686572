"""Speed of the temporal attention of complete teacher forcing alone.

Every path starts from the projections as the linear layer leaves them and ends in the same layout, so the copies that
a path needs are in its time. Shapes are those of the paper's model (section 3) on 16 frames of 16 x 16 tokens. A path
that a device or version refuses is left out, and the result says why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.runner import Work, run_each_once
from magi.model.slot_attention import (
    SlotAttention,
    dense_slot_attention,
    slot_attention,
    split_slot_attention,
)
from magi.model.teacher_forcing import SlotPattern


@dataclass(frozen=True)
class AttentionShape:
    """Clips, positions, heads and head width, in one number format."""

    clips: int
    positions: int
    heads: int
    head_width: int
    pattern: SlotPattern
    dtype: torch.dtype

    @property
    def unit_bytes(self) -> int:
        """Bytes of one number a slot, position and channel of the model."""
        width = self.heads * self.head_width
        return self.clips * self.pattern.slots * self.positions * width * self.dtype.itemsize

    def projections(self, device: torch.device, seed: int = 0) -> Tensor:
        """Query, key and value columns of every slot, normal."""
        generator = torch.Generator(device).manual_seed(seed)
        size = (self.clips, self.pattern.slots, self.positions, 3 * self.heads * self.head_width)
        return torch.randn(size, device=device, generator=generator, dtype=self.dtype)


def paper_shape(setting: Setting, clips: int) -> AttentionShape:
    """Temporal attention of the paper's model, or a tiny one where the setting asks for it."""
    if setting.smoke:
        return AttentionShape(2, 3, 2, 16, SlotPattern(3, 4, 1), torch.float32)
    return AttentionShape(clips, 256, 16, 80, SlotPattern(15, 16, 1), torch.bfloat16)


# The other paths


def padded_flex(pattern: SlotPattern, device: torch.device) -> SlotAttention:
    """FlexAttention with a position's slots as one sequence."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return _attends(pattern, q, k)

    blocks = create_block_mask(mask, None, None, pattern.slots, pattern.slots, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor | None, projected: Tensor, _: SlotPattern, heads: int) -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in _positions_first(projected, heads))
        out = compiled(q, k, v, block_mask=blocks)
        return out.unflatten(0, projected.shape[:1] + projected.shape[2:3]).permute(0, 3, 1, 2, 4).flatten(3)

    return attend


def packed_flex(pattern: SlotPattern, positions: int, device: torch.device) -> SlotAttention:
    """FlexAttention with all positions of a clip as one sequence, several to a block of 128."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slots = pattern.slots

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q // slots == k // slots) & _attends(pattern, q % slots, k % slots)

    blocks = create_block_mask(mask, None, None, positions * slots, positions * slots, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor | None, projected: Tensor, _: SlotPattern, heads: int) -> Tensor:
        q, k, v = (part.transpose(1, 2).flatten(2, 3) for part in _positions_first(projected, heads))
        out = compiled(q, k, v, block_mask=blocks).unflatten(2, (positions, slots))
        return out.permute(0, 3, 2, 1, 4).flatten(3)

    return attend


def _attends(pattern: SlotPattern, q: Tensor, k: Tensor) -> Tensor:
    """The pattern as FlexAttention wants it, a function of slot numbers; of one view."""
    causal = pattern.causal
    past = (k < causal) & (k <= q) & (q < causal)
    earlier = (k < causal) & (q >= causal) & (k < q - causal)
    return past | earlier | ((q >= causal) & (q == k))


def _positions_first(projected: Tensor, heads: int) -> tuple[Tensor, ...]:
    """q, k, v as (B, P, heads, S, head width)."""
    return projected.unflatten(-1, (3, heads, -1)).permute(3, 0, 2, 4, 1, 5).unbind(0)


# Running


def forward_work(path: SlotAttention, projected: Tensor, shape: AttentionShape) -> Work:
    """One forward pass."""

    def run() -> Tensor:
        with torch.no_grad():
            return path(None, projected, shape.pattern, shape.heads)

    return run


def training_work(path: SlotAttention, projected: Tensor, d_out: Tensor, shape: AttentionShape) -> Work:
    """Forward and backward; returns the result and the gradient of the projections."""
    leaf = projected.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        out = path(None, leaf, shape.pattern, shape.heads)
        (gradient,) = torch.autograd.grad(out, leaf, d_out)
        return out.detach(), gradient

    return run


def copy_work(count: int, device: torch.device) -> Work:
    """Read half of ``count`` bytes and write them elsewhere: what the memory allows for as many bytes."""
    source = torch.zeros(max(1, count // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def parities(shape: AttentionShape, device: torch.device) -> tuple[Parity, ...]:
    """Ours against the reference under the mask: in float32 on the device, in the case's format against the CPU's."""
    little = AttentionShape(2, min(shape.positions, 5), shape.heads, shape.head_width, shape.pattern, torch.float32)
    projected = little.projections(torch.device("cpu"))
    d_out = torch.randn_like(projected[..., : little.heads * little.head_width])
    expected = _result(dense_slot_attention, projected, d_out, little)
    found = []
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = (projected.to(device, dtype), d_out.to(device, dtype))
        got = _result(slot_attention, *inputs, little)
        if dtype == torch.bfloat16:  # the reference sees the same rounded numbers
            rounded = (projected.to(dtype).float(), d_out.to(dtype).float())
            expected = _result(dense_slot_attention, *rounded, little)
        name = str(dtype).removeprefix("torch.")
        for what, one, other in zip(("result", "gradient"), got, expected, strict=True):
            found.append(Parity(f"{name} {what} against float32 dense mask", relative_error(one, other), allowed))
    return tuple(found)


def _result(path: SlotAttention, projected: Tensor, d_out: Tensor, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    result: Any = training_work(path, projected, d_out, shape)()
    return result


def temporal_case(setting: Setting) -> PreparedCase:
    """Temporal attention of 8 clips, forward and backward, against every path that runs here."""
    shape, device = paper_shape(setting, clips=8), setting.device
    projected = shape.projections(device)
    d_out = torch.randn_like(projected[..., : shape.heads * shape.head_width])

    def work(path: Callable[[], SlotAttention]) -> Callable[[], Work]:
        return lambda: training_work(path(), projected, d_out, shape)

    makers = {OURS: work(lambda: slot_attention), "SDPA dense mask": work(lambda: dense_slot_attention)}
    makers["split form"] = work(lambda: split_slot_attention)
    if device.type == "cuda":
        makers["Flex packed"] = work(lambda: packed_flex(shape.pattern, shape.positions, device))
        makers["Flex"] = work(lambda: padded_flex(shape.pattern, device))
    works, failed = run_each_once(makers)
    # Least traffic: q, k, v in, result out; backward those and the result's gradient in, three gradients out.
    least = (4 + 8) * shape.unit_bytes
    others = [name for name in works if name != OURS]
    works["copy of as many bytes"] = copy_work(least, device)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {
            "x best other": min(seconds[name] for name in others) / seconds[OURS],
            "GB/s of least traffic": least / seconds[OURS] / 1e9,
            "share of copy bandwidth": seconds["copy of as many bytes"] / seconds[OURS],
        }

    calls = 5 if device.type == "cuda" else 1
    candidates = tuple(Candidate(name, run, warmups=2, calls=calls) for name, run in works.items())
    shapes: dict[str, object] = {"clips": shape.clips, "S": shape.pattern.slots, "P": shape.positions}
    shapes |= {"heads": shape.heads, "head width": shape.head_width, "dtype": str(shape.dtype), "left out": failed}
    return PreparedCase(candidates, lambda: parities(shape, device), metrics=metrics, shapes=shapes)
