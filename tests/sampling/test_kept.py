"""What is kept changes no bit: any calls in any order, changed weights, streams side by side, closed, broken.

Recordings of a fake GPU stand in for CUDA graphs: they hold addresses and constants, and a replay runs the operations.
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import combinations, product, zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magi.model import packed_linear
from magi.model.magi import Magi
from magi.sampling import cuda_graphs
from magi.sampling import kept as kept_module
from magi.sampling.fast_path import FastPath
from magi.sampling.generate import generate
from magi.sampling.history import History
from magi.sampling.kept import Kept, fingerprint
from tests.sampling.test_cuda_graphs import FakeGpu
from tests.sampling.test_generate import FAST, normal, seeded, tiny_model, told


def storages(values: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class Tape(TorchDispatchMode):
    """A recorded function: the operations on the tensors that they had, results always in the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again, known = func(*args, **kwargs), storages((args, kwargs))
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in known:
                    old.copy_(new)


class TapeGpu(FakeGpu):
    """A fake GPU whose graphs are tapes; ``recorded`` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
        monkeypatch.setattr(packed_linear, "can_pack", lambda weight: False)
        monkeypatch.setattr(FastPath, "of", staticmethod(lambda model: FastPath(graphs=True, pool=object())))

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        self.events.append("record")
        with graph:
            yield

    @property
    def recorded(self) -> int:
        return self.events.count("record")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[TapeGpu]:
    yield TapeGpu(monkeypatch)
    cuda_graphs._side_stream.cache_clear()


def rollout(model: Magi, kept: Kept | None = None, **changes: Any) -> Iterator[Tensor]:
    """Frames one by one; ``changes`` of the arguments, or of the settings."""
    asked: dict[str, Any] = {"frames": 5, "seeds": (1, 2), "noise": 1, "context": 2, "shift": 0, "guidance": 2.0}
    asked |= {"longer": "window", "window_keep": 1} | changes
    frames, seeds, noise, context, shift = (
        asked.pop(name) for name in ("frames", "seeds", "noise", "context", "shift")
    )
    conditions = told(len(seeds))
    assert conditions.label_B is not None
    label_B, noise_level_B = (conditions.label_B + shift) % 3, torch.full((len(seeds),), noise)
    return generate(
        model,
        frames=frames,
        conditions=type(conditions)((conditions.interval_B + shift) % 3 + 1, noise_level_B, label_B),
        generators=seeded(*seeds),
        config=FAST.model_copy(update=asked),
        context_BTCHW=normal(len(seeds), context, 2, 3, 4) + shift if context else None,
        kept=kept,
    )


def video(model: Magi, kept: Kept | None = None, **changes: Any) -> Tensor:
    return torch.stack(list(rollout(model, kept, **changes)), dim=1)


def recordings(kept: Kept) -> int:
    """Graphs of the parts that are kept."""
    made = [(parts.past.graphs, parts.past.observation_graphs, parts.denoiser.graph) for parts in kept._shelf]
    return sum(graph.recordings for parts in made for graph in parts if graph is not None)


SAME_PARTS: list[dict[str, Any]] = [
    {}, {"seeds": (3, 4)}, {"shift": 1}, {"context": 0}, {"context": 1}, {"context": 4}, {"noise": 4},
    {"frames": 3}, {"frames": 9}, {"guidance": 5.0}, {"guidance_schedule": "constant"},
]  # fmt: skip
OTHER_PARTS: list[dict[str, Any]] = [
    {"guidance": 1.0}, {"seeds": (1,)}, {"seeds": (1, 2, 3)}, {"temperature": 0.5}, {"steps": 5}, {"last_steps": 2},
    {"iterations": 2}, {"solver": "dpm++"}, {"x0_limit": 0.5}, {"window_keep": 2}, {"longer": "interpolate"},
    {"longer": "interpolate", "frames": 7}, {"frames": 2, "context": 0}, {"head_precision": "bf16"},
    {"pass_precision": "bf16"},
]  # fmt: skip


# The same frames


def test_any_calls_in_any_order_are_those_of_new_samplers() -> None:
    model, kept = tiny_model(), Kept()
    pairs: Any = zip_longest(SAME_PARTS, OTHER_PARTS, fillvalue={})
    asked = [request for pair in pairs for request in pair]
    expected = [video(model, **request) for request in asked]
    for order in (range(len(asked)), reversed(range(len(asked)))):
        for index in order:
            assert torch.equal(video(model, kept, **asked[index]), expected[index]), asked[index]


def test_the_same_with_graphs_and_the_second_call_records_nothing(gpu: TapeGpu) -> None:
    model, kept = tiny_model(), Kept()
    expected = [video(model, **request) for request in SAME_PARTS]
    for request in SAME_PARTS:  # all lengths of the cache and all numbers of tokens occur
        video(model, kept, **request)
    before = gpu.recorded
    assert recordings(kept) > 0
    for request, frames_BTCHW in zip(reversed(SAME_PARTS), reversed(expected), strict=True):
        made = video(model, kept, **request)
        assert torch.equal(made, frames_BTCHW), request
        assert gpu.recorded == before, request


@pytest.mark.parametrize("change", OTHER_PARTS, ids=str)
def test_what_a_recording_depends_on_is_recorded_anew(gpu: TapeGpu, change: dict[str, Any]) -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    before = gpu.recorded
    assert torch.equal(video(model, kept, **change), video(model, **change))
    once = (gpu.recorded - before) // 2
    assert once > 0 and recordings(kept) == once, "as many as a new sampler, and only the last ones are kept"


def test_another_path_has_its_own(gpu: TapeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    before = gpu.recorded
    monkeypatch.setattr(FastPath, "of", staticmethod(lambda model: FastPath()))
    assert torch.equal(video(model, kept), video(model)) and recordings(kept) == 0
    assert gpu.recorded == before


@contextmanager
def matmul(name: str, value: object) -> Iterator[None]:
    before = getattr(torch.backends.cuda.matmul, name)
    setattr(torch.backends.cuda.matmul, name, value)
    yield
    setattr(torch.backends.cuda.matmul, name, before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


ATTENTION = [
    SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION,
]  # fmt: skip
SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "tf32": lambda: matmul("fp32_precision", "tf32"),
    "bf16 sums": lambda: matmul("allow_bf16_reduced_precision_reduction", False),
    "fp16 sums": lambda: matmul("allow_fp16_reduced_precision_reduction", False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    **{f"no {one.name}": partial(sdpa_kernel, [other for other in ATTENTION if other != one]) for one in ATTENTION},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_switches_of_pytorch_choose_is_recorded_anew(gpu: TapeGpu, switch: str) -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    before = gpu.recorded
    with SWITCHES[switch]():
        video(model, kept)
        inside = gpu.recorded
        video(model, kept)
        assert gpu.recorded == inside > before
    video(model, kept)
    assert gpu.recorded > inside


def test_half_precision_does_not_outlive_autocast(gpu: TapeGpu) -> None:
    model, kept = tiny_model().float(), Kept()
    asked: dict[str, Any] = {"frames": 1, "context": 0}
    exact = video(model, **asked)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(video(model, kept, **asked), exact)
    assert torch.equal(video(model, kept, **asked), exact)


def test_frames_handed_out_are_nobodys_buffers(gpu: TapeGpu) -> None:
    model, kept = tiny_model(), Kept()
    expected, made = video(model), []
    for frame_BCHW, known_BCHW in zip(rollout(model, kept), expected.unbind(1), strict=True):
        assert torch.equal(frame_BCHW, known_BCHW)
        made.append(frame_BCHW.fill_(7))
    video(model, kept, seeds=(8, 9), shift=1)
    assert all(bool((frame_BCHW == 7).all()) for frame_BCHW in made)


# Weights


def load(model: Magi) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def assign(model: Magi) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()}, assign=True)


def fused_step(model: Magi) -> None:
    """NOTE: counts no version."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    versions = [parameter._version for parameter in model.parameters()]
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    assert versions == [parameter._version for parameter in model.parameters()]


