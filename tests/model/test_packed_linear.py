"""A packed layer is the layer."""

import pytest
import torch
import torch.nn.functional as F

from magi.model.packed_linear import LEAST_WEIGHTS, PackedLinear, can_pack


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("shape", [(1, 520), (2, 4, 520), (3, 1, 40, 520)])
def test_a_packed_layer_is_the_layer(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(512, 520, generator=generator) / 520**0.5).to(dtype)
    bias, x = torch.randn(512, generator=generator).to(dtype), torch.randn(shape, generator=generator).to(dtype)
    layer = PackedLinear(weight, bias)
    assert weight.numel() >= LEAST_WEIGHTS
    assert (layer.packed is not None) == can_pack(weight)
    with torch.inference_mode():
        expected = F.linear(x, weight, bias)
        torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(layer.with_gelu(x), F.gelu(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("outputs", [24, 512])
def test_a_layer_in_another_format_rounds_its_inputs_and_gives_that_format(outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(outputs, 64, generator=generator) / 8, torch.randn(outputs, generator=generator)
    x = torch.randn(3, 64, generator=generator)
    layer = PackedLinear(weight, bias, torch.bfloat16)
    assert (layer.packed is not None) == can_pack(weight.bfloat16()), "small ones too"
    with torch.inference_mode():
        expected = F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.bfloat16().double())
        for part, columns in zip((layer, *layer.split(8)), (slice(None), slice(0, 8), slice(8, None)), strict=True):
            got = part(x)
            assert got.dtype == torch.bfloat16
            torch.testing.assert_close(got.double(), expected[:, columns], atol=2e-2, rtol=2e-2)


def test_small_layers_and_other_formats_are_left_as_they_are() -> None:
    assert PackedLinear(torch.zeros(8, 8), torch.zeros(8)).packed is None
    assert not can_pack(torch.zeros(8, 8, dtype=torch.float64))
    assert not can_pack(torch.zeros(8, 8, device="meta"))
