"""The result of an evaluation as typed values, its JSON, written and read nowhere else, and the rank of several.

A result has the protocol card with its hash, the models, and either scores by a Frechet distance or scores against the
ground truth of built-in videos. Knows how nothing is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from magi.errors import DataError
from magi.evaluation.metrics.bootstrap import Curve, Estimate
from magi.evaluation.protocol.card import ProtocolCard, differing_fields
from magi.files import read_text, write_json

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class ModelDescription:
    """What a model's samples depend on: hashes of its weights and of its autoencoder's, and its sampling settings."""

    id: str
    vae: str
    sampling: dict[str, Any]


@dataclass(frozen=True)
class MotionControl:
    """A score of real clips that were corrupted, beside the floor of the same clips; or why there is none."""

    score: Estimate | None = None
    clips: int = 0
    floor: Estimate | None = None
    insensitive_to_motion: bool = False
    """The corrupted clips score no worse than the floor."""
    not_run: str = ""


@dataclass(frozen=True)
class FrameMetric:
    """A metric of predicted frames against the true ones; None where every clip's frame is exact."""

    mean: float | None
    first_frame: int
    per_frame: tuple[float | None, ...]
    exact_frames: int


@dataclass(frozen=True)
class RealScores:
    """What real clips score among themselves, and how they change over time."""

    floor: Estimate
    floor_expected: float | None
    motion_controls: dict[str, MotionControl]
    curves: dict[str, Curve]
    adjacent_l2: dict[str, Curve]
    """By the interval between frames."""
    frame_fid_floor: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelScores:
    """What a model scores, and its autoencoder alone."""

    score: Estimate
    score_at_infinity: float | None
    vae_reconstruction: Estimate
    samples_key: str
    curves: dict[str, Curve]
    drift_ratio: Curve
    frames: dict[str, FrameMetric]
    frame_fid: tuple[float, ...] = ()


@dataclass(frozen=True)
class FrechetScores:
    """Scores by a Frechet distance of features."""

    real: RealScores
    models: dict[str, ModelScores]


@dataclass(frozen=True)
class RangeScore:
    """A ground-truth metric over a range of frames; ``worst_bin`` is the worst mean over ten consecutive frames."""

    value: Estimate
    worst_bin: float
    worst_bin_frames: str


@dataclass(frozen=True)
class GroundTruthSeries:
    """The ground-truth metrics of a set of clips: by range and metric, and at every frame."""

    ranges: dict[str, dict[str, RangeScore]]
    per_frame: dict[str, Curve]


@dataclass(frozen=True)
class Target:
    """The mean of a metric over a range of frames must lie within [low, high]; None is no bound."""

    frames: str
    metric: str
    low: float | None
    high: float | None

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies within the bounds."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class JudgedTarget(Target):
    """A target and the value that a model reaches."""

    value: float
    met: bool


@dataclass(frozen=True)
class GroundTruthScores:
    """Series by name ('real', 'vae', each model) and the targets of each model.

    Of digits also how good the classifier is; of a world each series' ``reactions`` (changes of action that were first
    obeyed 0, 1, 2, 3 frames later, or not) and ``median_survival`` in frames; of a recorded game on how many videos the
    network was trained that reads actions.
    """

    series: dict[str, GroundTruthSeries]
    targets: dict[str, tuple[JudgedTarget, ...]]
    classifier_accuracy: float | None = None
    classifier_clips: int = 0
    reactions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    median_survival: dict[str, float] = field(default_factory=dict)
    inverse_dynamics_videos: int = 0


@dataclass(frozen=True)
class EvaluationResult:
    """What ``magi evaluate`` writes."""

    score_name: str
    card: dict[str, Any]
    card_sha256: str
    other_networks: dict[str, str]
    """Name and weight hash of what measures beside the score."""
    models: dict[str, ModelDescription]
    frechet: FrechetScores | None = None
    ground_truth: GroundTruthScores | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """The fields of the protocol, as the card has them."""
        fields: dict[str, Any] = self.card["protocol"]
        return fields


_RESULT = TypeAdapter(EvaluationResult)


def write_result(result: EvaluationResult, path: Path) -> None:
    """Write the JSON, atomically."""
    write_json(path, _RESULT.dump_python(result, mode="json"))


def read_result(path: Path) -> EvaluationResult:
    """A result file, or the one in a folder; ``DataError`` where it is damaged or its card was changed by hand."""
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such result; 'magi evaluate' writes {RESULT_FILE}")
    try:
        result = _RESULT.validate_json(read_text(path))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a result of 'magi evaluate' ({said}); evaluate again") from None
    if ProtocolCard(result.card).hash != result.card_sha256:
        raise DataError(f"{path}: the card does not have the hash written beside it; evaluate again")
    if not result.models:
        raise DataError(f"{path}: holds no model's score; evaluate again")
    return result


@dataclass(frozen=True)
class Ranking:
    """Models of comparable results with their scores, best first, and the fields of the cards that were ignored."""

    name: str
    rows: tuple[tuple[str, Estimate], ...]
    ignored: tuple[str, ...]


def rank(results: Mapping[str, EvaluationResult], ignore: Sequence[str] = ()) -> Ranking:
    """Models of several results (name -> result), best first.

    ``ValueError`` names every field in which cards differ, but for those in ``ignore`` (as in 'versions.torch'), and
    refuses results without a Frechet distance.
    """
    for name, result in results.items():
        if result.frechet is None:
            raise ValueError(f"{name}: {result.score_name} has no one score to rank by; compare its figures")
    (first_name, first), *others = results.items()
    lines, ignored = [], set()
    for name, other in others:
        for line in differing_fields(first.card, other.card):
            path = line.partition(":")[0]
            skipped = next((one for one in ignore if path == one or path.startswith(f"{one}.")), None)
            if skipped is None:
                lines.append(f"{first_name} and {name} differ in {line}")
            else:
                ignored.add(skipped)
    if lines:
        raise ValueError("\n".join([*lines, "results of different protocol cards are not ranked; score them alike"]))
    rows = [
        (f"{name}: {model}" if len(results) > 1 else model, scores.score)
        for name, result in results.items()
        if result.frechet is not None
        for model, scores in result.frechet.models.items()
    ]
    return Ranking(first.score_name, tuple(sorted(rows, key=lambda row: row[1].value)), tuple(sorted(ignored)))
