"""The model as a page plays it: a batch of dreams that go on without end, in legs of a few frames.

In a sliding window the model sees the newest ``keep`` frames anew each time that the window is full. A leg is what lies
between two such moments: it begins with the newest frames of its dreams and nothing else, so any dreams can share it,
joining costs nothing, and the frames are those of one long stream. It knows no players and no clock.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi.config import SamplingConfig
from magi.data.actions import as_rows
from magi.data.captioned_digits import captioned_video
from magi.data.moving_digits import CLASSES, digit_video
from magi.data.worlds.contract import World
from magi.data.worlds.worlds import play_clip
from magi.errors import NumericsError
from magi.model.conditioning import action_rows
from magi.sampling.generate import generate
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import SamplerCache
from magi.sampling.prompts import encode_prompts, with_prompts
from magi.sampling.request import make_conditions

WORLD_STARTS, GENERATED_STARTS = 6, 10
NO_ACTION = -1
Ask = Callable[[], Sequence[int | None]]
"""The action of each dream of a leg that leads to the next frame; None: the frame is not wanted, and forgotten."""


@dataclass(frozen=True, eq=False)
class StartClip:
    """Frames that a dream may begin with; ``actions[t]`` leads into frame t, ``state`` is the world's in the last."""

    name: str
    video_THWC: NDArray[np.uint8]
    actions: tuple[int, ...]
    label: int | None = None
    state: Any = None
    prompt: str = ""


@dataclass(eq=False)
class DreamState:
    """Where a dream is: its newest latents_TCHW, the actions and prompts that led to them, and its random numbers."""

    latents_TCHW: Tensor
    actions: tuple[int, ...]
    prompts: tuple[str, ...]
    generator: torch.Generator
    label: int | None
    prompt: str
    """What is asked for from the next frame on."""
    checked: str = ""
    """The newest prompt that was asked for when a frame began; with a ``refusal`` the one before it goes on."""
    refusal: str = ""

    def add(self, latents_CHW: Tensor, action: int, prompt: str) -> None:
        """Another frame; the oldest is forgotten."""
        self.latents_TCHW = torch.cat([self.latents_TCHW[1:], latents_CHW[None]])
        self.actions, self.prompts = (*self.actions[1:], action), (*self.prompts[1:], prompt)


