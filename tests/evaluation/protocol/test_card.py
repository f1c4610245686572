"""The protocol card: what it holds, its hash, and that results are ranked only where cards are equal."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from magi.errors import DataError
from magi.evaluation.protocol.card import ProtocolCard, differing_fields, make_card, rank, read_result
from magi.evaluation.protocol.protocols import EvaluationProtocol, protocol
from tests.fakes.look_alikes import Projection

DATA = {"videos": 3, "videos_sha256": "a", "table_sha256": "b"}


def result(values: dict[str, float], **changed: Any) -> dict[str, Any]:
    card = make_card(protocol("digits3d"), {"count": 8}, Projection(), DATA, seed=0)
    plain = copy.deepcopy(card.values)
    for path, value in changed.items():
        *parents, last = path.split("__")
        inner = plain
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    score = {name: {"score": {"value": v, "low": v - 1, "high": v + 1, "spread": 0.5}} for name, v in values.items()}
    return {"score_name": "fvd[x]", "card": plain, "card_sha256": ProtocolCard(plain).hash, "models": score}


def test_card_holds_every_field_of_the_protocol_and_what_it_was_computed_with() -> None:
    card = make_card(protocol("ucf101-256-2048-s3"), {}, Projection(), DATA, seed=7)
    assert set(card.values["protocol"]) == set(EvaluationProtocol.model_fields)
    assert card.values["network"] == {"name": "projection", "sha256": "0" * 64, "dimension": 6}
    assert card.values["seed"] == 7 and card.values["data"] == DATA
    assert {"magi", "torch", "numpy", "pillow", "python"} <= set(card.values["versions"])
    assert json.loads(json.dumps(card.values)) == card.values and len(card.hash) == 64


def test_every_field_moves_the_hash() -> None:
    card = make_card(protocol("digits3d"), {}, Projection(), DATA, seed=0)
    hashes = {card.hash}
    for field, value in card.values["protocol"].items():
        plain = copy.deepcopy(card.values)
        plain["protocol"][field] = f"not {value}"
        hashes.add(ProtocolCard(plain).hash)
    assert len(hashes) == len(card.values["protocol"]) + 1
    assert make_card(protocol("digits3d"), {}, Projection(), DATA, seed=0).hash == card.hash


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


def test_differing_fields_sees_missing_ones() -> None:
    assert differing_fields({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b: 1, None", "a.c: None, 1"]


def test_results_are_read_back_and_a_changed_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result({"one": 5.0})))
    assert read_result(tmp_path) == read_result(path)
    forged = result({"one": 5.0})
    forged["card"]["protocol"]["interval"] = 3
    path.write_text(json.dumps(forged))
    with pytest.raises(DataError, match="does not have the hash"):
        read_result(path)
    for text in ("", "[]", "{}", json.dumps(result({"one": 5.0}) | {"models": {}})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"not a result|no model's score"):
            read_result(path)
    with pytest.raises(ValueError, match="no such result"):
        read_result(tmp_path / "elsewhere")
