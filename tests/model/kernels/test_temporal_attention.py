"""The Triton kernel of temporal attention equals the reference, run by Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="pip install -e '.[kernels]'")

from magi.config import ModelConfig
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.slot_attention import dense_slot_attention, has_kernels, kernel_slot_attention
from magi.model.transformer import Block

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compared(
    pattern: SlotPattern, width: int, pruned: bool, size: tuple[int, int, int], dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Result and gradients of the kernel, beside the reference's in float64; ``size``: clips, positions, heads."""
    assert has_kernels()
    clips, positions, heads = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(pattern.slots - pattern.causal, 1), (pattern.slots, 2)] if pruned else [(pattern.slots, 3)]
    given = [
        torch.randn(clips, slots, positions, parts * heads * width, generator=generator).to(DEVICE, dtype)
        for slots, parts in shapes
    ]
    found = []
    for path, precision in ((kernel_slot_attention, dtype), (dense_slot_attention, torch.float64)):
        leaves = [value.to(precision, copy=True).requires_grad_() for value in given]
        mixed = path(leaves[0] if pruned else None, leaves[-1], pattern, heads)
        weight = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
        found.append([mixed, *torch.autograd.grad(mixed, leaves, weight.to(precision))])
    return list(zip(*found, strict=True))


@pytest.mark.parametrize(
    ("pattern", "width", "pruned", "size"),
    [
        (SlotPattern(3, 4, 1), 20, False, (2, 2, 2)),  # two tiles of columns, the second with room left
        (SlotPattern(3, 4, 2), 20, True, (2, 1, 2)),
        (SlotPattern(15, 16, 2), 80, False, (1, 1, 1)),  # the paper's
        (SlotPattern(16, 0, 0), 16, False, (1, 2, 1)),  # masked teacher forcing
        (SlotPattern(4, 4, 1), 8, False, (1, 1, 2)),  # a head narrower than a tile
        (SlotPattern(19, 20, 1), 32, True, (1, 1, 1)),  # two tiles of keys
        (SlotPattern(0, 1, 2), 16, False, (1, 1, 1)),  # images
    ],
    ids=str,
)
def test_kernel_equals_the_reference(
    pattern: SlotPattern, width: int, pruned: bool, size: tuple[int, int, int]
) -> None:
    for got, expected in compared(pattern, width, pruned, size, torch.float32):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_within_its_rounding() -> None:
    """The interpreter has no products of bfloat16, so float16 stands in for it there."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    for got, expected in compared(SlotPattern(3, 4, 1), 16, False, (1, 1, 2), dtype):
        assert got.dtype == dtype
        assert (got.double() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.slow
def test_a_block_is_one_graph_around_the_kernel() -> None:
    """torch.compile sees an operator with a shape and a gradient, not the kernel."""
    pattern = SlotPattern(2, 3, 1)
    with DEVICE:
        block = Block(ModelConfig(width=32, blocks=1, heads=2, dropout=0.0))
        x_BSPD = torch.randn(1, pattern.slots, 1, 32, requires_grad=True)
    assert has_kernels()
    block.temporal_attention.mix = kernel_slot_attention
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for first_query in (0, pattern.causal):
        plain, traced = (run(x_BSPD, pattern, first_query) for run in (block, compiled))
        torch.testing.assert_close(plain, traced)
        expected, got = (torch.autograd.grad(y.square().sum(), x_BSPD)[0] for y in (plain, traced))
        torch.testing.assert_close(got, expected)
