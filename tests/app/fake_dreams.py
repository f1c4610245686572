"""Dreams without a model: the exact simulator of the platform world under each player's keys."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.app.dream import NO_ACTION, Ask, StartClip, world_starts
from magi.config import SamplingConfig
from magi.data.worlds.worlds import find_world

WORLD = find_world("platform")


@dataclass(eq=False)
class Played:
    """A dream of ``FakeDreams``."""

    state: Any
    label: int | None = None
    prompt: str = ""
    prompts: tuple[str, ...] = ("",)
    refusal: str = ""


class FakeDreams:
    """Plays the simulator for ``frames`` frames a leg; a frame takes ``seconds``.

    With ``text`` a prompt is the name of an action, stronger than keys; another text is one that it cannot read.
    """

    def __init__(self, frames: int = 8, seconds: float = 0.0, real: bool = True, text: bool = False) -> None:
        self.frames, self.seconds = frames, seconds
        self.world = WORLD if real else None
        self.starts: Sequence[StartClip] = world_starts(WORLD, 8)
        self.settings = SamplingConfig(steps=12, fast_steps=3, longer="window")
        self.actions, self.classes, self.size = WORLD.actions, (), (WORLD.size, WORLD.size)
        self.text = text
        self.batches: list[int] = []
        self.fails = False

    def begin(self, start: int, seed: int) -> Any:
        return Played(self.starts[start].state)

    def leg(self, states: Sequence[Any], ask: Ask) -> Iterator[NDArray[np.uint8]]:
        for _ in range(self.frames):
            actions = ask()
            if self.fails:
                raise ArithmeticError("a planted failure")
            time.sleep(self.seconds)
            for state, action in zip(states, actions, strict=True):
                if action is not None:
                    if self.text:
                        action = self._obeyed(state, action)
                    state.state = WORLD.step(state.state, 0 if action == NO_ACTION else action)
            self.batches.append(sum(action is not None for action in actions))
            yield np.stack([WORLD.draw(state.state) for state in states])

    def _obeyed(self, state: Played, action: int) -> int:
        names = ["", *WORLD.actions]
        state.refusal = "" if state.prompt in names else "prompt: no action"
        if not state.refusal:
            state.prompts = (state.prompt,)
        return names.index(state.prompts[0]) - 1 if state.prompts[0] else action
