"""Built-in videos of two captioned digits, and a sentence with a clause for each.

Each digit is one of magi.data.captioned_digits, drawn by itself, and the brighter one shows where they overlap. The two
are never the same digit, so a clause that names its digit is about one of them. What a single digit shows can be read
from pixels (magi.evaluation.text.oracles); nothing here reads two.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.captioned_digits import FRAMES, CaptionedVideo, Combinations, draw_captioned, write_captioned_digits
from magi.data.digit_captions import joined_clauses
from magi.data.moving_digits import CLASSES, check_drawable
from magi.seeding import CAPTIONED_KEY, numpy_generator


@dataclass(frozen=True)
class CaptionedPair:
    """The two videos of one digit, and both in one."""

    digits: tuple[CaptionedVideo, CaptionedVideo]
    conjunction: int

    @property
    def video_THWC(self) -> NDArray[np.uint8]:
        """Both digits."""
        one, other = self.digits
        both_THWC: NDArray[np.uint8] = np.maximum(one.video_THWC, other.video_THWC)
        return both_THWC

    @property
    def caption(self) -> str:
        """A clause for each, in order."""
        one, other = self.digits
        return joined_clauses(one.wording, one.attributes, other.wording, other.attributes, self.conjunction)

    @property
    def facts(self) -> dict[str, Any]:
        """What its sidecar tells: of each digit, in order."""
        return {
            "class": self.digits[0].attributes.digit,
            "caption": self.caption,
            **{of: [one.facts[of] for one in self.digits] for of in ("attributes", "named")},
            "glyphs": [glyph for one in self.digits for glyph in one.facts["glyphs"]],
        }


def captioned_pair(
    seed: int, clip_number: int, combinations: Combinations = "seen", size: int = 64, frames: int = FRAMES
) -> CaptionedPair:
    """Draw clip ``clip_number`` of ``seed``: a pure function; more frames continue the same video.

    The first digit goes round the ten, the second is any other. Raises ``ValueError`` for a size or frame count that
    cannot be drawn.
    """
    check_drawable(size, frames)
    rng = numpy_generator(seed, clip_number, CAPTIONED_KEY, 2)
    first = clip_number % 10
    second = (first + 1 + int(rng.integers(9))) % 10
    conjunction = int(rng.integers(2))
    one, other = (
        draw_captioned(
            CLASSES[digit], numpy_generator(seed, clip_number, CAPTIONED_KEY, 2, place), combinations, size, frames
        )
        for place, digit in enumerate((first, second))
    )
    return CaptionedPair((one, other), conjunction)


write_captioned_pairs = partial(write_captioned_digits, draw=captioned_pair, kind=", two digits")
"""As ``write_captioned_digits``; in a sidecar what is of a digit is a list of two."""
