"""Keys and values of past frames, preallocated; an argument of the model, never its state (paper section 5).

Knows nothing of what a frame is. The slot after the last finished frame is scratch: a masked pass puts its own keys
there and does not advance, so nothing is concatenated and finished frames are only read.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class KVCache:
    """``keys`` and ``values`` are (layers, B * P, heads, capacity + 1, head width); ``length`` frames are valid."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @staticmethod
    def allocate(layers: int, rows: int, heads: int, capacity: int, head_width: int, like: Tensor) -> "KVCache":
        """Reserve room for ``capacity`` frames of ``rows`` = B * P sequences, with device and dtype of ``like``."""
        size = (layers, rows, heads, capacity + 1, head_width)
        return KVCache(like.new_zeros(size), like.new_zeros(size))

    @property
    def capacity(self) -> int:
        """Largest number of finished frames."""
        return self.keys.shape[3] - 1

    def layer(self, index: int) -> "LayerCache":
        """The part of one temporal layer."""
        return LayerCache(self.keys[index], self.values[index], self.length)

    def advance(self, frames: int) -> None:
        """Declare ``frames`` more frames finished; they must have been written by every layer."""
        assert self.length + frames <= self.capacity, (self.length, frames, self.capacity)
        self.length += frames

    def clear(self) -> None:
        """Forget all frames; the memory stays."""
        self.length = 0


@dataclass(frozen=True)
class LayerCache:
    """A view on one temporal layer's keys and values, (B * P, heads, capacity + 1, head width)."""

    keys: Tensor
    values: Tensor
    length: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new frames after the finished ones; returns all keys and values up to and with the new frames."""
        end = self.length + keys.shape[2]
        assert end <= self.keys.shape[2], f"cache of {self.keys.shape[2] - 1} frames is full"
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]
