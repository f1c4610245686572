"""Batch norm as evaluation uses it: the stored mean and variance, always; there is no training mode to forget.

Its keys are those of torch's batch norms without the counter of batches, which evaluation never reads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class StoredBatchNorm(nn.Module):
    """gamma (x - mean) / sqrt(var + eps) + beta over axis 1 of a tensor of any rank."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` normalised, of the same shape."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
