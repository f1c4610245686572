"""The kernel that reads the cache equals the plain attention to it, in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="pip install -e '.[kernels]'")

from magi.model.cache_kernels import SLOTS, read_cache
from magi.model.frame_pass import cached_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(rows: int, slots: int, heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Projections of R new slots, and a cache with room for one more, of numbers large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(rows, 3, heads, width, generator=generator)
    stored = 2 * torch.randn(rows, slots + 1, 2, heads, width, generator=generator)
    return qkv.to(DEVICE, dtype), stored.to(DEVICE, dtype)


@pytest.mark.parametrize("length", [0, 1, SLOTS, SLOTS + 1, 2 * SLOTS + 3])
@pytest.mark.parametrize("width", [16, 20])
def test_the_kernel_equals_the_plain_attention(length: int, width: int) -> None:
    """However full the cache is, in whole tiles or not; what lies after its frames is not read."""
    qkv, stored = drawn(2, 2 * SLOTS + 3, 2, width, torch.float32)
    stored[:, length:] = float("nan")
    expected = cached_attention(qkv.double(), stored[:, :length].double())
    got = read_cache(qkv, stored, torch.tensor([length], device=DEVICE))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_picked_rows_read_their_own_part_of_the_cache() -> None:
    _, stored = drawn(5, 4, 2, 16, torch.float32)
    qkv, _ = drawn(3, 4, 2, 16, torch.float32)
    rows_M = torch.tensor([4, 0, 2], device=DEVICE)
    got = read_cache(qkv, stored, torch.tensor([3], device=DEVICE), rows_M)
    torch.testing.assert_close(got, cached_attention(qkv, stored[rows_M, :3]), rtol=1e-5, atol=1e-5)


def test_scores_too_large_for_exp_are_no_overflow() -> None:
    qkv, stored = drawn(1, SLOTS + 2, 1, 16, torch.float32)
    got = read_cache(30 * qkv, 30 * stored, torch.tensor([SLOTS + 2], device=DEVICE))
    expected = cached_attention(30 * qkv.double(), 30 * stored[:, : SLOTS + 2].double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_is_within_its_rounding() -> None:
    qkv, stored = drawn(2, 5, 2, 16, torch.float16)
    got = read_cache(qkv, stored, torch.tensor([5], device=DEVICE))
    expected = cached_attention(qkv.double(), stored[:, :5].double())
    assert got.dtype == torch.float16
    assert (got.double() - expected).norm() < 1e-3 * expected.norm()
