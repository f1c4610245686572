"""Results are read back as they were written, and ranked only where their cards are equal."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from magi.errors import DataError
from magi.evaluation.metrics.bootstrap import Curve, Estimate
from magi.evaluation.protocol.card import NetworkDescription, ProtocolCard, make_card
from magi.evaluation.protocol.protocols import protocol
from magi.evaluation.protocol.result import (
    EvaluationResult,
    FrechetScores,
    GroundTruthScores,
    ModelDescription,
    ModelScores,
    RealScores,
    rank,
    read_result,
    write_result,
)

NETWORK = NetworkDescription("projection", "0" * 64, 6)
DATA = {"videos": 3, "videos_sha256": "a", "table_sha256": "b"}
CURVE = Curve((1.0, None), (0.5, None), (1.5, None))


def result(values: dict[str, float], **changed: Any) -> EvaluationResult:
    card = make_card(protocol("digits3d"), {"count": 8}, NETWORK, DATA, seed=0)
    plain = copy.deepcopy(card.values)
    for path, value in changed.items():
        *parents, last = path.split("__")
        inner = plain
        for parent in parents:
            inner = inner[parent]
        inner[last] = value

    def scores(value: float) -> ModelScores:
        found = Estimate(value, value - 1, value + 1, 0.5)
        return ModelScores(found, None, found, "key", {"motion": CURVE}, CURVE, {})

    real = RealScores(Estimate(1, 0, 2, 0.5), None, {}, {"motion": CURVE}, {"1": CURVE})
    models = {name: ModelDescription("magi-1", "small-2", {"steps": 3}) for name in values}
    frechet = FrechetScores(real, {name: scores(value) for name, value in values.items()})
    return EvaluationResult("fvd[x]", plain, ProtocolCard(plain).hash, {}, models, frechet)


def test_equal_cards_are_ranked_best_first() -> None:
    ranking = rank({"a": result({"one": 5.0, "two": 2.0}), "b": result({"three": 3.0})})
    assert [name for name, _ in ranking.rows] == ["a: two", "b: three", "a: one"]
    assert ranking.name == "fvd[x]" and ranking.ignored == ()


def test_differing_cards_are_refused_field_by_field() -> None:
    first = result({"one": 5.0})
    second = result({"two": 2.0}, protocol__interval=2, network__sha256="f", versions__torch="1.0")
    with pytest.raises(ValueError, match="not ranked") as caught:
        rank({"a": first, "b": second})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "a and b differ in protocol.interval: 1, 2" in lines
    assert any("network.sha256" in line for line in lines) and any("versions.torch" in line for line in lines)


def test_a_difference_may_be_ignored_and_is_told() -> None:
    results = {"a": result({"one": 5.0}), "b": result({"two": 2.0}, versions__torch="1.0", versions__python="2")}
    with pytest.raises(ValueError, match=r"versions\.python"):
        rank(results, ["versions.torch"])
    assert rank(results, ["versions"]).ignored == ("versions",)
    assert [name for name, _ in rank(results, ["versions.torch", "versions.python"]).rows] == ["b: two", "a: one"]


def test_results_without_one_score_are_not_ranked() -> None:
    truth = EvaluationResult("ground truth", {}, "", {}, {}, ground_truth=GroundTruthScores({}, {}, 1.0, 500))
    with pytest.raises(ValueError, match="b: ground truth has no one score to rank by"):
        rank({"a": result({"one": 5.0}), "b": truth})


def test_results_are_read_back_and_a_changed_card_is_refused(tmp_path: Path) -> None:
    path, written = tmp_path / "result.json", result({"one": 5.0})
    write_result(written, path)
    assert read_result(tmp_path) == read_result(path) == written
    values = json.loads(path.read_text())
    forged = copy.deepcopy(values)
    forged["card"]["protocol"]["interval"] = 3
    path.write_text(json.dumps(forged))
    with pytest.raises(DataError, match="does not have the hash"):
        read_result(path)
    for text in ("", "[]", "{}", json.dumps(values | {"models": {}})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"not a result|no model's score"):
            read_result(path)
    with pytest.raises(ValueError, match="no such result"):
        read_result(tmp_path / "elsewhere")
