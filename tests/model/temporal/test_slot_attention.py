"""The paths of training's temporal attention agree with the reference under the mask, forward and backward."""

import pytest
import torch
from torch import Tensor

import magi.model.temporal.slot_attention as slot_attention_module
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.slot_attention import SlotAttention, dense_slot_attention, slot_attention, split_slot_attention

HEADS = 2
PATTERNS = [
    SlotPattern(causal=3, frames=4, views=1),
    SlotPattern(causal=3, frames=4, views=3),
    SlotPattern(causal=4, frames=4, views=1),
    SlotPattern(causal=5),
    SlotPattern(causal=0, frames=1, views=2),
]


def inputs(pattern: SlotPattern, pruned: bool, dtype: torch.dtype, width: int = 6) -> tuple[Tensor | None, Tensor]:
    """Projections of 2 clips at 3 positions; with ``pruned`` the queries of the predicted slots alone."""
    generator = torch.Generator().manual_seed(0)
    columns = HEADS * width

    def normal(slots: int, parts: int) -> Tensor:
        return torch.randn(2, slots, 3, parts * columns, generator=generator, dtype=torch.float64).to(dtype)

    if not pruned:
        return None, normal(pattern.slots, 3)
    return normal(pattern.slots - pattern.causal, 1), normal(pattern.slots, 2)


def results(path: SlotAttention, pattern: SlotPattern, given: tuple[Tensor | None, Tensor]) -> list[Tensor]:
    """The result, then the gradients of what it was computed from."""
    leaves = [value.clone().requires_grad_() for value in given if value is not None]
    query, projected = leaves if len(leaves) == 2 else (None, leaves[0])
    mixed = path(query, projected, pattern, HEADS)
    weight = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((mixed.double() * weight).sum(), leaves)
    return [mixed.detach(), *gradients]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("pruned", [False, True])
def test_split_form_equals_the_reference(pattern: SlotPattern, pruned: bool) -> None:
    if pruned and not pattern.views:
        pytest.skip("without predicted slots nothing is pruned")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = inputs(pattern, pruned, dtype)
        for split, dense in zip(
            results(split_slot_attention, pattern, given), results(dense_slot_attention, pattern, given), strict=True
        ):
            torch.testing.assert_close(split, dense, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_within_its_rounding_of_float32() -> None:
    pattern = PATTERNS[1]
    given = inputs(pattern, False, torch.bfloat16)
    exact = results(dense_slot_attention, pattern, (None, given[1].float()))
    for rounded, reference in zip(results(slot_attention, pattern, given), exact, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - reference).norm() < 1e-2 * reference.norm()


def test_views_do_not_see_each_other_and_see_the_past_alike() -> None:
    """Attention of one view, cut out of two, is what it is alone."""
    two, one = SlotPattern(3, 4, 2), SlotPattern(3, 4, 1)
    _, projected = inputs(two, False, torch.float64)
    together = slot_attention(None, projected, two, HEADS)
    for view in range(2):
        own = slice(3 + 4 * view, 7 + 4 * view)
        alone = slot_attention(None, torch.cat([projected[:, :3], projected[:, own]], dim=1), one, HEADS)
        torch.testing.assert_close(together[:, own], alone[:, 3:])
        torch.testing.assert_close(together[:, :3], alone[:, :3])


def test_pruned_queries_are_those_of_the_whole() -> None:
    pattern = PATTERNS[1]
    _, projected = inputs(pattern, False, torch.float64)
    columns = projected.shape[-1] // 3
    whole = slot_attention(None, projected, pattern, HEADS)
    pruned = slot_attention(projected[:, 3:, :, :columns], projected[..., columns:], pattern, HEADS)
    torch.testing.assert_close(pruned, whole[:, 3:])


def test_autocast_does_not_lower_the_split_form() -> None:
    given = inputs(PATTERNS[0], False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = split_slot_attention(*given, PATTERNS[0], HEADS)
    torch.testing.assert_close(mixed, split_slot_attention(*given, PATTERNS[0], HEADS), rtol=0, atol=0)


class OnGpu:
    """As much of a tensor on a GPU as the choice of a path looks at."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (1, 7, 1, 3 * HEADS * width), dtype


@pytest.mark.parametrize(
    ("frames", "width", "dtype", "triton", "path"),
    [
        (16, 80, torch.bfloat16, True, "kernel"),
        (32, 128, torch.float32, True, "kernel"),
        (33, 80, torch.bfloat16, True, "dense"),
        (16, 256, torch.bfloat16, True, "dense"),
        (16, 80, torch.float64, True, "dense"),
        (16, 80, torch.bfloat16, False, "dense"),
    ],
)
def test_a_gpu_takes_the_kernel_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, frames: int, width: int, dtype: torch.dtype, triton: bool, path: str
) -> None:
    for name in ("kernel", "dense", "split"):
        monkeypatch.setattr(slot_attention_module, f"{name}_slot_attention", lambda *_, name=name: name)
    monkeypatch.setattr(slot_attention_module, "has_kernels", lambda: triton)
    pattern = SlotPattern(frames - 1, frames, 1)
    assert slot_attention(None, OnGpu(width, dtype), pattern, HEADS) == path  # type: ignore[arg-type,comparison-overlap]
