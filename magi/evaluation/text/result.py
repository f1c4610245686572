"""What ``magi evaluate text`` finds, as typed values, and its JSON. Knows how nothing is computed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from magi.errors import DataError
from magi.evaluation.metrics.bootstrap import Estimate
from magi.evaluation.protocol.card import hash_of
from magi.evaluation.protocol.result import RESULT_FILE, ModelDescription
from magi.files import read_text, write_json

ALL = "all six"
"""Beside the attributes: whether all of a clip are as asked."""
Accuracy = dict[str, Estimate]
"""By attribute, and ``ALL``: the share of clips that show what was asked."""


@dataclass(frozen=True)
class Obeyed:
    """How well a set of clips shows what was asked; ``class_kept`` is the share whose last frame is still its digit."""

    clips: int
    accuracy: Accuracy
    class_kept: Estimate


@dataclass(frozen=True)
class SwapScores:
    """Pairs of prompts under one seed that differ in one attribute.

    ``followed``: the changed attribute shows its new value; ``changed``: by attribute, its reading differs.
    """

    pairs: int
    followed: Estimate
    changed: dict[str, Estimate]


@dataclass(frozen=True)
class TurnScores:
    """Clips whose prompt changes one attribute in mid-video, read after the change.

    ``followed``: the new value is seen; ``stayed``: the old one is; ``digit_kept``: the digit is that of before.
    """

    clips: int
    followed: Estimate
    stayed: Estimate
    digit_kept: Estimate


@dataclass(frozen=True)
class TextTarget:
    """A figure, its bound (None: there is no such one), and what the autoencoder alone and the model reach."""

    what: str
    low: float | None
    high: float | None
    floor: float
    value: float

    @property
    def met(self) -> bool:
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


@dataclass(frozen=True)
class TextScores:
    """What one model reaches.

    ``obeyed`` by set: 'seen', 'held-out' and 'no prompt' (clips of the same seeds as the first of 'seen', asked for
    nothing, held against those prompts). ``lost`` is seen less held-out; ``swaps`` by the attribute that was changed;
    ``empty_prompt`` is the share of clips of the empty prompt that read as without a prompt; ``guidance`` by scale.
    ``turns`` by the attribute that changes in mid-video, then by what becomes of the history; older results have none.
    """

    obeyed: dict[str, Obeyed]
    lost: Accuracy
    swaps: dict[str, SwapScores]
    empty_prompt: Accuracy
    guidance: dict[str, Obeyed]
    targets: tuple[TextTarget, ...]
    turns: dict[str, dict[str, TurnScores]] = field(default_factory=dict)


@dataclass(frozen=True)
class TextResult:
    """``floors`` by what is measured ('real', 'vae'), then by set: what could be reached, and ``chance``.

    ``clip_scores``, where they were asked for, by what is measured, then by set.
    """

    card: dict[str, Any]
    card_sha256: str
    models: dict[str, ModelDescription]
    chance: dict[str, float]
    floors: dict[str, dict[str, Obeyed]]
    scores: dict[str, TextScores]
    clip_scores: dict[str, dict[str, Estimate]] = field(default_factory=dict)


_RESULT = TypeAdapter(TextResult)


def write_text_result(result: TextResult, path: Path) -> None:
    """Write the JSON, atomically."""
    write_json(path, _RESULT.dump_python(result, mode="json"))


def read_text_result(path: Path) -> TextResult:
    """A result file, or the one in a folder; ``DataError`` where it is damaged or its card was changed by hand."""
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such result; 'magi evaluate text' writes {RESULT_FILE}")
    try:
        result = _RESULT.validate_json(read_text(path))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a result of 'magi evaluate text' ({said}); evaluate again") from None
    if hash_of(result.card) != result.card_sha256:
        raise DataError(f"{path}: the card does not have the hash written beside it; evaluate again")
    return result
