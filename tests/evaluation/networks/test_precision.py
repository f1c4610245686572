"""Claims: inside, float32 is float32; outside, everything is as the caller left it, also after an error."""

from collections.abc import Iterator

import pytest
import torch

from magi.evaluation.networks.precision import full_precision, is_full_precision


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def switches() -> list[object]:
    cudnn = torch.backends.cudnn.allow_tf32
    return [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, cudnn]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_tf32_is_off_inside_and_restored(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = switches()
    with pytest.raises(KeyError), full_precision():
        assert is_full_precision() and switches() == ["highest", False, False]
        raise KeyError
    assert switches() == before == [matmul, matmul != "highest", convolutions]


def test_autocast_and_gradients_are_off_inside() -> None:
    a = torch.randn(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_full_precision() and (a @ a).dtype == torch.bfloat16
        with full_precision():
            assert is_full_precision()
            product = a @ a
            assert product.dtype == torch.float32 and not product.requires_grad
        assert (a @ a).dtype == torch.bfloat16 and torch.is_grad_enabled()


def test_tf32_counts_as_less() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert not is_full_precision()
    torch.backends.cudnn.allow_tf32 = False
    assert is_full_precision()
    torch.set_float32_matmul_precision("high")
    assert not is_full_precision()


def test_nesting_keeps_it_off_until_the_outer_end() -> None:
    with full_precision():
        with full_precision():
            pass
        assert is_full_precision()
