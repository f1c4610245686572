"""What a built-in world is: an exact simulator that draws itself, and an oracle that reads its state from pixels.

``action[t]`` is what was pressed between frames t - 1 and t: it leads *into* frame t. Frame 0 has no action. Worlds
know no videos, files or models.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""uint8 RGB of (height, width, 3)."""


@dataclass(frozen=True)
class WorldState:
    """The exact state behind one frame: everything the next frame depends on, apart from the action."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a sidecar file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_json``; KeyError or TypeError for values of another kind of state."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def held(frames: int, shares: NDArray[np.float64], rng: np.random.Generator, longest: int = 12) -> list[int]:
    """For each frame a choice by its share, each held for 1 to ``longest`` frames."""
    chosen: list[int] = []
    while len(chosen) < frames:
        chosen += [int(rng.choice(len(shares), p=shares))] * int(rng.integers(1, longest + 1))
    return chosen[:frames]


S = TypeVar("S", bound=WorldState)


class World(Protocol[S]):
    """One built-in world; all methods are pure functions, randomness comes from ``rng`` alone."""

    name: ClassVar[str]
    actions: ClassVar[tuple[str, ...]]
    """Name of each action, by its number."""
    size: ClassVar[int]
    """Height and width of a frame in pixels."""
    fps: ClassVar[int]
    state: ClassVar[type[WorldState]]
    """What its states are."""
    positions: ClassVar[tuple[str, ...]]
    """Fields of the state that are positions of the player, in the world's unit of length."""
    things: ClassVar[str]
    """Field of the state that says of each thing whether it is still there; things never come back."""

    def start(self, rng: np.random.Generator) -> S:
        """A state that a video may begin with."""
        ...

    def step(self, state: S, action: int) -> S:
        """The next state."""
        ...

    def policy(self, state: S, frames: int, rng: np.random.Generator) -> list[int]:
        """Actions of a video of ``frames`` frames from ``state`` on, the first unused.

        Keys are held for random lengths, and none is rare.
        """
        ...

    def round_trip(self, state: S, rng: np.random.Generator) -> list[int]:
        """Actions after which the state is ``state`` again, and between which the view has left what it shows.

        As many from every state; none where nothing ever leaves the view.
        """
        return []

    def draw(self, state: S) -> Frame:
        """The frame that shows ``state``."""
        ...

    def read(self, frame_HWC: Frame, before: S | None = None) -> S:
        """The oracle: the state that a frame shows; what one frame cannot show comes from the state ``before``."""
        ...

    def alike(self, state: S, before: S) -> tuple[S, ...]:
        """``state`` as read after ``before``, and other states that the same two frames may show."""
        ...

    def is_inside(self, state: S) -> bool:
        """Whether the player is where the world lets nobody be, by more than the oracle's error."""
        ...
