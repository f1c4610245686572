"""The prompts of an evaluation: what is asked, in words, beside the real clip that shows it.

Prompt n of a seed is the caption of clip n of captioned digits of that seed, worded so that it names all six
attributes; clip numbers go round the digits. Knows no models.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from magi.data.captioned_digits import Combinations, captioned_video, directions_of
from magi.data.digit_captions import DIRECTIONS, VALUES, DigitAttributes, Wording
from magi.seeding import PROMPT_KEY, numpy_generator

_ALL_NAMED = dict.fromkeys(VALUES, 1.0)


@dataclass(frozen=True)
class AskedClip:
    """What is asked for, its wording, and a real clip of it."""

    attributes: DigitAttributes
    wording: Wording
    real_THWC: NDArray[np.uint8]

    @property
    def prompt(self) -> str:
        return self.wording.caption(self.attributes)


@dataclass(frozen=True)
class Swap:
    """The prompt of ``base`` with one attribute changed to another value of the same combinations."""

    base: int
    name: str
    attributes: DigitAttributes
    prompt: str


def draw_asked(seed: int, count: int, combinations: Combinations, size: int, frames: int) -> list[AskedClip]:
    """The first ``count`` prompts of ``seed``: a pure function."""
    asked = []
    for number in range(count):
        clip = captioned_video(seed, number, combinations, size, frames)
        wording = Wording.drawn(numpy_generator(seed, number, PROMPT_KEY), _ALL_NAMED)
        asked.append(AskedClip(clip.attributes, wording, clip.video_THWC))
    return asked


def swaps(asked: list[AskedClip], seed: int) -> list[Swap]:
    """Each attribute of each prompt of seen combinations changed, to one that is seen, too; all else as it was."""
    found = []
    for base, clip in enumerate(asked):
        rng = numpy_generator(seed, base, PROMPT_KEY, 1)
        for name in VALUES:
            others = [one for one in _seen_values(clip.attributes, name) if one != getattr(clip.attributes, name)]
            attributes = replace(clip.attributes, **{name: others[int(rng.integers(len(others)))]})
            found.append(Swap(base, name, attributes, clip.wording.caption(attributes)))
    return found


def turns(asked: list[AskedClip], name: str) -> list[Swap]:
    """What is asked from the middle of a video on: the other brightness, or the way back, which meets no border.

    Of every prompt whose way back is a seen combination, in the same words.
    """
    found = []
    for base, clip in enumerate(asked):
        back = DIRECTIONS[(DIRECTIONS.index(clip.attributes.direction) + len(DIRECTIONS) // 2) % len(DIRECTIONS)]
        if back in directions_of(clip.attributes.digit, "seen"):
            (other,) = (one for one in VALUES["brightness"] if one != clip.attributes.brightness)
            attributes = replace(clip.attributes, **{name: {"direction": back, "brightness": other}[name]})
            found.append(Swap(base, name, attributes, clip.wording.caption(attributes)))
    return found


def _seen_values(attributes: DigitAttributes, name: str) -> tuple[str, ...]:
    if name == "digit":
        return tuple(one for one in VALUES["digit"] if attributes.direction in directions_of(one, "seen"))
    return directions_of(attributes.digit, "seen") if name == "direction" else VALUES[name]
