"""Where the time of a case goes: every contender's operators on a CPU, by PyTorch's profiler.

A share is an operator's own time, without that of the operators it calls, over the sum of all. The profiler costs a
little for every call, so it tells shares and no speed; for that there is the case. It knows no case by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from magi.bench.case import OURS, Case, Contender, Setting
from magi.bench.machine import machine_facts

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise", "aten::mkldnn_linear")
"""Operators that multiply matrices; attention has an operator of its own, which is not among them."""
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Operator:
    """Own time of all calls of an operator, in seconds of one run, and how many calls that are."""

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """Operators of one contender, the longest first."""

    contender: str
    operators: tuple[Operator, ...]

    @property
    def seconds(self) -> float:
        """All operators of a run."""
        return sum(operator.seconds for operator in self.operators)

    @property
    def product_seconds(self) -> float:
        """Matrix products of a run."""
        return sum(operator.seconds for operator in self.operators if operator.name in PRODUCTS)


def profile_case(case: Case, setting: Setting) -> list[Profile]:
    """Profiles of the contenders of a CPU case, after their warm-ups; ValueError for a GPU case."""
    if case.kind != "cpu":
        raise ValueError(f"{case.name}: profiles are of CPU cases; on a GPU most of the work is one graph")
    trial = case.prepare(setting)
    found: dict[str, list[Operator]] = {contender.name: [] for contender in trial.contenders}
    try:
        for contender in trial.contenders:
            for _ in range(max(1, contender.warmups)):
                contender.before()
                contender.run()
        # In turn, as the runner does, so that a busy machine is no contender's own.
        for _ in range(setting.rounds):
            for contender in trial.contenders:
                found[contender.name] += _profiled(contender)
    finally:
        trial.close()
    return [_summed(name, operators, setting.rounds) for name, operators in found.items()]


def _profiled(contender: Contender) -> list[Operator]:
    """Operators of one run."""
    contender.before()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        contender.run()
    return [Operator(event.key, event.self_cpu_time_total / 1e6, event.count) for event in recorded.key_averages()]


def _summed(name: str, operators: Sequence[Operator], rounds: int) -> Profile:
    """The mean over rounds."""
    seconds: dict[str, float] = {}
    calls: dict[str, float] = {}
    for operator in operators:
        seconds[operator.name] = seconds.get(operator.name, 0.0) + operator.seconds / rounds
        calls[operator.name] = calls.get(operator.name, 0.0) + operator.calls / rounds
    order = sorted(seconds, key=lambda one: -seconds[one])
    return Profile(name, tuple(Operator(one, seconds[one], calls[one]) for one in order))


def profile_report(case: Case, profiles: Sequence[Profile]) -> dict[str, Any]:
    """As JSON: machine, case and operators of every contender."""
    found = {made.contender: [asdict(operator) for operator in made.operators] for made in profiles}
    return {"case": case.name, "machine": machine_facts(torch.device("cpu")), "contenders": found}


def profile_table(case: Case, profiles: Sequence[Profile]) -> str:
    """The same in Markdown: shares of each contender, and what the products of ours leave possible."""
    shares = {made.contender: _shares(made) for made in profiles}
    names = [operator.name for made in profiles for operator in made.operators]
    shown = [
        name for name in dict.fromkeys(names) if any(share.get(name, 0) >= LEAST_SHARE for share in shares.values())
    ]
    threads = torch.get_num_threads()
    lines = [f"Operators of `{case.name}` ({case.measures}), their own time of all; threads: {threads}.", ""]
    lines += ["| operator | " + " | ".join(shares) + " |", "|" + "---|" * (len(shares) + 1)]
    lines += [_line(name, [share.get(name, 0.0) for share in shares.values()]) for name in shown]
    lines.append(_line("all below 1 %", [1 - sum(share.get(name, 0) for name in shown) for share in shares.values()]))
    ours = next((made for made in profiles if made.contender == OURS), None)
    if ours is not None and ours.product_seconds:
        limits = [
            f"{made.seconds / ours.product_seconds:.2g} times as fast as {made.contender}"
            for made in profiles
            if not made.contender.startswith(OURS)
        ]
        lines += ["", f"If all but the products of ours were free: {', '.join(limits)}."]
    return "\n".join(lines)


def _shares(made: Profile) -> Mapping[str, float]:
    return {operator.name: operator.seconds / made.seconds for operator in made.operators}


def _line(name: str, shares: Sequence[float]) -> str:
    return f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"
