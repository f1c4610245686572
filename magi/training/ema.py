"""The exponential moving average of the weights, kept in float32 (paper section 4: decay 0.9999, in all results).

It knows a module's named parameters and buffers and the number of the step, nothing of optimizers or files.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Averaged float32 copies of a module's parameters; buffers are copied as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().float().clone() for name, value in model.named_parameters()}

    def decay_at(self, step: int) -> float:
        """The decay of the update after ``step`` finished steps (1, 2, ...).

        min(decay, (1 + step) / (10 + step)): the average forgets the initial weights quickly at first. The paper
        gives the decay alone; the warm-up is this project's decision.
        """
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """average <- d average + (1 - d) weights, with d = ``decay_at(step)``; ``step`` counts from 1."""
        weights = [value.detach().float() for _, value in model.named_parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.decay_at(step))

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The averaged weights under the names of ``model.state_dict()``; buffers are the model's own."""
        current = model.state_dict()
        return {name: self.average.get(name, value) for name, value in current.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the averages from ``tensors``, which hold every parameter's name (others are left alone)."""
        for name, value in self.average.items():
            value.copy_(tensors[name])
