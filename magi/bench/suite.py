"""All speed cases in the order they run: what the machine can do, then sampling, then training."""

import difflib
from collections.abc import Sequence

from magi.bench import attention, decoding, head, long_video, passes, products, sampling, training
from magi.bench.case import Case

CASES: tuple[Case, ...] = (
    *products.CASES,
    *head.CASES,
    *passes.CASES,
    *sampling.CASES,
    *long_video.CASES,
    *decoding.CASES,
    *attention.CASES,
    *training.CASES,
    *sampling.LATE_CASES,
    head.KERNEL_CASE,
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
