"""A residual sum and its LayerNorm as one kernel equal the two operations, in Triton's interpreter without a GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="pip install -e '.[kernels]'")

from magi.model.frame_pass import EPSILON
from magi.model.frame_pass import add_norm as plain
from magi.model.kernels.add_norm import add_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """x, what is added, weight and bias; rows with means far from 0, as residual streams have them."""
    generator = torch.Generator().manual_seed(0)
    x, change = 3 + torch.randn(shape, generator=generator), 2 * torch.randn(shape, generator=generator)
    weight, bias = 1 + torch.randn(2, shape[-1], generator=generator)
    return tuple(values.to(DEVICE, dtype) for values in (x, change, weight, bias))


@pytest.mark.parametrize("shape", [(5, 16), (3, 20), (2, 3, 1280)])
def test_the_kernel_equals_addition_and_layer_norm(shape: tuple[int, ...]) -> None:
    """Widths that are a power of two and that are not; inputs stay as they are."""
    x, change, *weights = drawn(shape)
    before = x.clone(), change.clone()
    total, normed = add_norm(x, change, (weights[0], weights[1]), EPSILON)
    expected = plain(x.double(), change.double(), (weights[0].double(), weights[1].double()))
    torch.testing.assert_close(total.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normed.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before[0]) and torch.equal(change, before[1])


def test_a_row_of_one_number_alone_is_divided_by_epsilon() -> None:
    """The norm of a constant row is the bias, and of a nearly constant one what epsilon makes of it."""
    ones, zeros = torch.ones(2, 20, device=DEVICE), torch.zeros(2, 20, device=DEVICE)
    ones[1, 0] += 1e-3
    weights = torch.ones(20, device=DEVICE), torch.full((20,), 0.5, device=DEVICE)
    _, normed = add_norm(ones, zeros, weights, EPSILON)
    assert torch.equal(normed[0], weights[1])
    torch.testing.assert_close(normed, plain(ones, zeros, weights)[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_plain_path_does(dtype: torch.dtype) -> None:
    """The sum bit for bit; the norm is of the rounded sum, in float32, and rounded once."""
    x, change, weight, bias = drawn((4, 80), dtype)
    total, normed = add_norm(x, change, (weight, bias), EPSILON)
    rounding = torch.finfo(dtype).eps
    if dtype == torch.float16 or DEVICE.type == "cuda":  # the interpreter cuts bf16 off instead of rounding it
        assert torch.equal(total, x + change)
    torch.testing.assert_close(total, x + change, rtol=rounding, atol=0)
    expected = plain(total.double(), torch.zeros_like(total).double(), (weight.double(), bias.double()))[1]
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), expected, rtol=rounding, atol=1e-3)
