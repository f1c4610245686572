"""The figures of every case, from seconds that are easy to divide by hand: the right side over the right side."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from magi.bench import frame_parts, sampling, training
from magi.bench.case import OURS, Candidate, Parity, PreparedCase, Setting
from magi.bench.runner import _ratio, run_suite
from magi.bench.suite import CASES
from magi.bench.training import PEAK_TFLOPS, TrainingBench, micro_batches, training_loss
from magi.model.flops import clip_flops

SMOKE = Setting(torch.device("cpu"), smoke=True, rounds=1)


def prepared(name: str) -> PreparedCase:
    (case,) = (case for case in CASES if case.name == name)
    with torch.inference_mode(not case.trains):
        return case.prepare(SMOKE)


@pytest.mark.parametrize(
    ("name", "seconds", "expected"),
    [
        ("cpu.linear", {OURS: 1e-6, "fp32": 2e-6}, {"GFLOP/s ours": 4.096, "GFLOP/s fp32": 2.048}),
        ("cpu.e2e", {OURS: 1, "ours in fp32": 2, "eager": 6, "eager in bf16": 9}, {"fp32 x eager": 3}),
        ("cpu.long", {OURS: 3, "early": 2}, {"late over early": 1.5}),
        ("sample.long", {OURS: 3, "early": 2}, {"late over early": 1.5}),
        ("cpu.head", {OURS: 2e-6}, {"us a step": 2}),
        (
            "cpu.ctf",
            {OURS: 7, "bf16 forward, ours": 2, "bf16 forward, dense mask": 6},
            {"x dense mask, bf16 forward": 3},
        ),
        (
            "sample.cheaper",
            {"64x4": 0.5, "32x25": 0.25, "16x10": 0.2},
            {"fps SD 64x4": 2, "fps SD 32x25": 4, "fps SD 16x10": 5},
        ),
    ],
)
def test_figures_are_of_the_sides_they_name(name: str, seconds: dict[str, float], expected: dict[str, float]) -> None:
    assert dict(prepared(name).metrics(seconds)) == pytest.approx(expected)


def test_seconds_of_the_head_are_of_a_step() -> None:
    assert prepared("cpu.head").units == prepared("head.step.16").units == 5, "of the smoke test; 100 otherwise"


@pytest.mark.parametrize("name", ["cpu.long", "sample.long"])
def test_late_frames_come_after_more_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(sampling.LongVideo, "start", lambda self, frames: started.append(frames))
    for candidate in prepared(name).candidates:
        candidate.before()
    assert started == [100, 10]


def test_the_first_frame_is_cold_and_the_second_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    assert dict(prepared("compile.time").metrics({})) == {"cold s": 5, "again s": 2}


def test_a_past_frame_costs_what_is_between_few_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(run: Any, setting: Setting, calls: int) -> float:
        (length,) = run.args
        return float(1 + 3e-6 * length if "ours" in run.func.__name__ else 1 + 5e-6 * length)

    monkeypatch.setattr(frame_parts, "time_calls", seconds)
    found = prepared("kv.scaling").metrics({})
    assert dict(found) == pytest.approx({"us a past frame": 3, "eager: us a past frame": 5})


def test_the_products_of_a_pass_are_those_of_all_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four products of a layer, two layers (in space and in time) of each of two blocks."""
    monkeypatch.setattr(frame_parts, "time_calls", lambda *_: 0.5)
    assert dict(prepared("pass.b1").metrics({OURS: 16})) == {"ms": 16e3, "share of matrix products": 0.5}


def test_useful_work_is_that_of_the_teacher_forcing() -> None:
    case = prepared("train.ctf")
    figures = case.metrics({OURS: 2.0, "MTF": 0.5})
    config, latent = training.setup(smoke=True)
    bench_masked = case.shapes["masked tokens"]
    assert isinstance(bench_masked, int)

    def flops(forcing: str) -> float:
        model = config.model.model_copy(update={"teacher_forcing": forcing})
        return clip_flops(model, latent, bench_masked / 2, config.training.diffusion_batch_mul).total

    assert figures["clips/s"] == 0.5 and figures["CTF over MTF"] == 4
    assert figures["MFU"] == pytest.approx(flops("complete") / 2 / 1e12 / PEAK_TFLOPS)
    assert figures["MFU of MTF"] == pytest.approx(flops("masked") / 0.5 / 1e12 / PEAK_TFLOPS)
    assert flops("masked") < 0.9 * flops("complete")
    assert case.units == 2


def test_traffic_of_the_update_and_of_attention() -> None:
    case = prepared("opt.step")
    parameters = case.shapes["parameters"]
    assert isinstance(parameters, int)
    assert dict(case.metrics({OURS: 0.5})) == pytest.approx({"ms": 500, "GB/s": 9 * 4 * parameters / 0.5 / 1e9})
    case = prepared("attn.temporal.ctf")
    seconds = {OURS: 2.0, "SDPA dense mask": 6.0, "split form": 4.0, "copy of as many bytes": 1.0}
    least = 12 * 2 * 3 * 7 * 32 * 4  # twelve tensors of 2 clips, 3 positions, 7 slots, 32 channels of 4 bytes
    expected = {"x best other": 2, "GB/s of least traffic": least / 2 / 1e9, "share of copy bandwidth": 0.5}
    assert dict(case.metrics(seconds)) == pytest.approx(expected)


def test_a_step_clips_the_gradient_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, clipped = TrainingBench(SMOKE), list[float]()
    clip: Callable[..., Any] = torch.nn.utils.clip_grad_norm_

    def recorded(parameters: Any, norm: float, **rest: Any) -> Any:
        clipped.append(norm)
        return clip(parameters, norm, **rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
    loss = training_loss(bench.model, bench.config, SMOKE.device)
    bench.step(loss, micro_batches(bench.config, bench.model, 2, 1, SMOKE.device))
    assert clipped == [bench.config.training.gradient_clip], "once a step, over all micro-batches"


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    """The machine drifts: medians of each side alone would say 10."""
    assert _ratio({OURS: {"rounds": [1.0, 10.0, 2.0]}, "plain": {"rounds": [2.0, 20.0, 100.0]}}, "plain") == 2


def test_sampling_is_timed_in_inference_mode_and_training_is_not() -> None:
    seen: dict[str, list[bool]] = {}

    def prepare(name: str, setting: Setting) -> PreparedCase:
        def look() -> None:
            seen.setdefault(name, []).append(torch.is_inference_mode_enabled())

        def check() -> tuple[Parity, ...]:
            look()
            return ()

        look()
        return PreparedCase((Candidate(OURS, look),), check)

    cases = [
        replace(case, prepare=partial(prepare, case.name)) for case in CASES if case.name in ("cpu.linear", "cpu.ctf")
    ]
    run_suite(cases, SMOKE)
    assert set(seen["cpu.linear"]) == {True} and set(seen["cpu.ctf"]) == {False} and len(seen["cpu.ctf"]) >= 4
