"""What a speed case is: the contenders, the check that they compute the same, and the goals a result is held to.

A case is built only when it runs, and only from its ``Setting``. It knows neither clocks nor files: ``runner`` takes
the times, ``report`` prints them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

Kind = Literal["cpu", "cuda"]
OURS = "ours"
"""Name of the contender that the others are baselines of."""


@dataclass(frozen=True)
class Setting:
    """Where a case runs. ``smoke`` asks for tiny shapes: it checks that a case works on any device, and no speed."""

    device: torch.device
    smoke: bool = False
    rounds: int = 5


@dataclass(frozen=True)
class Contender:
    """One side of a comparison; ``run`` does ``Trial.units`` units of work and may return anything.

    ``run`` must not wait for the device: the runner takes the time with events there. ``warmups`` calls come before the
    first round and are reported apart (compilation). ``calls`` calls are timed together in a round, after ``before``,
    which is not timed. With ``sparse`` a contender takes part in only that many rounds, for baselines of many seconds.
    ``warm`` is what a warm-up does where ``run`` is longer than it need be.
    """

    name: str
    run: Callable[[], object]
    warmups: int = 1
    calls: int = 1
    sparse: int | None = None
    warm: Callable[[], object] | None = None
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Parity:
    """Difference from the reference, beside what is allowed; without parity a case has no number."""

    what: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Not for NaN."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Trial:
    """A case made ready: contenders (``OURS`` first; none where ``metrics`` measures by itself), check, shapes.

    ``check`` runs before any time is taken; it may return several parities. ``metrics`` gets the median seconds a unit
    of every contender and returns more figures; the runner itself adds ``x NAME``, the time of the baseline NAME over
    ours, and ``seconds`` of ours a unit. ``shapes`` is recorded. ``close`` frees what outlives the trial.
    """

    contenders: tuple[Contender, ...]
    check: Callable[[], Parity | tuple[Parity, ...]]
    units: float = 1.0
    metrics: Callable[[Mapping[str, float]], Mapping[str, float]] = field(default=lambda seconds: {})
    shapes: Mapping[str, object] = field(default_factory=dict)
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Goal:
    """A metric and what it must and should reach; ``smaller`` where less is better."""

    metric: str
    must: float
    reach: float
    smaller: bool = False

    def verdict(self, value: float) -> Literal["reached", "must", "below"]:
        """``reached`` the higher goal, only the ``must``, or ``below`` both (so is NaN)."""
        sign = -1 if self.smaller else 1
        if sign * value >= sign * self.reach:
            return "reached"
        return "must" if sign * value >= sign * self.must else "below"


@dataclass(frozen=True)
class Case:
    """A named measurement. ``kind`` is the device that its goals are for; ``unit`` is what its seconds are for one of.

    ``minutes`` is about what it takes there; the runner leaves a case out when less time is left. One that is ``apart``
    runs in a process of its own: a GPU whose kernel failed takes no more calls of the process that launched it.
    """

    name: str
    kind: Kind
    measures: str
    unit: str
    prepare: Callable[[Setting], Trial]
    goals: tuple[Goal, ...] = ()
    minutes: float = 0.5
    apart: bool = False


def no_check() -> tuple[Parity, ...]:
    """For a case that reports facts of the machine and compares nothing."""
    return ()


def relative_error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64; NaN if anything is not finite."""
    got, reference = got.detach().double().cpu(), reference.detach().double().cpu()
    return float((got - reference).norm() / reference.norm())
