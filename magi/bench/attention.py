"""Speed of the temporal attention of complete teacher forcing alone.

Every path starts from the projections as the linear layer leaves them and ends in the same layout, so the copies that
a path needs are in its time. Shapes are those of the paper's model (section 3) on 16 frames of 16 x 16 tokens. A path
that a device or version refuses is left out, and the result says why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting, relative_error
from magi.bench.runner import Work, run_each_once
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.slot_attention import (
    SlotAttention,
    dense_slot_attention,
    slot_attention,
    split_slot_attention,
)


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


def packed_flex(pattern: SlotPattern, positions: int, device: torch.device) -> SlotAttention:
    """FlexAttention with all positions of a clip as one sequence, several to a block of 128."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slots, causal = pattern.slots, pattern.causal

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The pattern of one view as a function of slot numbers, within a position."""
        same, q, k = q // slots == k // slots, q % slots, k % slots
        past = (k < causal) & (k <= q) & (q < causal)
        earlier = (k < causal) & (q >= causal) & (k < q - causal)
        return same & (past | earlier | ((q >= causal) & (q == k)))

    blocks = create_block_mask(mask, None, None, positions * slots, positions * slots, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor | None, projected: Tensor, _: SlotPattern, heads: int) -> Tensor:
        qkv = projected.unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 2, 1, 5)  # 3, B, heads, P, S, head width
        q, k, v = qkv.flatten(3, 4).unbind(0)
        out = compiled(q, k, v, block_mask=blocks).unflatten(2, (positions, slots))
        return out.permute(0, 3, 2, 1, 4).flatten(3)

    return attend


# Running


def forward_work(path: SlotAttention, projected: Tensor, shape: AttentionShape) -> Work:
    """One forward pass."""

    def run() -> Tensor:
        with torch.no_grad():
            return path(None, projected, shape.pattern, shape.heads)

    return run


def training_work(
    path: SlotAttention, projected: Tensor, d_out: Tensor, shape: AttentionShape
) -> Callable[[], tuple[Tensor, Tensor]]:
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
    """Ours on the device against the dense mask in float32 on the CPU, from the same numbers, in both formats."""
    small = replace(shape, clips=2, positions=min(shape.positions, 5), dtype=torch.float32)
    found: list[Parity] = []
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        projected = small.projections(torch.device("cpu")).to(dtype)
        d_out = torch.randn_like(projected[..., : small.heads * small.head_width])
        got = training_work(slot_attention, projected.to(device), d_out.to(device), small)()
        expected = training_work(dense_slot_attention, projected.float(), d_out.float(), small)()
        name = f"{str(dtype).removeprefix('torch.')} {{}} against float32 dense mask"
        pairs = zip(("result", "gradient"), got, expected, strict=True)
        found += [Parity(name.format(what), relative_error(one, other), allowed) for what, one, other in pairs]
    return tuple(found)


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
    shapes = {"shape": str(shape), "left out": failed}
    return PreparedCase(candidates, partial(parities, shape, device), metrics=metrics, shapes=shapes)


def cpu_case(setting: Setting) -> PreparedCase:
    """The same on a CPU, of one clip: the split form against the dense mask, and all 2T slots."""
    shape = AttentionShape(1, 256, 4, 48, SlotPattern(15, 16, 1), torch.float32)
    if setting.smoke:
        shape = paper_shape(setting, clips=1)
    naive = replace(shape, pattern=SlotPattern(shape.pattern.frames, shape.pattern.frames, 1))
    low = replace(shape, dtype=torch.bfloat16)

    def training(path: SlotAttention, shape: AttentionShape = shape) -> Work:
        projected = shape.projections(setting.device)
        return training_work(path, projected, torch.randn_like(projected.chunk(3, dim=-1)[0]), shape)

    works: dict[str, Work] = {
        OURS: training(slot_attention),
        "dense mask": training(dense_slot_attention),
        "all 2T slots": training(slot_attention, naive),
        "bf16 forward, ours": forward_work(slot_attention, low.projections(setting.device), low),
        "bf16 forward, dense mask": forward_work(dense_slot_attention, low.projections(setting.device), low),
    }

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {"x dense mask, bf16 forward": seconds["bf16 forward, dense mask"] / seconds["bf16 forward, ours"]}

    candidates = tuple(Candidate(name, run, warmups=2 if name == OURS else 1, calls=5) for name, run in works.items())
    return PreparedCase(
        candidates, partial(parities, shape, setting.device), metrics=metrics, shapes={"shape": str(shape)}
    )
