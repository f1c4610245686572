"""Two captioned digits: a clause each, in the order of the sidecar, and both in every frame."""

import json
from pathlib import Path

import numpy as np
import pytest

from magi.data.captioned_digits import is_held_out, write_captioned_digits
from magi.data.captioned_pairs import captioned_pair, write_captioned_pairs
from magi.data.digit_captions import CONJUNCTIONS
from tests.fakes.caption_reader import values_read

PAIRS = [captioned_pair(0, number, "held-out" if number >= 80 else "seen") for number in range(100)]


def test_each_clause_says_its_own_digit_in_order() -> None:
    found = set()
    for pair in PAIRS:
        first = pair.digits[0].wording.caption(pair.digits[0].attributes).rstrip(".")
        between = next(mark for mark in ("; ", *CONJUNCTIONS) if pair.caption.startswith(first + mark))
        found.add(between)
        for part, digit in zip((first, pair.caption[len(first + between) :]), pair.digits, strict=True):
            said = values_read(part)
            assert set(said) == digit.wording.named
            assert said == {name: getattr(digit.attributes, name) for name in said}
        one, other = pair.digits
        assert one.attributes.digit != other.attributes.digit
        assert "\n" not in pair.caption and len(pair.caption.encode()) <= 256
    assert found == {"; ", *CONJUNCTIONS}


def test_both_digits_are_in_every_frame_and_the_brighter_shows() -> None:
    for pair in PAIRS[:20]:
        one, other = (digit.video_THWC for digit in pair.digits)
        assert (pair.video_THWC >= one).all() and (pair.video_THWC >= other).all()
        assert ((pair.video_THWC == one) | (pair.video_THWC == other)).all()
        assert not (pair.video_THWC == one).all((1, 2, 3)).any(), "the other is there"


def test_first_digits_take_turns_seconds_are_any_other_and_combinations_hold_for_both() -> None:
    assert [pair.digits[0].attributes.digit for pair in PAIRS[:12]] == [*"0123456789", "0", "1"]
    assert {pair.digits[1].attributes.digit for pair in PAIRS} == set("0123456789")
    for number, pair in enumerate(PAIRS):
        assert all(is_held_out(digit.attributes) == (number >= 80) for digit in pair.digits)
    again = captioned_pair(0, 3, frames=20)
    assert np.array_equal(again.video_THWC[:16], PAIRS[3].video_THWC) and again.caption == PAIRS[3].caption
    assert captioned_pair(1, 3).caption != PAIRS[3].caption


def test_files_hold_both_and_folders_of_one_and_two_do_not_mix(tmp_path: Path) -> None:
    assert write_captioned_pairs(tmp_path / "two", 3) == 3 and write_captioned_pairs(tmp_path / "two", 3) == 0
    facts = json.loads((tmp_path / "two/1/1_00001.json").read_text())
    pair = captioned_pair(0, 1)
    assert (tmp_path / "two/1/1_00001.txt").read_text() == pair.caption + "\n" == facts["caption"] + "\n"
    assert [one["digit"] for one in facts["attributes"]] == [one.attributes.digit for one in pair.digits]
    assert [len(one["positions"]) for one in facts["glyphs"]] == [16, 16]
    with pytest.raises(ValueError, match="has combinations seen, two digits, asked seen; choose another folder"):
        write_captioned_digits(tmp_path / "two", 3)
    write_captioned_digits(tmp_path / "one", 2)
    with pytest.raises(ValueError, match="has combinations seen, asked seen, two digits"):
        write_captioned_pairs(tmp_path / "one", 2)
