"""What the kernel of the denoising loop needs and what does not depend on noisy tokens, in its layout.

``head_kernels`` says why; here is no kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from magi.model.diffusion_head import FoldedHead

if TYPE_CHECKING:
    from magi.model.diffusion import ReverseTable
    from magi.model.diffusion_head import DiffusionHead

COEFFICIENTS = 8
"""Numbers a reverse step takes from its table, padded to a power of two."""


def kernel_modulation(head: DiffusionHead) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that gives all that the kernel needs and that does not depend on noisy tokens.

    Its (4 L + 1) W + 4 C outputs, for L blocks: factors a of every LayerNorm, the last one's too; gates; W a; W t (with
    the bias of W); the same two of the output layer, noise and variance of a channel side by side. Each is linear in
    the layer's input, like the modulations themselves.
    """
    blocks: Any = head.blocks
    wide = torch.promote_types(head.input.weight.dtype, torch.float32)
    folded = FoldedHead(head, wide)
    columns = torch.cat([folded.modulation.weight, folded.modulation.bias[:, None]], dim=1)
    *parts, shift, factor = columns.chunk(3 * len(blocks) + 2)
    firsts = [block.mlp[0].weight.detach().to(wide) for block in blocks]
    biases = [block.mlp[0].bias.detach().to(wide) for block in blocks]
    output = side_by_side(head.output.weight.detach().to(wide))
    rows = [
        *(*parts[1::3], factor),
        *parts[2::3],
        *(first @ a for first, a in zip(firsts, parts[1::3], strict=True)),
        *(_biased(first @ t, b) for first, t, b in zip(firsts, parts[0::3], biases, strict=True)),
        output @ factor,
        _biased(output @ shift, side_by_side(head.output.bias.detach().to(wide))),
    ]
    joined = torch.cat(rows).to(head.input.weight.dtype)
    return joined[:, :-1].contiguous(), joined[:, -1].contiguous()


def _biased(columns: Tensor, bias: Tensor) -> Tensor:
    """A layer's weight and, in the last column, its bias, to which ``bias`` is added."""
    return torch.cat([columns[:, :-1], columns[:, -1:] + bias[:, None]], dim=1)


def side_by_side(outputs: Tensor) -> Tensor:
    """Reorder 2C outputs, the first axis, so that noise and variance of a channel are neighbours."""
    return torch.stack(outputs.chunk(2), dim=1).flatten(0, 1)


def coefficients(table: ReverseTable) -> Tensor:
    """(I, COEFFICIENTS) float32 in the order of execution; column 6 multiplies the noise and is 0 in the last step,
    column 7 is left for the guidance scale."""
    noise_factor = [0.0] + [1.0] * (len(table) - 1)
    columns = [
        table.x0_from_xt,
        table.x0_from_noise,
        table.mean_from_x0,
        table.mean_from_xt,
        table.log_std,
        table.log_std_slope,
        noise_factor,
        [0.0] * len(table),
    ]
    assert len(columns) == COEFFICIENTS
    return torch.tensor(columns, dtype=torch.float32).T.flip(0).contiguous()
