"""The one place that chooses how sampling runs on a device: number formats, CUDA graphs, Triton kernels.

Every choice computes the same up to rounding; the plain one, operation by operation in the weights' own format, is the
reference. It knows no frames and no loop.
"""

import copy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from magi.devices import computes_in_bf16
from magi.model.magi import Magi

Precision = Literal["auto", "bf16", "fp32"]
LEAST_HEAD_WIDTH = 512
"""On a CPU, products of a narrower head are too small: at 8 rows bf16 takes 1.07 of the time of float32 at width 256,
0.61 at 512."""


@dataclass(frozen=True)
class Execution:
    """``weights``: format of the weights, of sums and of the cache. ``pass_products``, ``head_products``: of the matrix
    products in the passes over a frame and in the denoising loop. ``graphs``: both are CUDA graphs. ``kernels``: passes
    use the Triton kernels.
    """

    weights: torch.dtype
    pass_products: torch.dtype
    head_products: torch.dtype
    graphs: bool = False
    kernels: bool = False

    @staticmethod
    def plain(model: Magi) -> "Execution":
        """The reference: everything in the format of the weights, one operation at a time."""
        dtype = model.mask_token.dtype
        return Execution(dtype, dtype, dtype)


def choose_execution(model: Magi, precision: Precision) -> Execution:
    """The fastest way to run ``model`` where it is.

    On a GPU "auto" and "bf16" are bf16 weights, graphs and kernels; "fp32" is graphs alone. On a CPU weights are at
    least float32: "bf16" computes all products in bf16, "auto" those that are faster so, if the processor has
    instructions for it. Weights in float64 stay in it unless "bf16" is asked for.
    """
    device, wide = model.mask_token.device, torch.promote_types(model.mask_token.dtype, torch.float32)
    rounded = precision == "bf16" or (
        precision == "auto" and wide == torch.float32 and computes_in_bf16(torch.device(device.type))
    )
    bf16 = torch.bfloat16
    if device.type == "cuda":
        weights = bf16 if rounded else wide
        kernels = rounded and find_spec("triton") is not None
        return Execution(weights, weights, weights, graphs=True, kernels=kernels)
    head = rounded and (precision == "bf16" or model.config.head_width >= LEAST_HEAD_WIDTH)
    return Execution(wide, bf16 if rounded else wide, bf16 if head else wide)


def in_format(model: Magi, dtype: torch.dtype) -> Magi:
    """``model`` itself if its weights are in ``dtype``, else a copy that is, in evaluation mode."""
    if model.mask_token.dtype == dtype:
        return model
    with torch.inference_mode(False), torch.no_grad():
        return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
