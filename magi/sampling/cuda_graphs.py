"""CUDA graphs of functions of tensors: recorded at the first call with given shapes, replayed ever after.

A replay launches everything at once, so the host is out of the loop. It knows no model.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

WARMUPS = 2


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor | None


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The stream of a device on which everything is tried and recorded; one only, as libraries keep scratch memory for
    each stream."""
    return torch.cuda.Stream(device)


def _forget_scratch() -> None:
    """Give back cuBLAS' scratch memory, so that the next product on a stream asks for its own.

    cuBLAS has one piece a handle and stream, allocated by the first product. Allocated in a recording it lies in that
    graph's pool, and later recordings would hold its address too; it goes when the first graph does, or when code under
    torch.compile records (pytorch/pytorch#193402), and they would then write to memory that is no longer theirs.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


class Replayed:
    """``function`` as graphs, one for each ``key`` and set of input shapes.

    The function must not wait for the device or draw random numbers, and what it reads besides its inputs must stay at
    its place. Functions that share a ``pool`` of memory overwrite each other's outputs: use one before the next call.
    ``recordings`` counts graphs, ``replays`` calls; where nothing is ``recorded`` it is the function itself. Of a
    method only a weak reference is held: its object usually holds this one, and in a circle the memory of both would
    wait for the garbage collector.
    """

    def __init__(self, function: Callable[..., Any], pool: Any = None, recorded: bool = True) -> None:
        self._function = WeakMethod(function) if isinstance(function, MethodType) else lambda: function
        self._pool, self._recorded = pool, recorded
        self._recordings: dict[Hashable, _Recording] = {}
        self.replays = 0

    @property
    def recordings(self) -> int:
        """How many graphs there are."""
        return len(self._recordings)

    def __call__(self, *inputs: Tensor, key: Hashable = None, arguments: tuple[object, ...] = ()) -> Any:
        """The function of ``inputs`` and ``arguments``; the latter are constants that ``key`` stands for."""
        function = self._function()
        assert function is not None, "the object of a recorded method is gone"
        if not self._recorded:
            return function(*inputs, *arguments)
        full_key = (key, *((tuple(x.shape), x.dtype) for x in inputs))
        recording = self._recordings.get(full_key)
        if recording is None:
            recording = self._recordings[full_key] = self._record(function, inputs, arguments)
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        self.replays += 1
        return recording.output

    def _record(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], arguments: tuple[object, ...]
    ) -> _Recording:
        # In one layout: products round by it, and a graph serves inputs of any.
        static = tuple(given.clone(memory_format=torch.contiguous_format) for given in inputs)
        side = _side_stream(torch.cuda.current_device())
        # Libraries set themselves up in the first calls, which a graph must not hold; on the stream of the recording.
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                function(*static, *arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Before, so that the graph's scratch is in its own pool; after, so that nobody else's is.
        _forget_scratch()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=side):
                output = function(*static, *arguments)
        finally:
            _forget_scratch()
        return _Recording(graph, static, output)
