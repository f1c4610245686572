"""The training cases work on any device: candidates compute the same, and their figures are finite."""

import math
from typing import Any

import pytest
import torch

from magi.bench.attention import packed_flex
from magi.bench.case import OURS, Setting
from magi.bench.models import random_model
from magi.bench.suite import choose
from magi.bench.training import (
    Loss,
    RandomClips,
    TrainingBench,
    draw_clips,
    eagerly,
    largest_that_fits,
    micro_batches,
    naive_loss,
    setup,
    training_loss,
)
from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.slot_attention import dense_slot_attention

SMOKE = Setting(torch.device("cpu"), smoke=True)


@pytest.mark.parametrize("name", ["attn.temporal.ctf", "train.ctf", "opt.step"])
def test_a_case_has_parity_and_figures(name: str) -> None:
    (case,) = (case for case in choose([name]) if case.name == name)
    prepared = case.prepare(SMOKE)
    parities = prepared.check()
    assert parities and [parity for parity in parities if not parity.holds] == []
    assert prepared.candidates[0].name == OURS
    for candidate in prepared.candidates:
        candidate.run()
    metrics = dict(prepared.metrics({candidate.name: 1.0 for candidate in prepared.candidates}))
    metrics |= {f"x {candidate.name}": 1.0 for candidate in prepared.candidates}
    assert all(math.isfinite(value) for value in metrics.values())
    assert {goal.metric for goal in case.goals} <= metrics.keys()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_flex_candidate_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline with another mask would be no baseline; here without compilation, which needs a GPU."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pattern, heads = SlotPattern(3, 4, 1), 2
    projected = torch.randn(2, pattern.slots, 3, 3 * heads * 16, generator=torch.Generator().manual_seed(0))
    expected = dense_slot_attention(None, projected, pattern, heads)
    found = packed_flex(pattern, 3, SMOKE.device)(None, projected, pattern, heads)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_micro_batches_have_the_loss_of_the_whole() -> None:
    """Candidates that take the clips in more passes do the same work."""
    config, latent = setup(smoke=True)
    model = random_model(config.model, latent, SMOKE.device).eval()
    clips = draw_clips(config, model, 3, SMOKE.device)
    for loss in (training_loss(model, config, SMOKE.device), naive_loss(model, config, SMOKE.device)):
        whole = loss(clips.tokens_BTNC, clips.batch, clips.masked)
        parts = micro_batches(config, model, 3, 2, SMOKE.device)
        assert [len(part.tokens_BTNC) for part in parts] == [2, 1]
        losses = [loss(part.tokens_BTNC, part.batch, clips.masked) for part in parts]
        torch.testing.assert_close(sum(losses), whole)


def test_a_step_trains_the_model_and_its_average() -> None:
    bench = TrainingBench(SMOKE)
    loss = training_loss(bench.model, bench.config, SMOKE.device)
    weight, average = bench.model.mask_token, bench.ema.average["mask_token"]
    before = [value.detach().clone() for value in (weight, average)]
    parts: list[RandomClips] = micro_batches(bench.config, bench.model, 2, 1, SMOKE.device)
    bench.step(loss, parts)
    assert not torch.equal(weight, before[0]) and not torch.equal(average, before[1]) and weight.grad is None


def test_smaller_passes_where_memory_is_short() -> None:
    tried: list[int] = []

    def make(size: int):  # type: ignore[no-untyped-def]
        def work() -> None:
            tried.append(size)
            if size > 2:
                raise torch.OutOfMemoryError("no room")

        return work

    size, _ = largest_that_fits(make, (8, 4, 2, 1))
    assert size == 2 and tried == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        largest_that_fits(make, (8, 4))


def test_a_loss_without_compilation_runs_nothing_compiled() -> None:
    """Neither does it compile, nor does it take what was compiled before."""
    bench, calls = TrainingBench(SMOKE), list[str]()

    def backend(module: Any, inputs: object) -> Any:
        calls.append("compiled")
        return lambda *given: calls.append("ran") or module.forward(*given)  # type: ignore[func-returns-value]

    for block in bench.model.transformer.blocks:
        block.compile(backend=backend)
    clips = draw_clips(bench.config, bench.model, 1, SMOKE.device)
    loss = training_loss(bench.model, bench.config, SMOKE.device)

    def value(loss: Loss) -> float:
        return float(loss(clips.tokens_BTNC, clips.batch, clips.masked).detach())

    eager = value(eagerly(loss))
    assert calls == []
    assert value(loss) == pytest.approx(eager, rel=0.2) and set(calls) == {"compiled", "ran"}
    calls.clear()
    value(eagerly(loss))
    assert calls == []
    torch.compiler.reset()
