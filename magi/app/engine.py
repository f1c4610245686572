"""One thread that owns the model and dreams for all players; the server only moves bytes.

A frame begins when its tick has come and a player waits for it, so a world never runs ahead of its player and nothing
is queued. All who wait share one batch. Who is not ready when the others are is left behind until the next leg, a few
frames later, and its world stands still meanwhile: it slows nobody.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from magi.app.dream import Ask, DreamState, StartClip
from magi.app.player import FrameFacts, Player
from magi.app.protocol import (
    AckMessage,
    AnyMessage,
    KeysMessage,
    LabelMessage,
    PauseMessage,
    Picture,
    PromptMessage,
    RecordMessage,
    SettingsMessage,
    StartMessage,
)
from magi.config import SamplingConfig
from magi.data.worlds.contract import World
from magi.presets import at_speed

LATE_SHARE = 0.25  # of a tick that a frame may begin late before the page says so
GRACE_S = 0.02  # that those who are ready wait for one who was heard of within PROMPT_S
PROMPT_S = 1.0
STOP_S = 0.5


class Dreams(Protocol):
    """What the engine needs of ``magi.app.dream.Dream``."""

    world: World[Any] | None
    starts: Sequence[StartClip]
    settings: SamplingConfig

    @property
    def actions(self) -> Sequence[str]:
        """Names of the actions."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    @property
    def text(self) -> bool:
        """Whether the model reads prompts."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        ...

    def begin(self, start: int, seed: int) -> DreamState:
        """A dream from a start."""
        ...

    def leg(self, states: Sequence[DreamState], ask: Ask) -> Iterator[NDArray[np.uint8]]:
        """The next frames of some dreams."""
        ...


class Engine:
    """Dreams for the first ``seats`` players at ``fps`` frames a second (0: as fast as possible); others wait."""

    def __init__(self, dreams: Dreams, seats: int, fps: float) -> None:
        self.dreams, self.seats, self.fps = dreams, seats, fps
        self.speed, self.full_settings = "full", dreams.settings
        self.players: list[Player] = []
        self.changed = threading.Condition()
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name="dreams", daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        with self.changed:
            if not self._thread.is_alive() and not self.stopped:
                self._thread.start()

    def stop(self) -> None:
        """End the thread with the frame that it is making, which is waited for a moment."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def join(self, player: Player) -> None:
        """Seat a player, or tell it how many are before it."""
        with self.changed:
            self.players.append(player)
            self._place()

    def leave(self, player: Player) -> None:
        """Free its seat."""
        with self.changed:
            self.players.remove(player)
            self._place()

    def _place(self) -> None:
        """Tell those whose place has changed; 0 plays."""
        for number, player in enumerate(self.players):
            place = max(0, number - self.seats + 1)
            if place != player.place:
                player.place = place
                player.send({"type": "place", "place": place})
        self.changed.notify_all()

    def tell(self, player: Player, message: AnyMessage) -> None:
        """Do what a page says; ValueError for what does not fit the model."""
        with self.changed:
            match message:
                case StartMessage(start=start, seed=seed):
                    _check("start", start, len(self.dreams.starts))
                    player.begin(self.dreams.begin(start, seed), self.dreams.starts[start])
                case KeysMessage(action=action, seq=seq):
                    _check("action", action, len(self.dreams.actions))
                    player.action, player.key_seq = action, seq
                case AckMessage(frame=frame):
                    player.acked, player.heard = max(player.acked, min(frame, player.frame)), time.monotonic()
                case PauseMessage(paused=paused):
                    player.paused = paused
                case LabelMessage(label=label):
                    _check("class", label, len(self.dreams.classes))
                    if player.dream is not None:
                        player.dream.label = None if label < 0 else label
                case PromptMessage(text=text):
                    if not self.dreams.text:
                        raise ValueError("this model has no text")
                    if player.dream is not None:
                        player.dream.prompt = text
                case SettingsMessage():
                    self._set(message)
                case RecordMessage(on=True):
                    player.record()
            self.changed.notify_all()

    def end_recording(self, player: Player) -> list[tuple[Picture, int]]:
        """Its frames, each with the action that led to it."""
        with self.changed:
            recorded, player.recorded = player.recorded, None
        return recorded or []

    def _set(self, message: SettingsMessage) -> None:
        if len(self.players) > 1:
            raise ValueError("others are playing with these settings; they change only for one who plays alone")
        values = message.model_dump(include={"temperature", "guidance"}, exclude_none=True)
        if values.get("guidance", 1) != 1 and not (self.dreams.actions or self.dreams.classes or self.dreams.text):
            raise ValueError("guidance needs a model with classes, actions or text")
        full, speed = self.full_settings.changed(**values), message.speed or self.speed
        self.dreams.settings = at_speed(full, speed)  # raises before anything is changed
        self.full_settings, self.speed = full, speed
        self.fps = self.fps if message.fps is None else message.fps

    def waiting(self) -> list[Player]:
        """Seated players who are ready for a frame."""
        return [player for player in self.players[: self.seats] if player.ready]

    def _run(self) -> None:
        due = 0.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or self.waiting())
                if self.stopped:
                    return
                # Also those who are not ready at once, so that who fell behind comes back in step.
                leg = _Leg(self, [player for player in self.players[: self.seats] if player.playing], due)
            try:
                leg.run()
            except Exception as error:  # a frame that cannot be made ends the dreams that share it, not the server
                leg.end(f"{type(error).__name__}: {' '.join(str(error).split())}")
            due = leg.due


