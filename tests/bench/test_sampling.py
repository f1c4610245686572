"""A subset of a frame's iterations stands for the frame, and both sides take the same one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magi.bench import mar_baseline
from magi.bench.case import PreparedCase, Setting
from magi.bench.mar_baseline import MarStyleHead, MarStyleSampler
from magi.bench.models import small_model
from magi.bench.report import rows
from magi.bench.runner import run_case
from magi.bench.sampling import (
    EVERY,
    PAPER,
    filled_sampler,
    iteration_subset,
    mar_style,
    sorted_order,
)
from magi.bench.suite import choose
from magi.config import SamplingConfig
from magi.model.magi import Magi
from magi.model.masking import cosine_counts
from magi.sampling.execution import Execution
from magi.sampling.frame import FramePlan, guidance_scale

TOKENS = 256
VIDEOS = 2
CONFIG = SamplingConfig(iterations=8, steps=3, guidance=3.0)


@pytest.fixture(scope="module")
def model() -> Magi:
    return small_model("smoke", torch.device("cpu"))


def paper_plan(config: SamplingConfig) -> FramePlan:
    """That of the paper's frame, the reverse steps of an iteration as their number."""
    counts = cosine_counts(TOKENS, config.iterations)
    shares = (torch.tensor(counts).cumsum(0) / TOKENS).tolist()
    table: Any = range(config.steps)
    return FramePlan(tuple(counts), tuple(guidance_scale(config, share) for share in shares), table)


