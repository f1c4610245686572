"""The paths of attention agree, forward and backward, with and without a mask."""

import pytest
import torch
import torch.nn.functional as F

from magi.model.attention import SHORT_KEYS, attention, short_attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_short_path_equals_the_fused_reference(dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, 7, 8, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]
    attend = torch.ones(7, 7, dtype=torch.bool).tril() if masked else None
    results = []
    for path in (short_attention, lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)):
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
        mixed = path(q, k, v, attend)
        assert mixed.dtype == dtype
        mixed.square().sum().backward()
        results.append((mixed, q.grad, k.grad, v.grad))
    tolerance = 1e-12 if dtype == torch.float64 else 4e-2
    for short, fused in zip(*results, strict=True):
        torch.testing.assert_close(short, fused, rtol=tolerance, atol=tolerance)


def test_autocast_does_not_lower_the_short_path() -> None:
    q, k, v = (torch.randn(2, 5, 8) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = short_attention(q, k, v)
    torch.testing.assert_close(mixed, short_attention(q, k, v), rtol=0, atol=0)


def test_long_sequences_take_the_fused_path() -> None:
    q, k, v = (torch.randn(1, 1, SHORT_KEYS + 1, 8) for _ in range(3))
    torch.testing.assert_close(attention(q, k, v), short_attention(q, k, v), rtol=1e-5, atol=1e-5)