@dataclass(eq=False)
class Dream:
    """A model that dreams for up to as many players as there are in a leg.

    ``starts`` are clips of ``keep`` frames; by default those of ``world`` or, without one, generated from nothing, one
    a class. Raises ValueError for a model that cannot be played frame by frame.
    """

    pipeline: MagiPipeline
    world: World[Any] | None = None
    starts: Sequence[StartClip] = ()
    settings: SamplingConfig = field(init=False)

    def __post_init__(self) -> None:
        config = self.pipeline.config
        if self.pipeline.vae.temporal_stride != 1:
            raise ValueError(
                f"the autoencoder '{self.pipeline.vae.id}' makes {self.pipeline.vae.temporal_stride} frames at a time; "
                "play needs a model whose autoencoder compresses single frames"
            )
        if config.model.frames < 2:
            raise ValueError("a model of single frames cannot go on from one; play needs model.frames of at least 2")
        world = self.world
        if world is not None and (config.model.actions, config.data.height, config.data.width) != (
            len(world.actions), world.size, world.size,
        ):  # fmt: skip
            raise ValueError(
                f"--world {world.name} has {len(world.actions)} actions and {world.size}x{world.size} pixels, this "
                f"model {config.model.actions} and {config.data.height}x{config.data.width}; leave --world out"
            )
        if self.text:
            self._check_prompt("a text")  # loads a frozen encoder, or says what it lacks
        self.keep = keep_frames(config.sampling, config.model.frames)
        self.settings = config.sampling.changed(longer="window", window_keep=self.keep)
        self._samplers: dict[int, SamplerCache] = {}
        if not self.starts:
            self.starts = world_starts(world, self.keep) if world else generated_starts(self.pipeline, self.keep)
        self._latents = [self._encoded(start) for start in self.starts]

    def _encoded(self, start: StartClip) -> Tensor:
        if len(start.video_THWC) != self.keep or len(start.actions) != self.keep:
            raise ValueError(f"start '{start.name}': expected {self.keep} frames, got {len(start.video_THWC)}")
        if start.prompt:
            self._check_prompt(start.prompt)
        device = self.pipeline.model.mask_token.device
        return self.pipeline.vae.encode(torch.from_numpy(start.video_THWC)[None].to(device))[0]

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        return self.world.actions if self.world else tuple(map(str, range(self.pipeline.config.model.actions)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        count = self.pipeline.config.model.classes
        return self.pipeline.classes or tuple(map(str, range(count))) if count else ()

    @property
    def text(self) -> bool:
        """Whether the model reads prompts."""
        return bool(self.pipeline.config.model.text_encoder)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.pipeline.config.data.height, self.pipeline.config.data.width

    @property
    def bytes_a_player(self) -> int:
        """Memory of the history of one dream."""
        guided = self.settings.guidance != 1
        return int(self.pipeline.model.new_cache(1 + guided, self.pipeline.config.model.frames - 1).nbytes)

    def begin(self, start: int, seed: int) -> DreamState:
        """A dream that goes on from ``starts[start]``."""
        clip, generator = self.starts[start], torch.Generator().manual_seed(seed)
        prompts = (clip.prompt,) * self.keep
        return DreamState(self._latents[start], clip.actions, prompts, generator, clip.label, clip.prompt, clip.prompt)

    def _check_prompt(self, prompt: str) -> None:
        encode_prompts("prompt", prompt, self.pipeline.text_encoder, 1)

    def _prompts(self, states: Sequence[DreamState]) -> list[str]:
        """Of the next frame of each: what was asked for, or the one before where the model cannot read that."""
        prompts = []
        for state in states:
            if (prompt := state.prompt) != state.checked:
                state.checked, state.refusal = prompt, ""
                try:
                    self._check_prompt(prompt)
                except ValueError as error:
                    state.refusal = str(error)
            prompts.append(state.prompts[-1] if state.refusal else prompt)
        return prompts

    def warm_up(self, players: int) -> None:
        """Dream once for each number of players, so that nobody's first frame waits.

        Raises ValueError naming how many fit where the memory of the GPU ends.
        """
        for count in range(1, players + 1):
            try:
                states = [self.begin(number % len(self.starts), number) for number in range(count)]
                for _ in self.leg(states, lambda count=count: [NO_ACTION] * count):  # type: ignore[misc]
                    pass
            except torch.OutOfMemoryError:
                fits = f"{count - 1} fit" if count > 1 else "not even one fits"
                raise ValueError(f"--players {players}: more than the memory of the GPU holds; {fits}") from None

    def leg(self, states: Sequence[DreamState], ask: Ask) -> Iterator[NDArray[np.uint8]]:
        """Yield frame_BHWC uint8, a few of them; ``ask`` is called when a frame begins. Moves ``states`` on.

        Raises NumericsError if a frame is not finite.
        """
        model, batch = self.pipeline.config.model, len(states)
        asked, prompts = list[int | None](), [""] * batch

        def next_action(number: int) -> Tensor:
            if number >= self.keep:
                asked[:] = ask()
                entries = [NO_ACTION if action is None else action for action in asked]
            else:
                entries = [state.actions[number] for state in states]
            return action_rows(torch.from_numpy(as_rows(np.array(entries), model.actions)))

        def next_prompts(number: int) -> list[str]:
            if number < self.keep:
                return [state.prompts[number] for state in states]
            if not model.actions:
                asked[:] = ask()
            prompts[:] = self._prompts(states)
            return prompts

        conditions = make_conditions(
            model, self.pipeline.classes, [state.label for state in states], 1, self.settings.noise_level, batch
        )
        conditions, next_text = with_prompts(
            conditions, next_prompts if self.text else None, None, model, self.pipeline.text_encoder
        )
        frames = generate(
            self.pipeline.model,
            frames=model.frames,
            conditions=conditions,
            generators=[state.generator for state in states],
            config=self.settings,
            context_BTCHW=torch.stack([state.latents_TCHW for state in states]),
            samplers=self._samplers.setdefault(batch, SamplerCache()),
            next_action=next_action if model.actions else None,
            next_text=next_text,
        )
        try:
            for _ in range(model.frames - self.keep):
                if not (model.actions or model.text_encoder):
                    asked[:] = ask()
                latents_BCHW = next(frames)
                if not bool(latents_BCHW.isfinite().all()):
                    raise NumericsError("a frame is not finite; lower guidance or temperature")
                for state, latents_CHW, action, prompt in zip(states, latents_BCHW, asked, prompts, strict=True):
                    if action is not None:
                        state.add(latents_CHW, action, prompt)
                yield self.pipeline.vae.decode(latents_BCHW.float()[:, None])[:, 0].cpu().numpy()
        finally:
            frames.close()  # type: ignore[attr-defined]  # puts the sampler back


def keep_frames(sampling: SamplingConfig, trained: int) -> int:
    """Frames of a start, and of what the model sees anew: ``window_keep``, or half of what it was trained on."""
    return sampling.window_keep if sampling.longer == "window" and sampling.window_keep < trained else trained // 2


def world_starts(world: World[Any], frames: int) -> list[StartClip]:
    """Clips of the exact simulator."""
    clips = []
    for number in range(WORLD_STARTS):
        actions, states = play_clip(world, 0, number, frames)
        video_THWC = np.stack([world.draw(state) for state in states])
        clips.append(StartClip(f"{world.name} {number + 1}", video_THWC, (NO_ACTION, *actions[1:]), state=states[-1]))
    return clips


def digit_starts(frames: int, size: int) -> list[StartClip]:
    """Clips of the built-in moving digits, one a class; the class is not told."""
    clips = [digit_video(0, number, size, frames).video_THWC for number in range(len(CLASSES))]
    return [StartClip(name, clip, (NO_ACTION,) * frames) for name, clip in zip(CLASSES, clips, strict=True)]


def captioned_starts(frames: int, size: int) -> list[StartClip]:
    """Clips of the built-in captioned digits, one of each, with their captions as prompts."""
    videos = [captioned_video(0, number, size=size, frames=frames) for number in range(len(CLASSES))]
    return [
        StartClip(one.attributes.digit, one.video_THWC, (NO_ACTION,) * frames, prompt=one.caption) for one in videos
    ]


def generated_starts(pipeline: MagiPipeline, frames: int) -> list[StartClip]:
    """Clips that the model makes from nothing: one of each of its first classes, or of several seeds."""
    classes = min(pipeline.config.model.classes, GENERATED_STARTS)
    labels: list[int | None] = [*range(classes)] if classes else [None] * WORLD_STARTS
    videos = pipeline(frames=frames, labels=labels, seeds=range(len(labels))).video_BTHWC.numpy()
    names = pipeline.classes or list(map(str, range(classes)))
    return [
        StartClip(f"start {n + 1}" if label is None else str(names[label]), video, (NO_ACTION,) * frames, label)
        for n, (label, video) in enumerate(zip(labels, videos, strict=True))
    ]
