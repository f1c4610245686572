"""The one place that chooses how sampling runs on a device; every path computes the same, up to rounding.

The plain path is the reference: the same functions one operation at a time. It knows no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.denoise import Denoiser
from magi.sampling.history import History


@dataclass(frozen=True)
class FastPath:
    """``graphs``: passes over a frame and denoising loops are replayed as CUDA graphs, in one ``pool`` of memory.

    ``kernels``: attention to the cache is a kernel of our own (it needs Triton). ``head_kernel``: so is the denoising
    loop of few rows. NOTE: chosen by nobody yet. Alone it is three times as fast as the graph of the plain loop and as
    exact, but in the one run beside compiled code the GPU reported a launch failure (docs/performance.md).
    """

    graphs: bool = False
    kernels: bool = False
    head_kernel: bool = False
    pool: Any = None

    @staticmethod
    def of(model: Magi) -> FastPath:
        """The fastest path on the device of ``model``."""
        weight = model.mask_token
        if weight.device.type != "cuda":
            return FastPath()
        kernels = weight.dtype == torch.bfloat16 and find_spec("triton") is not None
        return FastPath(graphs=True, kernels=kernels, pool=torch.cuda.graph_pool_handle())

    def past(
        self,
        model: Magi,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
        config: SamplingConfig,
    ) -> History:
        """An empty past of one batch of videos."""
        return History(model, conditions, generators, frames, config, self.graphs, self.kernels, self.pool)

    def denoiser(self, model: Magi, config: SamplingConfig) -> Denoiser:
        """The denoising loop of the model's head, with the weights that it has now."""
        dtype = torch.bfloat16 if config.head_precision == "bf16" else None
        return Denoiser(model.head, config.temperature, dtype, self.graphs, self.head_kernel, self.pool)