class _Leg:
    """A few frames for some players, of whom some drop out before its end."""

    def __init__(self, engine: Engine, players: Sequence[Player], due: float) -> None:
        self.engine, self.due = engine, due
        self.dreams = [player.dream for player in players if player.dream is not None]
        self.players: list[Player | None] = list(players)  # None: no longer in it
        self.facts: list[FrameFacts | None] = []

    def run(self) -> None:
        """Dream until the leg ends or nobody is left in it."""
        frames = self.engine.dreams.leg(self.dreams, self._ask)
        for pictures_BHWC in frames:
            with self.engine.changed:
                for slot, picture_HWC in enumerate(pictures_BHWC):
                    self._deliver(slot, picture_HWC)
            if not any(self.players):
                break
        frames.close()  # type: ignore[attr-defined]

    def end(self, reason: str) -> None:
        """Tell its players why there is no more."""
        with self.engine.changed:
            for player in filter(None, self.players):
                player.dream = None
                player.send({"type": "error", "text": reason})

    def _deliver(self, slot: int, picture_HWC: Picture) -> None:
        player, facts = self.players[slot], self.facts[slot]
        if player is not None and facts is not None and player.dream is self.dreams[slot]:
            player.deliver(picture_HWC, facts, self.engine.dreams.world)

    def _ask(self) -> list[int | None]:
        """Wait until the next frame may begin; its actions, None for those who do not get it."""
        engine = self.engine
        with engine.changed:
            late = engine.fps > 0 and time.monotonic() - self.due > LATE_SHARE / engine.fps
            first_ready = math.inf
            while True:
                self._drop_absent()
                now = time.monotonic()
                ready = [player is not None and player.ready for player in self.players]
                lag = any(p is not None and not p.ready and now - p.heard < PROMPT_S for p in self.players)
                others = [player for player in engine.waiting() if player not in self.players]
                if engine.stopped or not any(self.players) or (others and not any(ready)):
                    self.players = [None] * len(self.players)
                    break
                first_ready = min(first_ready, now) if any(ready) else math.inf
                begin = max(self.due, first_ready + (GRACE_S if lag else 0))
                if now >= begin:
                    break
                engine.changed.wait(begin - now if any(ready) else None)
            self.players = [player if there else None for player, there in zip(self.players, ready, strict=True)]
            began = time.monotonic()
            self.due = max(self.due + 1 / engine.fps, began) if engine.fps else began
            self.facts = [None if p is None else FrameFacts(p.action, p.key_seq, began, late) for p in self.players]
            return [None if facts is None else facts.action for facts in self.facts]

    def _drop_absent(self) -> None:
        """Who has left or started another dream is no longer in it."""
        seated = self.engine.players[: self.engine.seats]
        for slot, player in enumerate(self.players):
            if player is not None and (player not in seated or player.dream is not self.dreams[slot]):
                self.players[slot] = None


def _check(what: str, number: int, count: int) -> None:
    if number >= count:
        raise ValueError(f"no {what} {number}; there are {count}")
