"""The diffusion head: a small MLP that predicts the noise of one token given its condition z (MAR; paper section 3).

Most of its weights compute modulations that depend on timestep and z only, never on the noisy token, so they are one
linear layer of their own: a sampler calls ``modulations`` once for all steps and ``denoise`` in the loop.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """256 sinusoidal features of a timestep, then linear, SiLU, linear: (...) -> (..., W)."""

    FEATURES = 256
    LONGEST_PERIOD = 10_000

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.FEATURES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angle = timestep[..., None].float() * torch.exp(-math.log(self.LONGEST_PERIOD) * exponent)
        features = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class ResidualBlock(nn.Module):
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """Predicts (..., 2C) from noisy tokens (..., C), timesteps (...) and conditions z (..., D)."""

    def __init__(self, channels: int, condition_width: int, width: int, blocks: int) -> None:
        super().__init__()
        self.timestep = TimestepEmbedding(width)
        self.condition = nn.Linear(condition_width, width)
        self.modulation = nn.Linear(width, (3 * blocks + 2) * width)
        self.input = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.output = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, timestep: Tensor, z: Tensor) -> Tensor:
        """Noise and variance interpolation of tokens at their own timesteps; leading axes broadcast."""
        return self.denoise(x, self.modulations(timestep, z))

    def modulations(self, timestep: Tensor, z: Tensor) -> Tensor:
        """All that depends on timestep and z only: (..., (3 blocks + 2) W); leading axes broadcast."""
        return self.modulation(F.silu(self.timestep(timestep) + self.condition(z)))

    def denoise(self, x: Tensor, modulations: Tensor) -> Tensor:
        """The part that depends on the noisy tokens."""
        *per_block, shift, scale = modulations.chunk(3 * len(self.blocks) + 2, dim=-1)
        h = self.input(x)
        for i, block in enumerate(self.blocks):
            h = block(h, *per_block[3 * i : 3 * i + 3])
        return self.output(self.final_norm(h) * (1 + scale) + shift)
