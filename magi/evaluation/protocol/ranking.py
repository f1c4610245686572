"""The rank of the models of several results, refused where their protocol cards differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from magi.evaluation.metrics.bootstrap import Estimate
from magi.evaluation.protocol.card import differing_fields
from magi.evaluation.protocol.result import EvaluationResult


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
