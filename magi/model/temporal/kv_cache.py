"""Keys and values of past frames, preallocated; an argument of the model, never its state (paper section 5).

Knows nothing of what a frame is. One position's keys and values of all frames lie side by side, so that a pass over
one new frame reads them in long runs. The slot after the last finished frame is scratch: a masked pass may put its own
keys there and does not advance, so nothing is concatenated and finished frames are only read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """``stored`` is (layers, B * P, capacity + 1, 2, heads, head width), keys before values; ``length`` are valid.

    ``length_1`` is the same number on the device, for what runs there without asking the host.
    """

    stored: Tensor
    length_1: Tensor
    length: int = 0

    @staticmethod
    def allocate(layers: int, rows: int, heads: int, capacity: int, head_width: int, like: Tensor) -> "KVCache":
        """Reserve room for ``capacity`` frames of ``rows`` = B * P sequences, with device and dtype of ``like``."""
        stored = like.new_zeros((layers, rows, capacity + 1, 2, heads, head_width))
        return KVCache(stored, like.new_zeros(1, dtype=torch.long))

    @property
    def capacity(self) -> int:
        """Largest number of finished frames."""
        return self.stored.shape[2] - 1

    @property
    def rows(self) -> int:
        """B * P."""
        return self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.stored.nbytes

    def layer(self, index: int) -> "LayerCache":
        """The part of one temporal layer."""
        return LayerCache(self.stored[index], self.length_1, self.length)

    def advance(self, frames: int) -> None:
        """Declare ``frames`` more frames finished; they must have been written by every layer."""
        self.rewind(self.length + frames)

    def clear(self) -> None:
        """Forget all frames; the memory stays."""
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Declare that the first ``length`` frames are valid."""
        assert 0 <= length <= self.capacity, (length, self.capacity)
        self.length = length
        self.length_1.fill_(length)


@dataclass(frozen=True)
class LayerCache:
    """A view on one temporal layer's keys and values, (B * P, capacity + 1, 2, heads, head width)."""

    stored: Tensor
    length_1: Tensor
    length: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new frames (B * P, heads, frames, head width) after the finished ones.

        Returns all keys and values up to and with the new frames, in the same layout.
        """
        end = self.length + keys.shape[2]
        assert end <= self.stored.shape[1], f"cache of {self.stored.shape[1] - 1} frames is full"
        self.stored[:, self.length : end, 0] = keys.transpose(1, 2)
        self.stored[:, self.length : end, 1] = values.transpose(1, 2)
        known = self.stored[:, :end].permute(2, 0, 3, 1, 4)
        return known[0], known[1]

    def write_next(self, new_R2hd: Tensor) -> None:
        """Write one frame's keys and values (B * P, 2, heads, head width) after the finished ones, found on device."""
        self.stored.index_copy_(1, self.length_1, new_R2hd[:, None].to(self.stored.dtype))
