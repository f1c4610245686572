"""Sinusoidal embeddings of 2-D space and 1-D time, and the interpolation of time (paper sections 3 and 5)."""

import torch
from torch import Tensor


def sinusoidal_1d(length: int, width: int, longest_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of positions 0..length-1, (length, width); ``width`` must be even."""
    frequency = longest_period ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sinusoidal_2d(rows: int, columns: int, width: int) -> Tensor:
    """Half of the channels for the row and half for the column, (rows * columns, width); ``width`` divisible by 4."""
    row = sinusoidal_1d(rows, width // 2)[:, None].expand(-1, columns, -1)
    column = sinusoidal_1d(columns, width // 2)[None].expand(rows, -1, -1)
    return torch.cat([row, column], dim=2).reshape(rows * columns, width)


def interpolate_rows(table_TD: Tensor, position_S: Tensor) -> Tensor:
    """Rows of a table at positions in [0, T - 1], linearly interpolated between whole ones, (S, D)."""
    if not position_S.is_floating_point():
        return table_TD[position_S]
    low = position_S.floor().long().clamp(max=len(table_TD) - 1)
    high = (low + 1).clamp(max=len(table_TD) - 1)
    fraction = (position_S - low)[:, None].to(table_TD.dtype)
    return torch.lerp(table_TD[low], table_TD[high], fraction)
