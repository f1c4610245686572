"""What ``magi bench`` times is what ``magi sample`` runs: the sampler that a pipeline prepares, with its settings."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.bench import cpu, sampling
from magi.bench.case import OURS, Setting
from magi.bench.suite import CASES
from magi.config import Config, SamplingConfig
from magi.sampling.execution import choose_execution
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import PreparedSampler

SMOKE = Setting(torch.device("cpu"), smoke=True, rounds=1)
PAPER = sampling.PAPER.changed(**sampling.SMOKE)


class NoVae:
    """Latents are the frames."""

    temporal_stride = 1

    def to(self, device: object) -> "NoVae":
        return self

    def latent_frames(self, frames: int) -> int:
        return frames

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from latents


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[PreparedSampler]:
    """Samplers that compute something, in their order."""
    found: list[PreparedSampler] = []

    def recorded(method: Any) -> Any:
        def call(self: PreparedSampler, *given: Any) -> Any:
            found.append(self)
            return method(self, *given)

        return call

    for name in ("frame", "masked_pass"):
        monkeypatch.setattr(PreparedSampler, name, recorded(getattr(PreparedSampler, name)))
    return found


@pytest.mark.parametrize(
    ("name", "settings", "videos", "frames"),
    [
        ("sample.b1", PAPER, 2, 16),
        ("sample.b64", PAPER, 2, 16),
        ("pass.b1", PAPER, 1, 16),
        ("cpu.e2e", cpu.FAST, 1, cpu.FRAMES),
        ("cpu.e2e.base", cpu.FAST, 1, cpu.FRAMES),
        ("cpu.long", sampling.LONG, 1, sampling.LATE + 2 * sampling.LONG.window_keep),
    ],
)
def test_the_timed_sampler_is_that_of_a_pipeline(
    name: str, settings: SamplingConfig, videos: int, frames: int, used: list[PreparedSampler]
) -> None:
    (case,) = (case for case in CASES if case.name == name)
    prepared = case.prepare(SMOKE)
    (ours,) = (candidate for candidate in prepared.candidates if candidate.name == OURS)
    ours.before()
    used.clear()
    ours.run()
    timed = used[-1]
    assert all(sampler is timed for sampler in used)
    model = timed.source
    vae: Any = NoVae()
    pipe = MagiPipeline(model, vae, Config(model=model.config, sampling=settings))
    used.clear()
    labels = [number % model.config.classes for number in range(videos)]
    next(pipe.stream(frames=frames, labels=labels, seeds=range(videos)))
    (users,) = used
    assert users.key == timed.key, "the same weights, settings, batch and length"
    assert users.execution == timed.execution == choose_execution(model, "auto")
    assert users.plan.counts == timed.plan.counts and users.plan.scales == timed.plan.scales
    assert users.denoiser.head.dtype == timed.denoiser.head.dtype
    torch.compiler.reset()
