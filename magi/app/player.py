"""One page as the engine sees it: what it has said, its dream, the real world beside it, and its recording."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from magi.app.dream import NO_ACTION, DreamState, StartClip
from magi.app.protocol import Picture, pack_frame
from magi.data.worlds.contract import World

IN_FLIGHT = 2
MOST_RECORDED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FrameFacts:
    """What a frame obeyed and how it was made."""

    action: int
    key_seq: int
    began: float
    """``time.monotonic()`` when it could obey no later key."""
    late: bool


@dataclass(eq=False)
class Player:
    """One page. ``send`` takes bytes or JSON values, in any thread; all else is guarded by the engine."""

    send: Callable[[bytes | dict[str, Any]], None]
    dream: DreamState | None = None
    action: int = NO_ACTION
    key_seq: int = 0
    frame: int = 0
    acked: int = 0
    heard: float = -math.inf
    """Time of the newest acknowledgement."""
    paused: bool = False
    place: int | None = None
    real: Any = None
    """State of the exact simulator under the same keys."""
    seen: Any = None
    """State that the oracle read in the newest frame."""
    picture: Picture | None = None
    recorded: list[tuple[Picture, int]] | None = None
    told_prompt: str = ""
    """That the newest frame obeys, as the page knows."""
    told_refusal: str = ""

    @property
    def playing(self) -> bool:
        """Whether it has a dream that goes on."""
        return self.dream is not None and not self.paused

    @property
    def ready(self) -> bool:
        """Whether the page waits for a frame: it has shown all but fewer than ``IN_FLIGHT`` of them."""
        return self.playing and self.frame - self.acked < IN_FLIGHT

    def begin(self, dream: DreamState, clip: StartClip) -> None:
        """Dream from ``clip``; a recording of the dream before is dropped."""
        self.dream, self.recorded, self.told_prompt, self.told_refusal = dream, None, "", ""
        self.real = self.seen = clip.state
        self.picture = clip.video_THWC[-1]

    def record(self) -> None:
        """Record from the frame that is on the screen."""
        self.recorded = [] if self.picture is None else [(self.picture, NO_ACTION)]

    def deliver(self, picture: Picture, facts: FrameFacts, world: World[Any] | None) -> None:
        """Send a frame; with a ``world``, its exact simulator beside it and how far the oracle sees the two apart."""
        views, error = [picture], None
        if world is not None:
            self.real = world.step(self.real, max(facts.action, 0))
            self.seen = world.read(picture, self.seen)
            error = math.dist(*([getattr(state, axis) for axis in world.positions] for state in (self.real, self.seen)))
            views.append(world.draw(self.real))
        self.picture, self.frame = picture, self.frame + 1
        if self.recorded is not None and len(self.recorded) * picture.nbytes < MOST_RECORDED_BYTES:
            self.recorded.append((picture, facts.action))
        self._tell_prompt()
        self.send(pack_frame(self.frame, facts.key_seq, views, time.monotonic() - facts.began, facts.late, error))

    def _tell_prompt(self) -> None:
        """Before a frame: the prompt that it obeys if that has changed, and why it does not obey the one asked for."""
        assert self.dream is not None
        prompt, refusal = self.dream.prompts[-1], self.dream.refusal
        if prompt != self.told_prompt:
            self.send({"type": "prompt", "text": prompt})
        if refusal and refusal != self.told_refusal:
            self.send({"type": "notice", "text": refusal})
        self.told_prompt, self.told_refusal = prompt, refusal
