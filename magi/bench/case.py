"""What a speed case is: the candidates, the check that they compute the same, and the goals a result is held to.

A case is prepared only when it runs, and only from its ``Setting``. It knows neither clocks nor files: ``runner`` times
it, ``report`` prints the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

Kind = Literal["cpu", "cuda"]
OURS = "ours"
"""Name of the candidate that the others are baselines of."""


@dataclass(frozen=True)
class Setting:
    """Where a case runs. ``smoke`` asks for tiny shapes: it checks that a case works on any device, not its speed."""

    device: torch.device
    smoke: bool = False
    rounds: int = 5


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison; ``run`` does ``PreparedCase.units`` units of work and may return anything.

    ``run`` sets nothing up and does not wait for the device: on a GPU the runner times it with events. ``warmups``
    calls come before the first round and are reported on their own (compilation). A round times ``calls`` calls
    together, after ``before``, which is not timed.
    """

    name: str
    run: Callable[[], object]
    warmups: int = 1
    calls: int = 1
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Parity:
    """A difference from the reference and the largest that is allowed; a case without parity gets no number."""

    what: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """False for NaN."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class PreparedCase:
    """A case ready to run: candidates (``OURS`` first; none where ``metrics`` measures by itself), check, shapes.

    ``check`` runs before anything is timed. ``metrics`` gets the median seconds a unit of every candidate and returns
    further figures; the runner itself adds ``x NAME``, the time of the baseline NAME over ours, and ``seconds`` of ours
    a unit. ``shapes`` is recorded, as JSON.
    """

    candidates: tuple[Candidate, ...]
    check: Callable[[], tuple[Parity, ...]]
    units: float = 1.0
    metrics: Callable[[Mapping[str, float]], Mapping[str, float]] = field(default=lambda seconds: {})
    shapes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """The least that a metric should reach (``threshold``) and what is aimed at (``target``).

    ``smaller`` where less is better.
    """

    metric: str
    threshold: float
    target: float
    smaller: bool = False

    def verdict(self, value: float) -> Literal["target", "threshold", "missed"]:
        """The better of the two that ``value`` reaches, else ``missed`` (so is NaN)."""
        sign = -1 if self.smaller else 1
        if sign * value >= sign * self.target:
            return "target"
        return "threshold" if sign * value >= sign * self.threshold else "missed"


@dataclass(frozen=True)
class Case:
    """A named measurement. ``kind`` is the device that its goals are for; its seconds are those of one ``unit``.

    ``minutes`` is roughly how long it takes there; the runner skips a case when less time is left.
    """

    name: str
    kind: Kind
    description: str
    unit: str
    prepare: Callable[[Setting], PreparedCase]
    goals: tuple[Goal, ...] = ()
    minutes: float = 0.5
    trains: bool = False
    """Needs gradients; all of any other case runs in inference mode."""


def relative_error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64; NaN if anything is not finite."""
    got, reference = got.detach().double().cpu(), reference.detach().double().cpu()
    return float((got - reference).norm() / reference.norm())
