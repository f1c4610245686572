"""All speed cases with their goals, the most important first: a run that is short of time skips the last.

The first frame comes before everything that builds the same kernels, or it would not be cold.
"""

from collections.abc import Sequence
from functools import partial

from magi.bench import attention, cpu, frame_parts, sampling, temporal_state, training
from magi.bench.case import Case, Goal
from magi.errors import hint

_LONG = "a frame of a long video, 8 from frame 101 against 8 from 11"
_LONG_GOALS = (Goal("late over early", 1.05, 1.02, smaller=True),)
_STATE = "a frame without its head by gated linear attention, against softmax with as many frames in view"
_STATE_GOALS = (Goal("x longest cache", 1.0, 2.0),)

# fmt: off
CASES = (
    Case(
        "compile.time", "cuda", "weights on the device to the first frame, cold", "frame",
        sampling.first_frame_case, (Goal("cold s", 120, 60, smaller=True),), minutes=0.1,
    ),
    Case(
        "sample.b1", "cuda", "a latent frame, 64 x 100, guidance, 15 past frames", "frame",
        partial(sampling.frame_case, batch=1),
        (Goal("x eager", 12, 20), Goal("x compiled", 2.2, 4), Goal("seconds", 0.34, 0.20, smaller=True)),
        minutes=1.5,
    ),
    Case(
        "train.ctf", "cuda", "a step of complete teacher forcing, and of masked, 850 M parameters, 8 clips", "clip",
        training.step_case,
        (
            Goal("MFU", 0.48, 0.55), Goal("x eager dense mask", 1.15, 1.3),
            Goal("CTF over MTF", 1.92, 1.87, smaller=True),
        ),
        minutes=1.7, trains=True,
    ),
    Case(
        "sample.b64", "cuda",
        "a latent frame, 64 x 100, of 64 videos at once; one iteration in 8 timed, figures are of the whole",
        "batch", partial(sampling.frame_case, batch=64, every=sampling.EVERY), (Goal("x eager", 1.6, 2.0),),
        minutes=0.85,
    ),
    Case(
        "sample.cheaper", "cuda", "a latent frame with fewer iterations x steps; speed only", "frame",
        sampling.cheaper_case, (Goal("fps SD 32x25", 12, 22), Goal("fps SD 16x10", 20, 27)), minutes=0.3,
    ),
    Case(
        "pass.b1", "cuda", "a masked pass of the transformer, 15 past frames", "pass", frame_parts.pass_case,
        (Goal("x eager", 1.4, 2), Goal("x compiled", 1.0, 1.2), Goal("ms", 3.0, 2.1, smaller=True)), minutes=0.3,
    ),
    Case(
        "head.step.16", "cuda", "a denoising step of 8 tokens under guidance (batch 1)", "step",
        partial(frame_parts.head_case, rows=16),
        (Goal("us a step", 25, 12, smaller=True), Goal("x eager", 24, 50), Goal("x compiled", 3, 5)), minutes=0.4,
    ),
    Case(
        "kv.scaling", "cuda", "a masked pass with 100 past frames, batch 1", "pass", frame_parts.history_case,
        (Goal("us a past frame", 20, 15, smaller=True),), minutes=0.1,
    ),
    Case(
        "attn.temporal.ctf", "cuda",
        "temporal attention, both streams, forward and backward, layout copies included", "pass",
        attention.temporal_case, (Goal("x best other", 2.0, 3.0), Goal("share of copy bandwidth", 0.5, 0.6)),
        minutes=0.25, trains=True,
    ),
    Case(
        "opt.step", "cuda", "AdamW and average, 850 M parameters", "step", training.optimizer_case,
        (Goal("ms", 15, 10, smaller=True),), minutes=0.05, trains=True,
    ),
    Case("sample.long", "cuda", _LONG, "frame", sampling.long_video_case, _LONG_GOALS, minutes=0.3),
    Case("time.state", "cuda", _STATE, "frame", temporal_state.break_even_case, _STATE_GOALS, minutes=0.2),
    Case(
        "cpu.linear", "cpu", "a layer of the paper's model in bf16", "product", cpu.linear_case,
        (Goal("x fp32", 1.8, 2.2),), minutes=0.1,
    ),
    Case(
        "cpu.head", "cpu", "a denoising step of 4 tokens under guidance, the paper's head", "step",
        partial(frame_parts.head_case, rows=8), (Goal("x eager", 4, 6),), minutes=0.4,
    ),
    Case(
        "cpu.e2e", "cpu", "two frames of the tiny model, 8 x 5, guidance", "run",
        partial(cpu.end_to_end, name="tiny", calls=4), (Goal("x eager", 2, 4),), minutes=0.3,
    ),
    Case(
        "cpu.e2e.base", "cpu", "two frames of the base model, 8 x 5, guidance", "run",
        partial(cpu.end_to_end, name="base", calls=1), minutes=1.5,
    ),
    Case("cpu.long", "cpu", _LONG, "frame", sampling.long_video_case, _LONG_GOALS, minutes=0.3),
    Case("cpu.state", "cpu", _STATE, "frame", temporal_state.break_even_case, _STATE_GOALS, minutes=0.8),
    Case(
        "cpu.ctf", "cpu",
        "temporal attention of training, forward and backward, 16 frames of 256 positions, 192 wide", "pass",
        attention.cpu_case, (Goal("x dense mask", 1.0, 1.2), Goal("x dense mask, bf16 forward", 1.0, 1.2)),
        minutes=0.1, trains=True,
    ),
)
# fmt: on


def choose(names: Sequence[str]) -> list[Case]:
    """Cases by name or its first parts ('head.step', 'cpu'); all without names; ValueError names the nearest."""
    if not names:
        return list(CASES)
    for name in names:
        if not any(_is(case, name) for case in CASES):
            raise ValueError(f"unknown case '{name}'; {hint(name, (case.name for case in CASES))}")
    return [case for case in CASES if any(_is(case, name) for name in names)]


def _is(case: Case, name: str) -> bool:
    return case.name == name or case.name.startswith(f"{name}.")
