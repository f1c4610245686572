"""The protocol card: what it holds, and its hash."""

import copy
import json

from magi.evaluation.protocol.card import ARITHMETIC, NetworkDescription, ProtocolCard, differing_fields, make_card
from magi.evaluation.protocol.protocols import EvaluationProtocol, protocol

NETWORK = NetworkDescription("projection", "0" * 64, 6)
DATA = {"videos": 3, "videos_sha256": "a", "table_sha256": "b"}


def test_card_holds_every_field_of_the_protocol_and_what_it_was_computed_with() -> None:
    card = make_card(protocol("ucf101-256-2048-s3"), {}, NETWORK, DATA, seed=7)
    assert set(card.values["protocol"]) == set(EvaluationProtocol.model_fields)
    assert card.values["network"] == {"name": "projection", "sha256": "0" * 64, "dimension": 6}
    assert set(card.values) == {
        "format", "protocol", "overrides", "network", "data", "seed", "arithmetic", "versions"
    } and card.values["arithmetic"] == ARITHMETIC  # fmt: skip
    assert card.values["seed"] == 7 and card.values["data"] == DATA
    assert {"magi", "torch", "numpy", "pillow", "python"} <= set(card.values["versions"])
    assert json.loads(json.dumps(card.values)) == card.values and len(card.hash) == 64


def test_every_field_moves_the_hash() -> None:
    card = make_card(protocol("digits3d"), {}, NETWORK, DATA, seed=0)
    hashes = {card.hash}
    for field, value in card.values["protocol"].items():
        plain = copy.deepcopy(card.values)
        plain["protocol"][field] = f"not {value}"
        hashes.add(ProtocolCard(plain).hash)
    assert len(hashes) == len(card.values["protocol"]) + 1
    assert make_card(protocol("digits3d"), {}, NETWORK, DATA, seed=0).hash == card.hash


def test_differing_fields_sees_missing_ones() -> None:
    assert differing_fields({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b: 1, None", "a.c: None, 1"]
