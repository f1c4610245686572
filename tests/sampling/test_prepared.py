"""A sampler that is used again changes no bit; streams side by side, closed or broken ones leave nothing behind."""

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.model.magi import Magi
from magi.sampling import prepared
from magi.sampling.generate import generate
from magi.sampling.history import History
from magi.sampling.prepared import PreparedSampler, SamplerCache
from tests.sampling.test_generate import FAST, normal, seeded, tiny_model, told


def stream(model: Magi, samplers: SamplerCache | None = None, **changes: Any) -> Iterator[Tensor]:
    """Frames one by one; ``changes`` of the arguments, or of the settings."""
    asked: dict[str, Any] = {"frames": 5, "seeds": (1, 2), "noise": 1, "context": 2, "shift": 0, "guidance": 2.0}
    asked |= {"longer": "window", "window_keep": 1} | changes
    frames, seeds, noise, context, shift = map(asked.pop, ("frames", "seeds", "noise", "context", "shift"))
    conditions = told(len(seeds))
    assert conditions.label_B is not None
    label_B, noise_level_B = (conditions.label_B + shift) % 3, torch.full((len(seeds),), noise)
    return generate(
        model,
        frames=frames,
        conditions=type(conditions)((conditions.interval_B + shift) % 3 + 1, noise_level_B, label_B),
        generators=seeded(*seeds),
        config=FAST.changed(**asked),
        context_BTCHW=normal(len(seeds), context, 2, 3, 4) + shift if context else None,
        samplers=samplers,
    )


