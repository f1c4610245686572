"""The kernel that reads the cache equals the plain attention to it, in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="pip install -e '.[kernels]'")

from magi.model.kernels.cache_attention import READING, Reading, read_cache
from magi.model.temporal.softmax import cached_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS = READING.slots


def drawn(rows: int, slots: int, heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Projections of R new slots, and a cache with room for one more, of numbers large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(rows, 3, heads, width, generator=generator)
    stored = 2 * torch.randn(rows, slots + 1, 2, heads, width, generator=generator)
    return qkv.to(DEVICE, dtype), stored.to(DEVICE, dtype)


def at_length(length: int) -> torch.Tensor:
    return torch.tensor([length], device=DEVICE)


@pytest.mark.parametrize("length", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, 2 * SLOTS + 3])
@pytest.mark.parametrize("width", [16, 20, 80])
def test_the_kernel_equals_the_plain_attention(length: int, width: int) -> None:
    """However full the cache is, in whole tiles or not; what lies after its frames is not read."""
    qkv, stored = drawn(2, 2 * SLOTS + 3, 4, width, torch.float32)
    stored[:, length:] = float("nan")
    expected = cached_attention(qkv.double(), stored[:, :length].double())
    got = read_cache(qkv, stored, at_length(length))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "reading", [Reading(1, 16), Reading(2, 1), Reading(4, 2, stages=2), Reading(16, 8, 4, 3, False)]
)
@pytest.mark.parametrize("heads", [3, 6, 16])
def test_a_cache_is_the_same_in_whatever_pieces_it_is_read(reading: Reading, heads: int) -> None:
    """Heads of any number and width: as many at a time as divide them, and in tiles of which not all is there."""
    qkv, stored = drawn(2, 9, heads, 22, torch.float32)
    expected = cached_attention(qkv.double(), stored[:, :9].double())
    got = read_cache(qkv, stored, at_length(9), reading=reading)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_picked_rows_read_their_own_part_of_the_cache() -> None:
    _, stored = drawn(5, 4, 2, 16, torch.float32)
    qkv, _ = drawn(3, 4, 2, 16, torch.float32)
    rows_M = torch.tensor([4, 0, 2], device=DEVICE)
    got = read_cache(qkv, stored, at_length(3), rows_M)
    torch.testing.assert_close(got, cached_attention(qkv, stored[rows_M, :3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", [0.01, 30])
def test_scores_too_large_for_exp_are_no_overflow(own: float) -> None:
    """Whether the largest is that of the new slot, where every sum begins, or a later one."""
    qkv, stored = drawn(1, SLOTS + 2, 1, 16, torch.float32)
    qkv = 30 * qkv
    qkv[:, 1] *= own
    got = read_cache(qkv, 30 * stored, at_length(SLOTS + 2))
    expected = cached_attention(qkv.double(), 30 * stored[:, : SLOTS + 2].double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_within_its_rounding(dtype: torch.dtype) -> None:
    qkv, stored = drawn(2, 5, 2, 16, dtype)
    got = read_cache(qkv, stored, at_length(5))
    expected = cached_attention(qkv.double(), stored[:, :5].double())
    assert got.dtype == dtype
    assert (got.double() - expected).norm() < torch.finfo(dtype).eps * expected.norm()