@pytest.mark.parametrize("every", [EVERY, 4])
def test_a_subset_stands_for_its_frame(every: int) -> None:
    plan = paper_plan(PAPER)
    subset = iteration_subset(plan, every)
    count, size = len(plan.counts), len(subset.iterations)
    assert size * every == count and subset.share == 1 / every
    assert [i // every for i in subset.iterations] == list(range(size)), "one of every stretch"
    assert sum(subset.plan.counts) / size == pytest.approx(TOKENS / count, rel=0.01)
    assert subset.plan.table is plan.table


def test_the_whole_is_a_subset() -> None:
    plan = paper_plan(PAPER)
    whole = iteration_subset(plan, 1)
    order_BN = torch.stack([torch.randperm(TOKENS) for _ in range(VIDEOS)])
    assert whole.plan == plan and whole.share == 1
    assert torch.equal(whole.order(order_BN), order_BN)
    assert len(iteration_subset(plan, 1000).iterations) == 1


class Recorded:
    """What a side gives the head: rows, scale and steps of every call; its tokens are the call's number."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.calls: list[tuple[int, float, int]] = []

    def ours(self, z_GMD: Tensor, noise_IMC: Tensor, table: Any, scale: Tensor) -> Tensor:
        self.calls.append((z_GMD.shape[1], round(float(scale), 5), len(table)))
        return torch.full((z_GMD.shape[1], self.channels), float(len(self.calls)))

    def plain(self, steps: int, z: Tensor, scale: float, dtype: torch.dtype, noise_IMC: Tensor | None) -> Tensor:
        self.calls.append((len(z) // 2, round(scale, 5), steps))
        return torch.full((len(z) // 2, self.channels), float(len(self.calls)), dtype=dtype)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_both_sides_take_the_same_iterations(model: Magi, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        ours = filled_sampler(model, CONFIG, VIDEOS, known=2, execution=Execution.plain(model))
        plain = mar_style(ours, CONFIG)
        order_BN = sorted_order(ours.plan, VIDEOS, model.tokens_per_frame)
        subset = iteration_subset(ours.plan, every)
        masks = plain.masks_before(order_BN, subset.iterations)
        mine, theirs = Recorded(model.token_channels), Recorded(model.token_channels)
        recording: Any = mine.ours
        monkeypatch.setattr(plain.head, "sample", lambda *given: theirs.plain(CONFIG.steps, *given))
        monkeypatch.setattr(ours, "denoiser", recording)
        found = ours.frame(subset.order(order_BN), subset.plan)
        expected = plain.frame(order_BN, part=masks)
    assert len(mine.calls) == 8 // every and mine.calls == theirs.calls
    assert [rows // VIDEOS for rows, _, _ in mine.calls] == [ours.plan.counts[i] for i in subset.iterations]
    assert [scale for _, scale, _ in mine.calls] == pytest.approx([ours.plan.scales[i] for i in subset.iterations])
    assert torch.equal(found, expected), "the same tokens in the same iteration, and no others"
    assert int(found[..., 0].count_nonzero()) == VIDEOS * sum(subset.plan.counts)


def test_masks_are_those_of_the_whole_frame(model: Magi, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        ours = filled_sampler(model, CONFIG, VIDEOS, known=2, execution=Execution.plain(model))
        plain = mar_style(ours, CONFIG)
        order_BN = sorted_order(ours.plan, VIDEOS, model.tokens_per_frame)
        masks = plain.masks_before(order_BN, range(8))
        seen: list[Tensor] = []
        forward = plain.forward_pass

        def recorded(tokens_BNC: Tensor, masked_BN: Tensor) -> Tensor:
            seen.append(masked_BN)
            return forward(tokens_BNC, masked_BN)

        monkeypatch.setattr(plain, "forward_pass", recorded)
        plain.frame(order_BN)
    assert len(seen) == 8
    assert all(torch.equal(mask, masks[iteration]) for iteration, mask in enumerate(seen))


def test_baselines_share_one_cache_and_agree(model: Magi) -> None:
    """The blocks compiled as one compute the same, and a frame leaves the cache as it is."""
    with torch.inference_mode():
        ours = filled_sampler(model, CONFIG, VIDEOS, known=2, execution=Execution.plain(model))
        plain = mar_style(ours, CONFIG)
        compiled = plain.compiled("eager")
        assert compiled.cache is plain.cache
        before = [tuple(tensor.clone() for tensor in pair) for pair in plain.cache if pair is not None]
        tokens_BNC = torch.randn(VIDEOS, model.tokens_per_frame, model.token_channels)
        masked_BN = torch.rand(VIDEOS, model.tokens_per_frame) < 0.5
        torch.testing.assert_close(
            compiled.forward_pass(tokens_BNC, masked_BN), plain.forward_pass(tokens_BNC, masked_BN)
        )
        for sampler in (plain, compiled):
            sampler.frame()
    assert len(before) == len(plain.cache) and plain.length == 2
    for old, pair in zip(before, plain.cache, strict=True):
        assert pair is not None and all(torch.equal(a, b) for a, b in zip(old, pair, strict=True))
    torch.compiler.reset()


WRONG: Any = (lambda x: x.roll(1, dims=-1), lambda x: x * float("nan"))


@pytest.mark.parametrize("wrong", WRONG, ids=("rolled", "nan"))
def test_a_compiled_baseline_that_computes_something_else_is_refused(
    model: Magi, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    def traced(block: Any, **_: Any) -> Any:
        return lambda layer, x, *rest: block(layer, wrong(x), *rest)

    with torch.inference_mode():
        plain = mar_style(filled_sampler(model, CONFIG, VIDEOS, known=2, execution=Execution.plain(model)), CONFIG)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", traced)
            with pytest.raises(RuntimeError, match=r"its pass differs by .* from the plain one, 0\.05 is allowed"):
                plain.compiled("eager")

        class WrongHead(MarStyleHead):
            def network(self, x: Tensor, timestep: Tensor, z: Tensor) -> Tensor:
                return super().network(x, timestep, wrong(z))

        monkeypatch.setattr(mar_baseline, "MarStyleHead", WrongHead)
        with pytest.raises(RuntimeError, match=r"its step differs by .* from the plain one, 0\.05 is allowed"):
            plain.compiled("eager")
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["sample.b1", "sample.b64", "pass.b1"])
def test_a_compiled_baseline_that_fails_is_left_out_with_its_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case has its other numbers, and no ratio to a baseline that did not run."""

    def fail(*_: object) -> None:
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(MarStyleSampler, "compiled", fail)
    (case,) = choose([name])
    record = run_case(case, Setting(torch.device("cpu"), smoke=True, rounds=1))
    assert record["status"] == "measured" and set(record["candidates"]) == {"ours", "eager"}
    assert record["shapes"]["left out"] == {"compiled": "RuntimeError: no such compiler"}
    assert "x eager" in record["metrics"] and "x compiled" not in record["metrics"]
    goals = {goal["metric"]: goal["value"] for goal in record["goals"]}
    assert goals.get("x compiled") is None and ("x compiled" in goals) == name.endswith("b1")
    ((*_, baselines, _),) = rows({"cases": [record]})
    assert baselines.endswith("compiled: left out, RuntimeError: no such compiler")


def test_all_blocks_share_one_compilation(model: Magi) -> None:
    """Otherwise compiling would take as many times as long as there are blocks."""
    graphs: list[object] = []

    def backend(module: Any, inputs: object) -> Any:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    with torch.inference_mode():
        ours = filled_sampler(model, CONFIG, 1, known=2, execution=Execution.plain(model))
        plain = mar_style(ours, CONFIG).compiled(backend)  # type: ignore[arg-type]
        assert len(model.transformer.blocks) > 1
        for _ in range(2):
            plain.frame()
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "units"), [("sample.b1", 1), ("sample.b64", 1 / EVERY)])
def test_a_case_counts_the_share_of_a_frame_that_it_times(name: str, units: float) -> None:
    """``units`` is what the runner divides by: a second figure is for a whole frame."""
    (case,) = choose([name])
    prepared: PreparedCase = case.prepare(Setting(torch.device("cpu"), smoke=True, rounds=1))
    timed: Any = prepared.shapes["timed"]
    assert prepared.units == units
    figures = prepared.metrics({candidate.name: 0.5 for candidate in prepared.candidates})
    assert figures["fps SD"] == figures["fps Cosmos"] / 4 == 4, "two videos"
    if name == "sample.b1":
        assert timed == "whole frames"
    else:
        assert len(timed["iterations"]) / timed["of"] == units
        assert timed["tokens an iteration"] == pytest.approx(timed["frame: tokens an iteration"], rel=0.1)
    torch.compiler.reset()
