"""Speed of attention alone: temporal attention of complete teacher forcing, its largest batch, and spatial attention.

Every path starts from the projections as the linear layer leaves them and ends in the same layout, so the copies that
a path needs are in its time. Shapes are the paper's model (section 3) on 16 frames of 16 x 16 tokens. A path that a
device or version refuses is named in the result, with its reason, and left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from magi.bench.case import OURS, Case, Contender, Goal, Parity, Setting, Trial, relative_error
from magi.bench.runner import Work, those_that_run
from magi.model.slot_attention import (
    SlotAttention,
    dense_slot_attention,
    has_kernels,
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


def paper_shape(setting: Setting, clips: int, frames: int = 16) -> AttentionShape:
    """Temporal attention of the paper's model, or a tiny one where the setting asks for it."""
    pattern = SlotPattern(frames - 1, frames, 1)
    if setting.smoke:
        return AttentionShape(2, 3, 2, 16, SlotPattern(3, 4, 1), torch.float32)
    return AttentionShape(clips, 256, 16, 80, pattern, torch.bfloat16)


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
        mixed = compiled(q, k, v, block_mask=blocks)
        return mixed.unflatten(0, projected.shape[:1] + projected.shape[2:3]).permute(0, 3, 1, 2, 4).flatten(3)

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
        mixed = compiled(q, k, v, block_mask=blocks).unflatten(2, (positions, slots))
        return mixed.permute(0, 3, 2, 1, 4).flatten(3)

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


def training_work(path: SlotAttention, projected: Tensor, d_mixed: Tensor, shape: AttentionShape) -> Work:
    """Forward and backward; returns the result and the gradient of the projections."""
    leaf = projected.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        mixed = path(None, leaf, shape.pattern, shape.heads)
        (gradient,) = torch.autograd.grad(mixed, leaf, d_mixed)
        return mixed.detach(), gradient

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
    d_mixed = torch.randn_like(projected[..., : little.heads * little.head_width])
    expected = _result(dense_slot_attention, projected, d_mixed, little)
    found = []
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = (projected.to(device, dtype), d_mixed.to(device, dtype))
        got = _result(slot_attention, *inputs, little)
        if dtype == torch.bfloat16:  # the reference sees the same rounded numbers
            rounded = (projected.to(dtype).float(), d_mixed.to(dtype).float())
            expected = _result(dense_slot_attention, *rounded, little)
        name = str(dtype).removeprefix("torch.")
        for what, one, other in zip(("result", "gradient"), got, expected, strict=True):
            found.append(Parity(f"{name} {what} against float32 dense mask", relative_error(one, other), allowed))
    return tuple(found)


