"""Which tokens are masked: ratios and positions in training, order and counts in sampling (paper sections 4 and 5).

Knows nothing of models; every draw takes a generator.
"""

import math

import torch
from torch import Tensor


def draw_mask_ratio(
    frames: int, mean: float, std: float, minimum: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw mask ratios (T,) from a normal truncated to [minimum, 1], by inverting its distribution function.

    MAR draws one ratio a batch; the paper leaves open whether frames share it, and here each frame has its own.
    """
    normal = torch.special.ndtr
    bounds = torch.tensor([(minimum - mean) / std, (1.0 - mean) / std], dtype=torch.float64)
    low, high = normal(bounds).unbind()
    uniform_T = torch.rand(frames, dtype=torch.float64, generator=generator)
    ratio_T = mean + std * torch.special.ndtri(low + (high - low) * uniform_T)
    return ratio_T.clamp(minimum, 1.0)


def masked_counts(ratio_T: Tensor, tokens: int) -> Tensor:
    """How many tokens of each frame a ratio masks, (T,) long: ceil(ratio * tokens)."""
    return torch.ceil(ratio_T * tokens).long()


def draw_mask(ratio_T: Tensor, tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Mask ``masked_counts`` random positions of every frame; returns masked_TN (bool)."""
    count_T1 = masked_counts(ratio_T, tokens).unsqueeze(1)
    rank_TN = torch.rand(len(ratio_T), tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank_TN < count_T1


def random_order(tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Order (N,) in which the tokens of one frame are generated."""
    return torch.randperm(tokens, generator=generator)


def cosine_counts(tokens: int, iterations: int) -> list[int]:
    """How many tokens each iteration predicts, on MaskGIT's cosine schedule with MAR's rounding.

    After iteration i of I, floor(tokens * cos(pi/2 * (i + 1) / I)) tokens stay masked, but every iteration predicts
    at least one. The counts sum to ``tokens``. Raises ValueError if there are more iterations than tokens.
    """
    if not 1 <= iterations <= tokens:
        raise ValueError(
            f"sampling.iterations: expected 1..{tokens} (tokens a frame), got {iterations}; lower the iterations"
        )
    counts = []
    remaining = tokens
    for i in range(iterations - 1):
        still_masked = math.floor(tokens * math.cos(math.pi / 2 * (i + 1) / iterations))
        still_masked = max(1, min(remaining - 1, still_masked))
        counts.append(remaining - still_masked)
        remaining = still_masked
    return [*counts, remaining]
