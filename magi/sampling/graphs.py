"""CUDA graphs of functions of tensors: recorded at the first call with given shapes, replayed ever after.

A replay launches everything at once, so the host is out of the loop. It knows no model.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WARMUPS = 2


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor | None


class Replayed:
    """``function`` as graphs, one for each ``key`` and set of input shapes.

    The function must not wait for the device or draw random numbers, and what it reads besides its inputs must stay at
    its place. Functions that share a ``pool`` of memory overwrite each other's outputs: use one before the next call.
    ``recordings`` counts graphs, ``replays`` calls.
    """

    def __init__(self, function: Callable[..., Tensor | None], pool: Any = None) -> None:
        self._function, self._pool = function, pool
        self._recordings: dict[Hashable, _Recording] = {}
        self.replays = 0

    @property
    def recordings(self) -> int:
        """How many graphs there are."""
        return len(self._recordings)

    def __call__(self, *inputs: Tensor, key: Hashable = None, arguments: tuple[object, ...] = ()) -> Tensor | None:
        """The function of ``inputs`` and ``arguments``; the latter are constants that ``key`` stands for."""
        full_key = (key, *((tuple(x.shape), x.dtype) for x in inputs))
        recording = self._recordings.get(full_key)
        if recording is None:
            recording = self._recordings[full_key] = self._record(inputs, arguments)
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        self.replays += 1
        return recording.output

    def _record(self, inputs: tuple[Tensor, ...], arguments: tuple[object, ...]) -> _Recording:
        static = tuple(given.clone() for given in inputs)
        # Libraries set themselves up in the first calls, which a graph must not hold; on a stream of its own, as
        # recording is.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self._function(*static, *arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._function(*static, *arguments)
        return _Recording(graph, static, output)