def _result(path: SlotAttention, projected: Tensor, d_mixed: Tensor, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    result: Any = training_work(path, projected, d_mixed, shape)()
    return result


# Cases


def temporal_trial(setting: Setting, clips: int, backward: bool) -> Trial:
    """Temporal attention, forward or forward and backward, against every path that runs here."""
    shape, device = paper_shape(setting, clips), setting.device
    projected = shape.projections(device)
    d_mixed = torch.randn_like(projected[..., : shape.heads * shape.head_width])

    def work(path: Callable[[], SlotAttention]) -> Callable[[], Work]:
        if backward:
            return lambda: training_work(path(), projected, d_mixed, shape)
        return lambda: forward_work(path(), projected, shape)

    makers: dict[str, Callable[[], Work]] = {OURS: work(lambda: slot_attention)}
    makers["SDPA dense mask"] = work(lambda: dense_slot_attention)
    makers["split form"] = work(lambda: split_slot_attention)
    if device.type == "cuda":
        makers["Flex packed"] = work(lambda: packed_flex(shape.pattern, shape.positions, device))
        makers["Flex"] = work(lambda: padded_flex(shape.pattern, device))
    works, failed = those_that_run(makers)
    # Least traffic: q, k, v in, result out; backward those and the result's gradient in, three gradients out.
    least = (4 + 8 if backward else 4) * shape.unit_bytes
    others = [name for name in works if name != OURS]
    works["copy of as many bytes"] = copy_work(least, device)

    def metrics(seconds: Mapping[str, float]) -> dict[str, float]:
        return {
            "x best other": min(seconds[name] for name in others) / seconds[OURS],
            "GB/s of least traffic": least / seconds[OURS] / 1e9,
            "share of copy bandwidth": seconds["copy of as many bytes"] / seconds[OURS],
        }

    contenders = tuple(Contender(name, run, warmups=2, calls=_calls(setting)) for name, run in works.items())
    shapes: dict[str, object] = {"clips": shape.clips, "S": shape.pattern.slots, "P": shape.positions}
    shapes |= {"heads": shape.heads, "head width": shape.head_width, "dtype": str(shape.dtype), "left out": failed}
    return Trial(contenders, lambda: parities(shape, device), metrics=metrics, shapes=shapes)


def _calls(setting: Setting) -> int:
    return 5 if setting.device.type == "cuda" else 1


def warps_trial(setting: Setting) -> Trial:
    """The kernel under other numbers of warps than it chooses: what its choice rests on."""
    shape = paper_shape(setting, 8)
    projected = shape.projections(setting.device)
    d_mixed = torch.randn_like(projected[..., : shape.heads * shape.head_width])
    if setting.device.type == "cpu" or not has_kernels():  # smoke: there is no kernel to vary
        plain = Contender(OURS, training_work(slot_attention, projected, d_mixed, shape))
        return Trial((plain,), lambda: parities(shape, setting.device))
    from magi.model.kernels.temporal_attention import LAUNCH, run_backward, run_forward

    chosen = (LAUNCH.forward_warps, LAUNCH.backward_warps)

    def forward(warps: int) -> Work:
        return lambda: run_forward(projected, projected, shape.heads, shape.pattern, True, warps)

    def backward(warps: int) -> Work:
        return lambda: run_backward(d_mixed, projected, projected, shape.heads, shape.pattern, True, warps)

    makers = {OURS: partial(forward, chosen[0])} | {f"forward {n} warps": partial(forward, n) for n in (1, 2, 4)}
    makers |= {f"backward {n} warps": partial(backward, n) for n in (1, 2, 4)}
    works, failed = those_that_run(makers)
    contenders = tuple(Contender(name, run, calls=10) for name, run in works.items())
    shapes = {"clips": shape.clips, "chosen forward, backward": chosen, "left out": failed}
    return Trial(contenders, lambda: parities(shape, setting.device), shapes=shapes)


def grid_trial(setting: Setting) -> Trial:
    """More sequences than the second dimension of a grid has room for, and offsets beyond 32 bits."""
    shape, device = paper_shape(setting, clips=264, frames=8), setting.device
    projected = shape.projections(device)

    def check() -> tuple[Parity, ...]:
        found = []
        with torch.no_grad():
            mixed = slot_attention(None, projected, shape.pattern, shape.heads)
            for clip in (0, shape.clips - 1):
                one = projected[clip : clip + 1].float()
                expected = dense_slot_attention(None, one, shape.pattern, shape.heads)
                found.append(Parity(f"clip {clip}", relative_error(mixed[clip : clip + 1], expected), 2e-2))
        return tuple(found)

    makers = {OURS: lambda: forward_work(slot_attention, projected, shape)}
    makers["SDPA dense mask"] = lambda: forward_work(dense_slot_attention, projected, shape)
    if device.type == "cuda":
        makers["Flex"] = lambda: forward_work(padded_flex(shape.pattern, device), projected, shape)
    works, failed = those_that_run(makers)
    contenders = tuple(Contender(name, run, warmups=1) for name, run in works.items())
    least = 4 * shape.unit_bytes
    shapes = {"sequences": shape.clips * shape.positions, "S": shape.pattern.slots, "left out": failed}
    return Trial(
        contenders,
        check,
        metrics=lambda seconds: {"GB/s of least traffic": least / seconds[OURS] / 1e9},
        shapes=shapes,
    )


def spatial_trial(setting: Setting) -> Trial:
    """Attention among a slot's positions: PyTorch's own choice, as the model calls it, against each of its backends."""
    slots, heads, places, width = (2, 2, 5, 16) if setting.smoke else (8 * 31, 16, 257, 80)
    dtype = torch.float32 if setting.device.type == "cpu" else torch.bfloat16
    size = (slots, places, 3, heads, width)
    projected = torch.randn(size, device=setting.device, dtype=dtype, requires_grad=True)
    d_mixed = torch.randn(slots, heads, places, width, device=setting.device, dtype=dtype)

    def attend(backends: list[SDPBackend] | None) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in projected.unbind(2))
        if backends is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q, k, v)

    def work(backends: list[SDPBackend] | None) -> Callable[[], Work]:
        return lambda: lambda: torch.autograd.grad(attend(backends), projected, d_mixed)

    makers = {OURS: work(None)}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        makers[name.split("_")[0].lower()] = work([getattr(SDPBackend, name)])
    works, failed = those_that_run(makers)
    operations = 3.5 * 4 * slots * heads * places**2 * width

    def check() -> Parity:
        with torch.no_grad():
            q, k, v = (part.transpose(1, 2) for part in projected.float().unbind(2))
            exact = F.scaled_dot_product_attention(q, k, v)
            return Parity("result against float32", relative_error(attend(None), exact), 2e-2)

    return Trial(
        tuple(Contender(name, run, warmups=2, calls=_calls(setting)) for name, run in works.items()),
        check,
        metrics=lambda seconds: {"TFLOP/s": operations / seconds[OURS] / 1e12},
        shapes={"slots": slots, "heads": heads, "P": places, "head width": width, "left out": failed},
    )


_AIMS = (Goal("x best other", 2.0, 3.0), Goal("share of copy bandwidth", 0.5, 0.6))
_FORWARD_AIMS = (Goal("x best other", 2.0, 3.0), Goal("share of copy bandwidth", 0.5, 0.7))
_TEMPORAL = "temporal attention, both streams, forward and backward, layout copies included"

CASES = (
    Case("attn.temporal.ctf", "cuda", _TEMPORAL, "pass", partial(temporal_trial, clips=8, backward=True), _AIMS, 0.25),
    Case(
        "attn.temporal.ctf.forward",
        "cuda",
        "temporal attention, both streams, forward, layout copies included",
        "pass",
        partial(temporal_trial, clips=32, backward=False),
        _FORWARD_AIMS,
        0.05,
    ),
    Case("attn.temporal.warps", "cuda", "the temporal kernel by number of warps", "pass", warps_trial, (), 0.1),
    Case("attn.grid", "cuda", "temporal attention of 264 clips of 8 frames, forward", "pass", grid_trial, (), 0.1),
    Case("attn.spatial", "cuda", "spatial attention, forward and backward", "pass", spatial_trial, (), 0.1),
)