def one_number(model: Magi) -> None:
    model.head.modulation.bias.data[-1] += 0.1


@torch.no_grad()
def same_numbers_elsewhere(model: Magi) -> None:
    model.head.modulation.weight.copy_(model.head.modulation.weight.flip(0).clone())


def other_places(model: Magi) -> None:
    """NOTE: counts no version either, and sums stay."""
    weight = model.head.modulation.weight
    version = weight._version
    weight.data.copy_(weight.data.flip(0))
    assert weight._version == version


@torch.no_grad()
def negated(model: Magi) -> None:
    """NOTE: of an even number of 64-bit words, so their sums stay, and the version alone tells."""
    assert model.head.modulation.weight.numel() % 4 == 0
    model.head.modulation.weight.neg_()


def other_head(model: Magi) -> None:
    model.head = copy.deepcopy(model.head)
    one_number(model)


def buffer(model: Magi) -> None:
    model.space_PD *= 2


def moved(model: Magi) -> None:
    """The same numbers at another address: a graph would read memory that is no longer theirs."""
    model.embed_token.weight.data = model.embed_token.weight.data.clone()


@pytest.mark.parametrize(
    "change",
    [
        load, assign, fused_step, one_number, same_numbers_elsewhere, other_places, negated, other_head, buffer, moved,
        Magi.float,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_changed_weights_are_seen(gpu: TapeGpu, change: Callable[[Magi], object]) -> None:
    model, kept = tiny_model(), Kept()
    first, before = video(model, kept), gpu.recorded
    change(model)
    made = video(model, kept)
    assert gpu.recorded > before
    assert torch.equal(made, video(model))
    assert torch.equal(made, first) == (change is moved)


def test_another_model_with_the_same_weights_has_its_own(gpu: TapeGpu) -> None:
    model, kept = tiny_model(), Kept()
    expected = video(model, kept)
    once, twin = gpu.recorded, copy.copy(model)  # the very same tensors
    assert torch.equal(video(twin, kept), expected) and gpu.recorded == 2 * once
    twin.config = model.config.model_copy(update={"teacher_forcing": "masked"})
    made = video(twin, kept)
    assert torch.equal(made, video(twin)) and not torch.equal(made, video(model))
    twin.config = twin.config.model_copy(update={"diffusion_steps": 40})
    assert torch.equal(video(twin, kept), video(twin))


def test_weights_without_versions_are_kept_by_their_values(gpu: TapeGpu) -> None:
    with torch.inference_mode():
        model = tiny_model()
    kept, expected = Kept(), video(model)
    assert all(parameter.is_inference() for parameter in model.parameters())
    video(model, kept)
    before = gpu.recorded
    assert torch.equal(video(model, kept), expected) and gpu.recorded == before
    with torch.inference_mode():
        one_number(model)
    assert torch.equal(video(model, kept), video(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (7,), (8,), (3, 5), (4, 8)])
def test_any_changed_number_changes_the_fingerprint(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    whole = torch.zeros(*shape, 2, dtype=dtype)
    for tensor in (torch.zeros(shape, dtype=dtype), whole[..., 1], torch.zeros(33, dtype=dtype)[1:]):
        indices, prints = list(product(*map(range, tensor.shape))), {fingerprint([tensor])}
        for index in indices:
            tensor.data[index] = 1
            prints.add(fingerprint([tensor]))
        assert tensor._version == 0 and len(prints) == 1 + len(indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_places_signs_and_layout_change_the_fingerprint(dtype: torch.dtype) -> None:
    numbers = torch.arange(1, 17, dtype=dtype)
    tensor = numbers.clone()
    before = fingerprint([tensor])
    changes = [([first, second], numbers[[second, first]]) for first, second in combinations(range(16), 2)]
    changes += [([index], -numbers[[index]]) for index in range(16)]
    for indices, changed in changes:
        tensor.data[indices] = changed
        assert fingerprint([tensor]) != before and tensor._version == 0
        tensor.data.copy_(numbers)
    assert fingerprint([tensor]) == before
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    square = tensor.view(4, 4)
    assert len({fingerprint([one]) for one in (tensor, tensor.view(integers), square, square.T)}) == 4


# One user at a time


def test_streams_side_by_side_share_nothing(gpu: TapeGpu) -> None:
    model, kept = tiny_model(), Kept()
    asked: list[dict[str, Any]] = [{"seeds": (5, 6)}, {"seeds": (7, 8), "shift": 1}, {"guidance": 1.0}]
    expected = [video(model, **request) for request in asked]
    video(model, kept)
    streams = [rollout(model, kept, **request) for request in asked]
    made = [torch.stack(frames, dim=1) for frames in zip(*zip(*streams, strict=True), strict=True)]
    for got, known in zip(made, expected, strict=True):
        assert torch.equal(got, known)
    assert len(kept._shelf) == 1


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_a_stream_closed_early_leaves_its_parts_to_the_next(gpu: TapeGpu, frames: int) -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    before, stream = gpu.recorded, rollout(model, kept, seeds=(5, 6), noise=3, shift=1)
    for _ in range(frames):
        next(stream)
    assert len(kept._shelf) == (frames == 0), "taken when the first frame is asked for"
    del stream
    assert len(kept._shelf) == 1
    made = video(model, kept)
    assert gpu.recorded == before
    assert torch.equal(made, video(model))


def test_parts_that_broke_are_not_kept(gpu: TapeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = tiny_model(), Kept()
    expected = video(model, kept)
    plain: Any = History.predict
    for passes in (0, 4):  # in the first frame, in the second
        left = [None] * passes

        def breaks(*arguments: Any, left: list[None] = left) -> Tensor:
            if not left:
                raise RuntimeError("out of memory")
            left.pop()
            return plain(*arguments)

        monkeypatch.setattr(History, "predict", breaks)
        with pytest.raises(RuntimeError, match="out of memory"):
            video(model, kept)
        monkeypatch.setattr(History, "predict", plain)
        assert not kept._shelf
        assert torch.equal(video(model, kept), expected)


def test_an_error_thrown_at_a_frame_keeps_nothing() -> None:
    kept = Kept()
    stream: Any = rollout(tiny_model(), kept)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert not kept._shelf


# Memory


def test_parts_that_do_not_fit_are_freed_before_others_are_made(gpu: TapeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = tiny_model(), Kept()
    plain: Any = FastPath.past
    freed: list[list[bool]] = []
    video(model, kept)
    (parts,) = kept._shelf
    old = [weakref.ref(parts.past), weakref.ref(parts.denoiser)]
    del parts

    def past(*arguments: Any) -> History:
        freed.append([reference() is None for reference in old])
        return plain(*arguments)

    monkeypatch.setattr(FastPath, "past", past)
    gc.disable()  # memory of a GPU does not wait for the collector
    try:
        video(model, kept, temperature=0.5)
    finally:
        gc.enable()
    assert freed == [[True, True]]


def test_a_copy_keeps_nothing_and_forgetting_frees() -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    for other in (copy.deepcopy(kept), copy.copy(kept), pickle.loads(pickle.dumps(kept))):
        assert not other._shelf and other.most_bytes == kept.most_bytes and kept._shelf
    kept.forget()
    assert not kept._shelf


def test_a_cache_that_is_too_large_is_not_kept() -> None:
    model, kept = tiny_model(), Kept()
    video(model, kept)
    (parts,) = kept._shelf
    room = parts.past.cache.stored.nbytes
    for most, found in ((room, 1), (room - 1, 0)):
        small = Kept(most)
        assert torch.equal(video(model, small), video(model, kept)) and len(small._shelf) == found


def test_without_it_nothing_is_kept(gpu: TapeGpu) -> None:
    model = tiny_model()
    video(model)
    once = gpu.recorded
    video(model)
    assert gpu.recorded == 2 * once


def test_weights_are_read_only_for_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(kept_module, "fingerprint", lambda tensors: read.append(len(tensors)))
    model = tiny_model()
    video(model)
    assert not read
    video(model, Kept())
    assert read == [len([*model.parameters(), *model.buffers()])]
