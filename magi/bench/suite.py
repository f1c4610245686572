"""All speed cases in the order they run: first those that the plan is held to, then the others by subject.

A run that is short of time leaves out what it comes to last. The first frame comes before all that builds the same
kernels, or it would not be cold.
"""

import difflib
from collections.abc import Sequence

from magi.bench import attention, decoding, end_to_end, head, long_video, passes, products, sampling, training
from magi.bench.case import Case

FIRST = (
    "calib",
    "compile.time",
    "head.step.16",
    "pass.b1",
    "sample.b1",
    "kv.scaling",
    "train.ctf",
    "train.ctf_vs_mtf",
    "sample.b64",
    "attn.temporal.ctf",
)

_BY_SUBJECT: tuple[Case, ...] = (
    *products.CASES,
    *head.CASES,
    *passes.CASES,
    *sampling.CASES,
    *end_to_end.CASES,
    *long_video.CASES,
    *decoding.CASES,
    *attention.CASES,
    *training.CASES,
    head.KERNEL_CASE,
)

CASES: tuple[Case, ...] = tuple(
    sorted(_BY_SUBJECT, key=lambda case: FIRST.index(case.name) if case.name in FIRST else len(FIRST))
)


def chosen(names: Sequence[str]) -> list[Case]:
    """Cases by name or its first parts ('head.step', 'cpu'); all without names; ValueError names the nearest."""
    if not names:
        return list(CASES)
    for name in names:
        if not any(_is(case, name) for case in CASES):
            known = [case.name for case in CASES]
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(known)}"
            raise ValueError(f"unknown case '{name}'; {hint}")
    return [case for case in CASES if any(_is(case, name) for name in names)]


def _is(case: Case, name: str) -> bool:
    return case.name == name or case.name.startswith(f"{name}.")
