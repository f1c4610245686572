"""A linear layer that is run again and again on few rows: on a CPU its weights are laid out once for the product.

``F.linear`` on a CPU arranges the weights at every call, which at eight rows can cost more than the product. The
compiler of torch packs them beforehand by the same two operations; where a build lacks them ``F.linear`` it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_WEIGHTS = 100_000
"""Smaller float32 layers stay in a core's cache, and packed they are slower; in bf16 all are faster packed."""
ROWS = 8


class PackedLinear:
    """x W^T + b for x (..., inputs), in ``dtype`` (the weights' if None): its result is of this format, x of any.

    The same as ``F.linear`` of weight and bias as they are now, up to rounding.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> None:
        self.weight, self.bias = weight.detach().to(dtype or weight.dtype), bias.detach().to(dtype or bias.dtype)
        self.packed: Tensor | None = None
        small = self.weight.dtype == torch.float32 and self.weight.numel() < LEAST_WEIGHTS
        if can_pack(self.weight) and not small:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS)

    def split(self, outputs: int) -> tuple["PackedLinear", "PackedLinear"]:
        """The layer of the first ``outputs`` outputs, and that of the others."""
        first = PackedLinear(self.weight[:outputs], self.bias[:outputs])
        return first, PackedLinear(self.weight[outputs:], self.bias[outputs:])

    def __call__(self, x: Tensor) -> Tensor:
        """Rows through the layer."""
        return self._product(x, "none", "")

    def with_gelu(self, x: Tensor) -> Tensor:
        """Rows through the layer and GELU; packed, in one step."""
        return F.gelu(self(x)) if self.packed is None else self._product(x, "gelu", "none")

    def _product(self, x: Tensor, last_step: str, algorithm: str) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, last_step, [], algorithm)


def packed(linear: nn.Module, dtype: torch.dtype | None = None) -> PackedLinear:
    """A linear layer of the model as it is now."""
    assert isinstance(linear, nn.Linear)
    return PackedLinear(linear.weight, linear.bias, dtype)


def can_pack(weight: Tensor) -> bool:
    """Whether this build packs such weights."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return known and torch.backends.mkldnn.is_available()
