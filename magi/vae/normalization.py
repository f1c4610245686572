"""Mean and standard deviation of each latent channel, so that the model sees latents of about unit variance.

The paper leaves the normalisation open. It is measured on the user's own clips, while they are encoded or before
training starts, and recorded beside the autoencoder of a run. This module knows no network.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator

from magi.config import Section, validated
from magi.errors import CheckpointError
from magi.files import write_json
from magi.weights import read_json

_SMALLEST_STD = 1e-6  # a channel that never changes: dividing by zero would make it infinite


class Normalization(Section):
    """What ``normalization.json`` holds; a latent is ``(network's latent - mean) / std``, channel by channel."""

    weights: str = Field(description="id of the autoencoder that the numbers belong to")
    source: str = Field(description="where the numbers come from, in words")
    mean: tuple[float, ...] = Field(min_length=1, description="of each channel")
    std: tuple[float, ...] = Field(min_length=1, description="of each channel")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std {len(self.std)}; expected one of each a channel")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError("mean and std must be finite")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {min(self.std)}")
        return self


def read_normalization(path: Path) -> Normalization:
    """Read what ``write_normalization`` wrote; a missing, damaged or wrong file is a one-line ``CheckpointError``."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such normalisation file; name the one in the folder 'vae' of a run")
    return validated(Normalization, read_json(path), str(path), CheckpointError)


def write_normalization(path: Path, normalization: Normalization) -> None:
    """Write the JSON atomically."""
    write_json(path, normalization.model_dump(mode="json"))


class ChannelStatistics:
    """Mean and standard deviation of each channel over everything that was added, in float64 and constant memory."""

    def __init__(self, channels: int) -> None:
        """Start with nothing seen."""
        self.count = 0
        self._mean_C, self._squares_C = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, mean_BTCHW: torch.Tensor, std_BTCHW: torch.Tensor | None = None) -> None:
        """Add latents, or the means and standard deviations of distributions that latents are drawn from.

        Leading axes may be missing; the channel is third from the end.
        """
        values_CN = mean_BTCHW.detach().movedim(-3, 0).flatten(1).double().cpu()
        mean_C = values_CN.mean(1)
        squares_C = (values_CN - mean_C[:, None]).square().sum(1)
        if std_BTCHW is not None:  # what is drawn varies by both: the means, and around them
            squares_C += std_BTCHW.detach().movedim(-3, 0).flatten(1).double().cpu().square().sum(1)
        self.merge(values_CN.shape[1], mean_C, squares_C)

    def merge(self, count: int, mean: Sequence[float] | torch.Tensor, squares: Sequence[float] | torch.Tensor) -> None:
        """Add ``count`` values of each channel by their mean and the sum of their squared distances from it."""
        if not count:
            return
        # Joining two groups by their means and squared distances loses no digits where the mean is large (Chan 1979).
        step_C, self.count = torch.as_tensor(mean, dtype=torch.float64) - self._mean_C, self.count + count
        self._squares_C += torch.as_tensor(squares, dtype=torch.float64)
        self._squares_C += step_C.square() * count * (self.count - count) / self.count
        self._mean_C += step_C * count / self.count

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel; 0 where nothing was added."""
        return tuple(self._mean_C.tolist())

    @property
    def squares(self) -> tuple[float, ...]:
        """Sum of the squared distances from the mean, of each channel."""
        return tuple(self._squares_C.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, over all values seen; at least 1e-6."""
        assert self.count, "nothing was added"
        return tuple((self._squares_C / self.count).sqrt().clamp(min=_SMALLEST_STD).tolist())

    def normalization(self, weights: str, source: str) -> Normalization:
        """The statistics so far as the normalisation of the autoencoder whose id is ``weights``."""
        return Normalization(weights=weights, source=source, mean=self.mean, std=self.std)