def video(model: Magi, samplers: SamplerCache | None = None, **changes: Any) -> Tensor:
    return torch.stack(list(stream(model, samplers, **changes)), dim=1)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each sampler that is prepared."""
    numbers: list[int] = []
    plain: Any = PreparedSampler.__init__

    def count(*arguments: Any) -> None:
        numbers.append(len(numbers))
        plain(*arguments)

    monkeypatch.setattr(PreparedSampler, "__init__", count)
    return numbers


FITS: list[dict[str, Any]] = [
    {}, {"seeds": (3, 4)}, {"shift": 1}, {"context": 0}, {"context": 4}, {"noise": 4}, {"frames": 3}, {"frames": 9},
    {"guidance": 5.0}, {"guidance_schedule": "constant"}, {"noise_level": 2}, {"context_frames": 1},
]  # fmt: skip
FITS_NOT: list[dict[str, Any]] = [
    {"guidance": 1.0}, {"seeds": (1,)}, {"seeds": (1, 2, 3)}, {"temperature": 0.5}, {"steps": 5},
    {"first_frame_steps": 3}, {"iterations": 2}, {"x0_limit": 0.5}, {"window_keep": 2}, {"longer": "interpolate"},
    {"last_timestep": 5}, {"frames": 2, "context": 0}, {"precision": "bf16"},
]  # fmt: skip


def test_calls_in_any_order_are_those_of_new_samplers() -> None:
    model, samplers = tiny_model(), SamplerCache()
    for request in chain(*zip(FITS, FITS_NOT, strict=False), FITS, FITS_NOT[::-1]):
        assert torch.equal(video(model, samplers, **request), video(model, **request)), request


def test_a_sampler_serves_every_call_that_it_fits_and_no_other(built: list[int]) -> None:
    model, samplers = tiny_model(), SamplerCache()
    for request in FITS:
        video(model, samplers, **request)
    assert len(built) == 1
    for count, request in enumerate(FITS_NOT, start=1):
        video(model, samplers, **request)
        assert len(built) == 2 * count, request
        video(model, samplers)


def load(model: Magi) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def moved(model: Magi) -> None:
    model.embed_token.weight.data = model.embed_token.weight.data.clone()


@torch.no_grad()
def one_number(model: Magi) -> None:
    model.head.modulation.bias[-1] += 0.1


def buffer(model: Magi) -> None:
    model.space_PD *= 2


@pytest.mark.parametrize("change", [load, moved, one_number, buffer, Magi.float], ids=lambda change: change.__name__)
def test_changed_weights_are_seen(built: list[int], change: Callable[[Magi], object]) -> None:
    model, samplers = tiny_model(), SamplerCache()
    first = video(model, samplers)
    change(model)
    made = video(model, samplers)
    assert len(built) == 2
    assert torch.equal(made, video(model)) and torch.equal(made, first) == (change is moved)


def test_another_model_has_its_own(built: list[int]) -> None:
    model, samplers = tiny_model(), SamplerCache()
    video(model, samplers)
    video(copy.copy(model), samplers)  # the very same tensors
    assert len(built) == 2


def test_weights_without_versions_serve_too(built: list[int]) -> None:
    with torch.inference_mode():
        model = tiny_model()
    samplers = SamplerCache()
    assert torch.equal(video(model, samplers), video(model, samplers)) and len(built) == 1


def test_streams_side_by_side_share_nothing(built: list[int]) -> None:
    model, samplers = tiny_model(), SamplerCache()
    asked: list[dict[str, Any]] = [{"seeds": (5, 6)}, {"seeds": (7, 8), "shift": 1}, {"guidance": 1.0}]
    expected = [video(model, **request) for request in asked]
    video(model, samplers)
    before = len(built)
    streams = [stream(model, samplers, **request) for request in asked]
    made = [torch.stack(frames, dim=1) for frames in zip(*zip(*streams, strict=True), strict=True)]
    assert all(map(torch.equal, made, expected))
    assert len(built) == before + 2, "the first has the one that was held, the others their own"


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_a_stream_closed_early_leaves_its_sampler_to_the_next(built: list[int], frames: int) -> None:
    model, samplers = tiny_model(), SamplerCache()
    video(model, samplers)
    closed = stream(model, samplers, seeds=(5, 6), noise=3, shift=1)
    for _ in range(frames):
        next(closed)
    del closed
    assert torch.equal(video(model, samplers), video(model)) and len(built) == 2


@pytest.mark.parametrize("passes", [0, 4])  # it breaks in the first frame, in the second
def test_a_sampler_that_broke_is_not_used_again(built: list[int], monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    model, samplers, left = tiny_model(), SamplerCache(), [0] * passes
    expected = video(model, samplers)
    plain: Any = History.predict

    def breaks(*arguments: Any) -> Tensor:
        if not left:
            raise RuntimeError("out of memory")
        left.pop()
        return plain(*arguments)

    monkeypatch.setattr(History, "predict", breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        video(model, samplers)
    monkeypatch.setattr(History, "predict", plain)
    before = len(built)
    assert torch.equal(video(model, samplers), expected) and len(built) == before + 1


def test_an_error_thrown_at_a_frame_holds_nothing(built: list[int]) -> None:
    model, samplers = tiny_model(), SamplerCache()
    broken: Any = stream(model, samplers)
    next(broken)
    with pytest.raises(KeyboardInterrupt):
        broken.throw(KeyboardInterrupt())
    video(model, samplers)
    assert len(built) == 2


def test_copies_start_empty_and_large_caches_are_not_held(built: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, samplers = tiny_model(), SamplerCache()
    video(model, samplers)
    for other in (copy.deepcopy(samplers), copy.copy(samplers)):
        video(model, other)
    assert len(built) == 3
    monkeypatch.setattr(prepared, "MOST_BYTES", 0)
    video(model, samplers)
    video(model, samplers)
    assert len(built) == 4


def test_beginning_anew_leaves_in_place_what_graphs_hold() -> None:
    model, other = tiny_model(), told(2)
    asked: Any = (FAST.changed(guidance=2.0), told(2), seeded(1, 2))
    sampler = PreparedSampler(model, *asked, frames=5)
    before = [sampler.plan.table, sampler.history, sampler.history.frame_pass, sampler.denoiser]
    other = type(other)(other.interval_B, other.noise_level_B, 2 - other.label_B)  # type: ignore[operator]
    sampler.begin(FAST.changed(guidance=5.0), other, seeded(3, 4))
    after = [sampler.plan.table, sampler.history, sampler.history.frame_pass, sampler.denoiser]
    assert all(one is two for one, two in zip(before, after, strict=True))
    assert sampler.plan.scales[-1] == 5.0
    assert sampler.history.conditions.label_B.tolist() == [2, 1, 3, 3]  # type: ignore[union-attr]


def test_frames_handed_out_are_nobodys_buffers() -> None:
    model, samplers = tiny_model(), SamplerCache()
    made = [frame_BCHW.fill_(7) for frame_BCHW in stream(model, samplers)]
    video(model, samplers, seeds=(8, 9), shift=1)
    assert all(bool((frame_BCHW == 7).all()) for frame_BCHW in made)
