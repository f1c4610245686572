"""One recording a key and shape, replayed with its inputs copied in; products of a recording have scratch of their own.

A fake GPU stands in: a recording keeps what the function would do, a replay does it on the recorded tensors.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.sampling import cuda_graphs
from magi.sampling.cuda_graphs import WARMUPS, Replayed


class FakeGraph:
    """What was called while it was recorded."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


class FakeStream:
    """A stream on which nothing is ever late."""

    def __init__(self, device: int = 0) -> None:
        self.device = device

    def wait_stream(self, other: "FakeStream") -> None:
        assert isinstance(other, FakeStream)


class FakeGpu:
    """The parts of ``torch.cuda`` that a recording needs, with what happened in ``events``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.streams: list[FakeStream] = []
        self.recording: FakeGraph | None = None
        self.main = FakeStream()
        cuda_graphs._side_stream.cache_clear()
        for name, value in {
            "CUDAGraph": FakeGraph, "Stream": FakeStream, "current_device": lambda: 0,
            "current_stream": lambda: self.main, "stream": self.on, "graph": self.graph,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.events.append("clear"), raising=False)

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        self.streams.append(stream)
        yield

    @contextmanager
    def graph(self, graph: FakeGraph, pool: Any, stream: FakeStream) -> Iterator[None]:
        self.events.append("record")
        self.streams.append(stream)
        self.recording = graph
        yield
        self.recording = None

    def twice(self, x: Tensor, offset: float = 0.0) -> Tensor:
        """2 x + offset, always in the same place once it is recorded."""
        self.events.append("call")
        made = 2 * x + offset
        if self.recording is not None:
            self.recording.calls.append(lambda: made.copy_(2 * x + offset))
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    yield FakeGpu(monkeypatch)
    cuda_graphs._side_stream.cache_clear()


def test_one_recording_a_key_and_shape_and_inputs_are_copied_before_a_replay(gpu: FakeGpu) -> None:
    replayed = Replayed(gpu.twice)
    for value in (1.0, 5.0):
        for key, offset in (("a", 0.0), ("b", 100.0)):
            for rows in (2, 3):
                got = replayed(torch.full((rows,), value), key=key, arguments=(offset,))
                assert got is not None and got.tolist() == [2 * value + offset] * rows
    assert (replayed.recordings, replayed.replays) == (4, 8)
    assert gpu.events.count("call") == 4 * (WARMUPS + 1), "a replay calls nothing"
    replayed(torch.ones(2, dtype=torch.float64), key="a", arguments=(0.0,))
    assert replayed.recordings == 5, "another number format is another graph"


def test_an_input_that_changes_afterwards_is_not_the_graphs(gpu: FakeGpu) -> None:
    replayed, given = Replayed(gpu.twice), torch.ones(2)
    replayed(given)
    given.fill_(7)
    got = replayed(torch.zeros(2))
    assert got is not None and got.tolist() == [0, 0] and given.tolist() == [7, 7]


def test_a_recording_does_not_take_over_the_layout_of_its_first_input(gpu: FakeGpu) -> None:
    """Products round by it, so a graph would depend on who called first."""
    strides: list[tuple[int, ...]] = []

    def spy(x: Tensor) -> Tensor:
        strides.append(x.stride())
        return x

    Replayed(spy)(torch.zeros(4, 2).T)
    assert set(strides) == {(4, 1)}


def test_who_holds_the_graphs_of_its_own_method_is_freed_at_once(gpu: FakeGpu) -> None:
    """Memory of a GPU does not wait for the collector of cycles."""

    class Owner:
        def __init__(self) -> None:
            self.graphs = Replayed(self.same)

        def same(self, x: Tensor) -> Tensor:
            return gpu.twice(x)

    owner = Owner()
    owner.graphs(torch.ones(2))
    gone = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()


def test_every_recording_has_scratch_of_its_own_on_one_stream(gpu: FakeGpu) -> None:
    """Cleared between the last trial call and the recording, and right after it; no new stream a recording."""
    for _ in range(2):
        Replayed(gpu.twice)(torch.ones(2))
    assert gpu.events == 2 * [*["call"] * WARMUPS, "clear", "record", "call", "clear"]
    assert len(gpu.streams) == 4 and len({id(stream) for stream in gpu.streams}) == 1
    assert gpu.streams[0] is not gpu.main


def test_scratch_is_cleared_after_a_recording_that_failed(gpu: FakeGpu) -> None:
    def breaks(x: Tensor) -> Tensor:
        if gpu.recording is not None:
            raise RuntimeError("not in a graph")
        return x

    replayed = Replayed(breaks)
    with pytest.raises(RuntimeError, match="not in a graph"):
        replayed(torch.ones(2))
    assert gpu.events == ["clear", "record", "clear"] and replayed.recordings == 0
