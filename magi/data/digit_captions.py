"""What a moving digit is said to look like: its six attributes, and a grammar that puts them into words.

A ``Wording`` is everything that chance decides about a caption (which attributes it names, by which synonym, in which
order) and says any attributes; so two captions of one wording differ by one phrase where one attribute differs. Every
phrase belongs to one value of one attribute. This module knows no pixels and no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

DIRECTIONS = ("right", "lower right", "down", "lower left", "left", "upper left", "up", "upper right")
"""In steps of 45 degrees clockwise on the screen, from right on."""
VALUES: Mapping[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "weight": ("thin", "bold"),
    "size": ("small", "large"),
    "brightness": ("dim", "bright"),
    "direction": DIRECTIONS,
    "speed": ("slow", "fast"),
}
"""What each attribute can be."""
NAMED_SHARE: Mapping[str, float] = {name: 0.95 if name == "digit" else 0.8 for name in VALUES}
"""How often a caption of a training video names an attribute."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "digit": {figure: (word, figure) for figure, word in zip(VALUES["digit"], _NUMBERS, strict=True)},
    "weight": {"thin": ("thin", "slender", "fine"), "bold": ("bold", "thick", "heavy")},
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "brightness": {"dim": ("dim", "dark", "faint"), "bright": ("bright", "shining", "brilliant")},
    "direction": {
        "right": ("to the right", "right", "rightwards", "towards the right edge"),
        "lower right": ("to the lower right", "down and right", "down to the right", "towards the bottom right corner"),
        "down": ("to the bottom", "down", "downwards", "towards the bottom edge"),
        "lower left": ("to the lower left", "down and left", "down to the left", "towards the bottom left corner"),
        "left": ("to the left", "left", "leftwards", "towards the left edge"),
        "upper left": ("to the upper left", "up and left", "up to the left", "towards the top left corner"),
        "up": ("to the top", "up", "upwards", "towards the top edge"),
        "upper right": ("to the upper right", "up and right", "up to the right", "towards the top right corner"),
    },
    "speed": {"slow": ("slowly", "at low speed", "gently"), "fast": ("fast", "at high speed", "quickly")},
}
"""The synonyms of each value; as many for every value of an attribute."""
_LOOKS = ("weight", "size", "brightness")
_NOUNS = ("", "digit", "number", "figure")
_VERBS = (("moves", "moving"), ("goes", "going"), ("glides", "gliding"), ("drifts", "drifting"))
_AN = ("eight", "8")  # no other first word of a noun phrase begins with the sound of a vowel


@dataclass(frozen=True)
class DigitAttributes:
    """One of ``VALUES`` for each attribute; ``ValueError`` for anything else."""

    digit: str
    weight: str
    size: str
    brightness: str
    direction: str
    speed: str

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) not in VALUES[field.name]:
                raise ValueError(f"{field.name} '{value}': expected one of {', '.join(VALUES[field.name])}")


@dataclass(frozen=True)
class Wording:
    """The choices of one caption, apart from what it says."""

    named: frozenset[str]
    """Attributes that it names."""
    synonyms: Mapping[str, int]
    """Which of its phrases an attribute is named by."""
    order: tuple[str, ...]
    """All attributes in the order that looks, or the words of a bare list, stand in."""
    sentence: int
    """Which of the six forms of a sentence."""
    noun: str
    article: str
    verb: tuple[str, str]
    looks_follow: bool
    """Looks after the digit ("a seven, bold and dim,") instead of before it."""
    capital: bool
    full_stop: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator, named: Mapping[str, float] = NAMED_SHARE) -> Self:
        """Draw a wording that names each attribute with the probability ``named``."""
        chance = {name: float(rng.random()) for name in VALUES}
        return cls(
            named=frozenset(name for name in VALUES if chance[name] < named[name]),
            synonyms={name: int(rng.integers(len(PHRASES[name][VALUES[name][0]]))) for name in VALUES},
            order=tuple(tuple(VALUES)[place] for place in rng.permutation(len(VALUES))),
            sentence=int(rng.integers(6)),
            noun=_NOUNS[int(rng.integers(len(_NOUNS)))],
            article=("a", "the")[int(rng.random() < 0.2)],
            verb=_VERBS[int(rng.integers(len(_VERBS)))],
            looks_follow=bool(rng.random() < 0.2),
            capital=bool(rng.random() < 0.3),
            full_stop=bool(rng.random() < 0.3),
        )

    def caption(self, attributes: DigitAttributes) -> str:
        """One line of ``attributes`` in these words."""
        said = {name: PHRASES[name][getattr(attributes, name)][self.synonyms[name]] for name in self.named}
        text = self._sentence(said).rstrip(",")
        return (text[0].upper() + text[1:] if self.capital else text) + ("." if self.full_stop else "")

    @property
    def is_clause(self) -> bool:
        """Whether it has a subject and what follows it, not a list of words or a heading."""
        return self.sentence not in (4, 5)

    def _sentence(self, said: Mapping[str, str]) -> str:
        if self.sentence == 5 and said:
            return ", ".join(said[name] for name in self.order if name in said)
        subject, (moves, moving) = self._subject(said), self.verb
        where, how = said.get("direction", ""), said.get("speed", "")
        if not where and not how:
            return subject
        if self.sentence == 2 and how:
            return _joined(f"{how},", subject, moves, where)
        if self.sentence == 4:
            return f"{_joined(moving, where, how)}: {subject}"
        verb = {0: moves, 3: moving}.get(self.sentence, f"is {moving}")
        ends = (how, where) if self.sentence == 1 else (where, how)
        return _joined(subject, verb, *ends)

    def _subject(self, said: Mapping[str, str]) -> str:
        looks = [said[name] for name in self.order if name in _LOOKS and name in said]
        digit = _joined(self.noun, said["digit"]) if "digit" in said else self.noun or "digit"
        if self.looks_follow and looks:
            first, after = digit, f", {' and '.join((', '.join(looks[:-1]), looks[-1])) if looks[1:] else looks[0]},"
        else:
            first, after = _joined(*looks, digit), ""
        an = self.article == "a" and first.split()[0] in _AN
        return f"{'an' if an else self.article} {first}{after}"


CONJUNCTIONS = (" and ", ", while ")
"""Between two clauses; a semicolon where one of them is no clause."""


def joined_clauses(
    wording: Wording, attributes: DigitAttributes, other: Wording, others: DigitAttributes, conjunction: int
) -> str:
    """One line of two digits, each in its own words."""
    first, second = wording.caption(attributes).rstrip("."), other.caption(others)
    between = CONJUNCTIONS[conjunction] if wording.is_clause and other.is_clause else "; "
    return first + between + second[0].lower() + second[1:]


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)
