"""The diffusion head: a small MLP that predicts the noise of one token given its condition z (MAR; paper section 3).

Most of its weights compute modulations that depend on timestep and z only, never on the noisy token, so they are one
linear layer of their own: a sampler calls ``embed_time`` once, ``modulations`` once for all steps of an iteration, and
``denoise`` in the loop.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magi.model.packed_linear import PackedLinear, packed


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
    """Predicts (..., outputs C) from noisy tokens (..., C), timesteps (...) and conditions z (..., D).

    ``outputs`` is the objective's number of predictions a channel: 2 for noise and variance.
    """

    def __init__(self, channels: int, condition_width: int, width: int, blocks: int, outputs: int = 2) -> None:
        super().__init__()
        self.timestep = TimestepEmbedding(width)
        self.condition = nn.Linear(condition_width, width)
        self.modulation = nn.Linear(width, (3 * blocks + 2) * width)
        self.input = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.output = nn.Linear(width, outputs * channels)

    @property
    def modulation_width(self) -> int:
        """Modulations of one token at one step."""
        return self.modulation.out_features

    def forward(self, x: Tensor, timestep: Tensor, z: Tensor) -> Tensor:
        """Noise and variance interpolation of tokens at their own timesteps; leading axes broadcast."""
        return self.denoise(x, self.modulations(self.embed_time(timestep), z))

    def embed_time(self, timestep: Tensor) -> Tensor:
        """All that depends on the timestep only: (..., W)."""
        return self.timestep(timestep)

    def modulations(self, time: Tensor, z: Tensor) -> Tensor:
        """All that depends on timestep (embedded) and z only: (..., (3 blocks + 2) W); leading axes broadcast."""
        return self.modulation(F.silu(time + self.condition(z)))

    def denoise(self, x: Tensor, modulations: Tensor) -> Tensor:
        """The part that depends on the noisy tokens."""
        *per_block, shift, scale = modulations.chunk(3 * len(self.blocks) + 2, dim=-1)
        h = self.input(x)
        for i, block in enumerate(self.blocks):
            h = block(h, *per_block[3 * i : 3 * i + 3])
        return self.output(self.final_norm(h) * (1 + scale) + shift)


class FoldedHead:
    """A head laid out for sampling: the same function with fewer operations a step, in ``dtype`` (the head's if None).

    Scale and shift of each norm, and the "1 +" of each modulation, are linear in the modulations, so they are folded
    into the one layer that computes those. Made from the weights as they are now.
    """

    def __init__(self, head: DiffusionHead, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or head.input.weight.dtype
        self.head, self.dtype = head, dtype
        blocks = [block for block in head.blocks if isinstance(block, ResidualBlock)]
        norms = [(block.norm.weight, block.norm.bias) for block in blocks]
        weight, bias = _fold(head.modulation, norms)
        self.modulation = PackedLinear(weight, bias, dtype)
        self.condition = packed(head.condition, dtype)
        self.input, self.output = packed(head.input, dtype), packed(head.output, dtype)
        self.blocks = [tuple(packed(block.mlp.get_submodule(name), dtype) for name in ("0", "2")) for block in blocks]

    @property
    def modulation_width(self) -> int:
        """As the head's."""
        return len(self.modulation.bias)

    def embed_time(self, timestep: Tensor) -> Tensor:
        """For ``modulations``: (..., W)."""
        return self.head.embed_time(timestep).to(self.dtype)

    def modulations(self, time: Tensor, z: Tensor) -> Tensor:
        """For ``denoise``; leading axes broadcast."""
        return self.modulation(F.silu(time + self.condition(z)))

    def denoise(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Noise and variance interpolation of tokens x (..., C) at the step of the modulations."""
        *per_block, shift, scale = modulations.chunk(3 * len(self.blocks) + 2, dim=-1)
        h = self.input(x)
        if h.ndim < shift.ndim:
            h = h.expand(*shift.shape[:-1], -1)
        width = h.shape[-1:]
        for i, (first, second) in enumerate(self.blocks):
            block_shift, block_scale, gate = per_block[3 * i : 3 * i + 3]
            inner = torch.addcmul(block_shift, F.layer_norm(h, width, eps=1e-6), block_scale)
            h = torch.addcmul(h, gate, second(F.silu(first(inner))))
        return self.output(torch.addcmul(shift, F.layer_norm(h, width, eps=1e-6), scale))


def _fold(modulation: nn.Linear, norms: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that gives w (1 + scale) and b (1 + scale) + shift for each norm (w, b), and gates."""
    dtype = torch.promote_types(modulation.weight.dtype, torch.float32)
    weights = list(modulation.weight.detach().to(dtype).chunk(3 * len(norms) + 2))
    biases = list(modulation.bias.detach().to(dtype).chunk(3 * len(norms) + 2))
    for i, (w, b) in enumerate([*norms, (torch.ones_like(biases[0]), torch.zeros_like(biases[0]))]):
        shift, scale = 3 * i, 3 * i + 1
        w, b = w.detach().to(dtype), b.detach().to(dtype)
        weights[shift] = weights[shift] + b[:, None] * weights[scale]
        biases[shift] = biases[shift] + b * (1 + biases[scale])
        weights[scale], biases[scale] = w[:, None] * weights[scale], w * (1 + biases[scale])
    return torch.cat(weights), torch.cat(biases)
